"""Steps that workers take at their own pace, on weights that lie on parameter servers.

    train = AsynchronousBlock(parts)
    block = train(k)                      # k steps, each by a worker that is free; returns when all are done

A step reads the weights as they are, differentiates its batch and applies its update, while other workers do the same.
Each worker takes one step at a time, so with a single worker this is training on one device. The stages are those of
`step.py`; the chief counts the steps, in their order.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework.compile import Compiled
from framework.data.batches import Batch, Batches, Resident
from framework.data.bucketed import members_of
from framework.distribute.replicas import ParameterServers
from framework.errors import RunError, UserError
from framework.step.block import Block, BlockParts, TrainBlock
from framework.step.draws import check_draws
from framework.step.forward import total
from framework.step.metric_row import VIOLATIONS
from framework.step.parts import StepTrace
from framework.step.probe import Probe
from framework.step.repeat import MetricSums
from framework.step.scopes import scopes
from framework.step.step import take_step


def check(make: Mapping[str, Any], model: Any, data: Batches, probe: Probe) -> None:
    """Raises UserError for what cannot be had on parameter servers."""
    reason = ""
    if "make_step" in make or isinstance(model, Mapping):
        reason = "workers take the standard step of a single model, and the experiment has one of its own or several"
    elif "make_extensions" in make:
        reason = "extensions of the step would read and write weights that other workers are changing"
    elif len(members_of(data)) > 1:
        reason = "batches of several shapes (buckets) have a trace each, and workers trace one"
    elif isinstance(data, tf.Module):
        reason = "batches that have a state live on one device"
    elif probe.has_collectives:
        reason = "the forward pass communicates between replicas, and workers do not wait for one another"
    elif probe.assigned_variables:
        reason = (
            f"the forward pass changes '{probe.assigned_variables[0].name}', as BatchNormalization does, and a step"
            " that is not finite could not put it back without undoing what others did"
        )
    if reason:
        raise UserError(
            f"runtime.strategy='parameter_server': {reason}. Use --config.runtime.strategy=one_device, or multi_worker."
        )


class AsynchronousBlock(TrainBlock):
    """The training steps of a run on parameter servers; see `TrainBlock`."""

    def __init__(self, parts: BlockParts) -> None:
        super().__init__(parts)
        assert isinstance(self._replicas, ParameterServers)
        self._coordinator = self._replicas.coordinator
        self._examples = self._on_workers()

    def __call__(self, k: int, sums: Mapping[str, np.ndarray] | None = None) -> Block:
        """Runs `k` steps from `state.step` on the workers and waits for their numbers; see `TrainBlock`.

        Raises:
          UserError: an id or label is out of range, or an assertion does not hold. The weights then hold the updates of
            the block's other steps: go on from the last checkpoint, in a new process.
          RunError: a parameter server is lost, and with it the weights.
        """
        self._check_k(k)
        first = int(self._state.step)
        start = time.perf_counter()
        plan = {} if self._batches.is_resident else self._batches.plan(first, k, k)
        waited = 0.0 if self._batches.is_resident else time.perf_counter() - start
        try:
            taken = [
                self._schedule(first + i, {name: rows[i : i + 1] for name, rows in plan.items()}) for i in range(k)
            ]
            with self._explained(first, k):
                self._coordinator.join()
        except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
            raise RunError(
                f"a parameter server is lost, and with it the weights after step {first}: {error.message} The same"
                " command goes on from the last checkpoint, once all are there again."
            ) from error
        steps = [step.fetch() for step in taken]
        numbers = np.stack([row for row, _ in steps])
        is_suspect = self._column(numbers, VIOLATIONS) != 0
        if self._config.train.on_nonfinite == "stop":
            is_suspect |= ~np.isfinite(self._column(numbers, "loss"))
        for index in np.flatnonzero(is_suspect):
            self._check_violations(first + int(index), numbers[index])
        block = self._count(first, numbers)
        totals = dict(sums or self.layout.empty_sums())
        for _, added in steps[: len(block.rows)]:
            totals = {name: total + added[name] for name, total in totals.items()}
        return dataclasses.replace(block, sums=totals, waited=waited)

    def _compile(self, mode: str) -> Compiled:
        return Compiled(self._take_on_worker, "graph", "train")

    def _schedule(self, step: int, plan: Batch) -> Any:
        """Schedules a step on a free worker; returns a handle.

        The handle's `fetch` returns the metric row of the step and what the step adds to the metric sums.
        """
        return self._coordinator.schedule(
            self.compiled.function, args=(tf.constant(step, tf.int64), plan, self._examples)
        )

    def _on_workers(self) -> Any:
        """Returns an endless iterator over one element, the resident examples in the memory of each worker."""
        if not isinstance(self._batches, Resident):
            return ()
        examples = self._batches.examples
        return iter(
            self._coordinator.create_per_worker_dataset(lambda: tf.data.Dataset.from_tensors(examples).repeat())
        )

    def _take_on_worker(self, step: tf.Tensor, plan: Batch, examples: Any) -> tuple[tf.Tensor, MetricSums]:
        """Takes one step: its row, and what it adds to the sums.

        'skipped' and 'empty_terms' of the row are those of this step alone.
        """
        rate = self._parts.schedules["model"](self._state.updates.read_value())
        batches = self._batches.with_examples(next(examples)) if isinstance(self._batches, Resident) else self._batches
        with scopes(self._config.train.precision, self._key, step):
            batch = batches.take(plan or batches.plan(step, 1, 1), tf.constant(0))
            trace = StepTrace(self._tools.parts, keeps_rows=True)
            with self._tools.tracing(trace):
                result = take_step(trace, self._parts.step, batch, rollback_variables=())
        scalars = {
            "loss": total(result.terms),
            "learning_rate": rate,
            "gradient_norm": trace.norms["model"],
            "skipped": ~result.is_taken,
            "empty_terms": tf.where(result.is_taken, result.empty_terms, 0),
            VIOLATIONS: result.violations,
        }
        check_draws(tf.compat.v1.get_default_graph(), self._config, self._state)
        row = self.layout.pack(scalars, result.terms, result.metrics, self._dtype)
        return row, self.layout.additions(row, result.metrics)

    def _column(self, rows: np.ndarray, name: str) -> np.ndarray:
        return rows[:, self.layout.scalars.index(name)]

    def _count(self, first: int, rows: np.ndarray) -> Block:
        """Moves the counters past the steps of `rows`, in their order, and halts at a step if the policy says so."""
        state, settings = self._state, self._config.train
        skipped = self._column(rows, "skipped").copy()
        in_row = int(state.skipped_in_row)
        count = len(rows)
        is_halted = False
        for index in range(len(rows)):
            in_row = in_row + 1 if skipped[index] else 0
            if in_row and (settings.on_nonfinite == "stop" or in_row >= settings.nonfinite_limit):
                count = index + 1
                is_halted = True
                break
        # Unless the policy is `skip`, a step that is not finite does not count.
        passed = count - (is_halted and settings.on_nonfinite == "stop")
        for name in ("skipped", "empty_terms"):
            column, counter = self._column(rows, name), getattr(state, name)
            here = column.copy()
            here[passed:] = 0
            column[:] = int(counter) + np.cumsum(here)
            counter.assign_add(int(here.sum()))
        state.skipped_in_row.assign(in_row if settings.on_nonfinite == "skip" else 0)
        state.step.assign(first + passed)
        return Block(first, rows[:count], self.layout, is_halted)

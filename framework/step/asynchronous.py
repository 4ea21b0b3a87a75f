"""Steps that workers take at their own pace, on weights that lie on parameter servers.

    train = AsynchronousBlock(state, step, tools, row, batches, schedules, config, rollback_variables, replicas, loss)
    block = train(k)                      # k steps, each by the worker that is free; returns when all are done

A step reads the weights as they are, differentiates its batch and applies its update, while other workers do the same.
Each takes one step at a time, so with a single worker this is training on one device.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework.compile import Compiled
from framework.data.batches import Batch, Batches, Resident
from framework.distribute.replicas import ParameterServers
from framework.errors import RunError, UserError
from framework.optim import clip, global_norm
from framework.step.block import UNKNOWN, Block, TrainBlock
from framework.step.gradients import Loss, counted, gradients_of, total
from framework.step.metric_row import VIOLATIONS
from framework.step.penalties import is_penalty
from framework.step.probe import Probe, check_draws, scopes
from framework.step.update import when


def check(make: Mapping[str, Any], model: Any, data: Batches, found: Probe) -> None:
    """Raises UserError for what cannot be had on parameter servers."""
    reason = ""
    if "make_step" in make or isinstance(model, Mapping):
        reason = "workers take the standard step of a single model, and the experiment has one of its own or several"
    elif isinstance(data, tf.Module):
        reason = "batches that have a state live on one device"
    elif found.has_collectives:
        reason = "the forward pass communicates between replicas, and workers do not wait for one another"
    elif found.assigned_variables:
        reason = (
            f"the forward pass changes '{found.assigned_variables[0].name}', as BatchNormalization does, and a step"
            " that is not finite could not put it back without undoing what others did"
        )
    if reason:
        raise UserError(
            f"runtime.strategy='parameter_server': {reason}. Use --config.runtime.strategy=one_device, or multi_worker."
        )


class AsynchronousBlock(TrainBlock):
    """The training steps of a run on parameter servers; see `TrainBlock`.

    Args:
      as those of TrainBlock.
      loss: what its step differentiates.
    """

    def __init__(self, *args: Any, loss: Loss) -> None:
        super().__init__(*args)
        assert isinstance(self._replicas, ParameterServers)
        self._loss, self._coordinator = loss, self._replicas.coordinator
        self.compiled = Compiled(self._taken, "graph", "train")
        self._examples = self._on_workers()

    def __call__(self, k: int) -> Block:
        """Runs `k` steps from `state.step` on the workers and waits for their numbers.

        Raises:
          RunError: a parameter server is lost, and with it the weights.
        """
        if not 1 <= k <= self.block_steps:
            raise ValueError(f"k={k} is not between 1 and block_steps={self.block_steps}")
        first = int(self._state.step)
        plan = {} if self._batches.is_resident else self._batches.plan(first, k, k)
        try:
            rows = [
                self._coordinator.schedule(
                    self.compiled.function,
                    args=(
                        tf.constant(first + i, tf.int64),
                        {name: rows[i : i + 1] for name, rows in plan.items()},
                        self._examples,
                    ),
                )
                for i in range(k)
            ]
            with self._blamed(first, k):
                self._coordinator.join()
        except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
            raise RunError(
                f"a parameter server is lost, and with it the weights after step {first}: {error.message} The same"
                " command goes on from the last checkpoint, once all are there again."
            ) from error
        numbers = np.stack([row.fetch() for row in rows])
        for step in np.flatnonzero(numbers[:, self.layout.scalars.index(VIOLATIONS)]):
            raise UserError(self._problem(first + int(step)) or f"step {first + int(step) + 1}: {UNKNOWN}")
        return self._counted_on_chief(first, numbers)

    def _on_workers(self) -> Any:
        """An endless iterator over one element, the examples of resident batches, in the memory of each worker."""
        if not isinstance(self._batches, Resident):
            return ()
        examples = self._batches.examples
        return iter(
            self._coordinator.create_per_worker_dataset(lambda: tf.data.Dataset.from_tensors(examples).repeat())
        )

    def _taken(self, step: tf.Tensor, plan: Batch, examples: Any) -> tf.Tensor:
        """One step, on a worker: its row, in which 'skipped' and 'empty_terms' are those of this step alone."""
        state, config = self._state, self._config
        optimizer, metrics = state.optimizers["model"], self.layout.metrics
        rates = {"learning_rate": self._schedules["model"](state.updates.read_value())}
        batches = self._batches.of(next(examples)) if isinstance(self._batches, Resident) else self._batches
        with scopes(config.train.precision, self._key, step):
            batch = batches.take(plan or batches.plan(step, 1, 1), tf.constant(0))
            found = gradients_of(
                counted(lambda part: self._loss(state.model, part, True), state.model),
                batch,
                optimizer.trained,
                metrics,
                dtype=self._dtype,
                micro_batches=config.train.micro_batches,
                replicas=self._replicas,
                keep_sparse=True,
            )
            merged = {path: _each_row_once(gradient) for path, gradient in found.gradients.items()}
            values = {path: g.values if isinstance(g, tf.IndexedSlices) else g for path, g in merged.items()}
            norm, loss = global_norm(values.values()), total(found.terms)
            is_finite = tf.math.is_finite(norm) & tf.math.is_finite(loss) & tf.equal(found.violations, 0)

            def update() -> None:
                clipped = clip(values, optimizer.trained, config.clip, norm)
                like = {path: _like(merged[path], value) for path, value in clipped.items()}
                self._replicas.run(lambda index: optimizer.apply(like))
                state.updates.assign_add(1)

            when(is_finite, update, lambda: None)
        terms = [term for name, term in found.terms.items() if not is_penalty(name)]
        empty = sum(tf.cast(tf.equal(term.weight, 0), tf.int64) for term in terms)
        scalars = {"loss": loss, "gradient_norm": norm, "skipped": ~is_finite, **rates}
        scalars |= {"empty_terms": tf.where(is_finite, empty, 0), VIOLATIONS: found.violations}
        check_draws(tf.compat.v1.get_default_graph(), config)
        return self.layout.pack(scalars, found.terms, found.metrics, self._dtype)

    def _counted_on_chief(self, first: int, rows: np.ndarray) -> Block:
        """Moves the counters past the steps of `rows`, in their order, and halts where the policy says so."""
        state, settings = self._state, self._config.train
        skip, empty = (rows[:, self.layout.scalars.index(name)].copy() for name in ("skipped", "empty_terms"))
        in_row, count, is_halted = int(state.skipped_in_row), len(rows), False
        for index in range(len(rows)):
            in_row = in_row + 1 if skip[index] else 0
            if in_row and (settings.on_nonfinite == "stop" or in_row >= settings.nonfinite_limit):
                count, is_halted = index + 1, True
                break
        # Where it is not skipped, a step that was not finite is not counted.
        passed = count - (is_halted and settings.on_nonfinite == "stop")
        for name, here in (("skipped", skip), ("empty_terms", empty)):
            counter = getattr(state, name)
            here[passed:] = 0
            rows[:, self.layout.scalars.index(name)] = int(counter) + np.cumsum(here)
            counter.assign_add(int(here.sum()))
        state.skipped_in_row.assign(in_row if settings.on_nonfinite == "skip" else 0)
        state.step.assign(first + passed)
        return Block(first, rows[:count], self.layout, is_halted)


def _each_row_once(gradient: Any) -> Any:
    """Slices of which none has the index of another, so that their norm is that of the gradient."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    indices, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(indices))
    return tf.IndexedSlices(values, indices, gradient.dense_shape)


def _like(gradient: Any, values: tf.Tensor) -> Any:
    """`values` as the rows that `gradient` has."""
    if not isinstance(gradient, tf.IndexedSlices):
        return values
    return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)

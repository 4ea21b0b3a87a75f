"""One compiled pass over an evaluation split.

evaluate = EvalBlock(model, loss, metrics, batches, config, found, replicas)
evaluate()                              # {'loss': 0.07, 'accuracy': 0.98}
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import paths, precision, rng
from framework.compile import Compiled
from framework.data.batches import Batch, Batches, epoch_steps
from framework.data.bucketed import alike, bucket_at, last_steps, members_of
from framework.data.fields import named_shapes
from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.losses import Term
from framework.metrics import Metric, Picture
from framework.step.blame import explained, first_problem
from framework.step.block import UNKNOWN
from framework.step.evaluation_probe import EvaluationProbe
from framework.step.forward import Loss, forward
from framework.step.kept import Tensors
from framework.step.metric_row import VIOLATIONS, MetricRow, mean, term_key
from framework.step.penalties import PENALTY
from framework.step.penalty_checks import weight_problem
from framework.step.repeat import MetricSums, repeat
from framework.step.scopes import scopes
from framework.step.shards import shards_of, steps_per_call, take_shards
from framework.trace import guards
from framework.trace.assigned import untouched

# (step, its batch, the outputs of the loss for it)
Keep = Callable[[int, Tensors, Tensors], None]

# There is no update here.
_MODES = {"xla_update": "graph"}
_HALF = (tf.float16, tf.bfloat16)


class EvalBlock:
    """One pass over an evaluation split, compiled; sums are merged over batches in float64.

    Attributes:
      compiled: counts traces and compilations.
      problem: why the last pass was not finite, a sentence that names a variable or batch; '' if it was.
      pictures: {metric: picture} that metrics made of the last pass.
      steps: batches of a pass.
    """

    def __init__(
        self,
        model: Any,
        loss: Loss,
        metrics: Mapping[str, Metric],
        batches: Batches,
        config: FrozenConfigDict,
        found: EvaluationProbe,
        replicas: Replicas,
        has_collectives: bool = False,
    ) -> None:
        self._replicas, self._members = replicas, members_of(batches)
        self._shards = [shards_of(member, replicas) for member in self._members]
        self._has_collectives = has_collectives
        self._found, self._layout = found, MetricRow((VIOLATIONS,), found.terms, metrics)
        self.steps = epoch_steps(batches)
        self._last_steps = last_steps(batches)
        self._steps = self.steps - (found.rest is not None)  # of these, with padding if the last one has some
        self._block_steps = steps_per_call(batches, min(config.train.block_steps, max(1, self._steps)))
        self._model, self._loss, self._batches = model, loss, batches
        self._precision = config.train.precision
        self._dtype = precision.master_dtype(self._precision)
        self._key = tf.constant(rng.key(config.seed), tf.uint64)
        self.problem = ""
        self.pictures: dict[str, Picture] = {}
        self._sums: dict[str, Any] = {}
        self._compile(config.train.compile)

    def __call__(self, keep: Keep | None = None, most: int | None = None) -> dict[str, float]:
        """{'loss': …, metric: …} over the whole split, each example once; NaN if a weight of the model is not finite.

        Changes nothing: what the forward pass moves is put back.

        Args:
          most: batches, the first of the pass, after which it ends; None for all. A last batch that is cut to its rows
            is evaluated whatever this is.
          keep: gets batch and outputs of each step, but not of a last batch that is cut to its rows, nor if the loss
            moves variables where it is not training. A step is then a call of its own. On one device alone.
        """
        if self._found.assigned_variables:
            keep = None  # outputs would be those after what earlier steps moved
        totals: dict[str, np.ndarray] = {term_key(name): np.zeros(2) for name in self._layout.terms}
        totals |= {name: metric.empty() for name, metric in self._layout.row_metrics.items()}
        self.problem, self.pictures = self._bad_weight(), {}
        if self.problem:  # fused kernels of some CPUs make relu(NaN) 0
            return dict.fromkeys(["loss", *self._layout.results(totals | self._layout.empty_sums())], math.nan)
        with untouched(self._found.assigned_variables):
            for step, row in enumerate(self._rows(keep, self._steps if most is None else min(most, self._steps))):
                if not self.problem and not np.isfinite(row).all():
                    self.problem = self._bad_batch(step)
                totals = self._merge(totals, self._layout.unpack(row))
        sums = {name: total.numpy() for name, total in self._sums.items()}
        if bad := [name for name, values in sums.items() if not np.isfinite(values).all()]:
            self.problem = self.problem or f"the state of the metric '{bad[0]}' is not finite"
        totals |= sums
        self.pictures = self._layout.pictures(totals)
        loss = sum(mean(totals[term_key(name)]) for name in self._layout.terms)
        return {"loss": loss, **self._layout.results(totals)}

    def outputs(
        self, step: int, most: int | None = None, kept: tuple[Tensors, Tensors] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The first `most` rows of the batch of a step, padding left out, and the outputs of the loss for them.

        Half precision is returned as float32. Changes nothing, like a whole pass.

        Args:
          kept: what a pass gave `keep` for this step; nothing is computed then.
        """
        if kept is None:
            batch = {} if self._batches.is_resident else dict(self._batches.at(step))
            bucket = bucket_at(self._batches, step)
            with untouched(self._found.assigned_variables):
                kept = self._compiled_outputs(tf.constant(step, tf.int64), batch, bucket)
        whole, outputs = (self._first(part, step, most) for part in kept)
        return whole, outputs

    def examples(
        self, step: int, most: int | None = None, kept: tuple[Tensors, Tensors] | None = None
    ) -> dict[str, np.ndarray]:
        """The first `most` rows of the batch of a step, padding left out; `kept` as for `outputs`."""
        return self._first(self._batches.at(step) if kept is None else kept[0], step, most)

    def _first(self, tensors: Mapping[str, tf.Tensor], step: int, most: int | None) -> dict[str, np.ndarray]:
        """Returns the first `most` rows of an example each, without padding, and whole what has no such rows."""
        size = self._members[bucket_at(self._batches, step)].batch_size
        rows = self._rows_of_last[step] if step in self._last_steps else size
        rows = rows if most is None else min(rows, most)

        def first(tensor: tf.Tensor) -> np.ndarray:
            array = (tf.cast(tensor, tf.float32) if tensor.dtype in _HALF else tensor).numpy()
            return array[:rows] if array.shape[:1] == (size,) else array

        return {name: first(tensor) for name, tensor in tensors.items()}

    @functools.cached_property
    def _rows_of_last(self) -> dict[int, int]:
        """Returns {step: rows before the padding of its batch} of the steps that may have some."""
        # Padding repeats the last example.
        return {step: len(np.unique(self._batches.indices(step)["index"])) for step in self._last_steps}

    def forget(self) -> None:
        """Makes the next pass trace again, because constants of the traced one have changed."""
        for compiled in (self.compiled, self._compiled_kept, self._compiled_rest, self._compiled_outputs):
            compiled.forget()

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Puts back what the loss moves where it is not training."""
        with untouched(self._found.assigned_variables):
            yield

    def _rows(self, keep: Keep | None, count: int) -> Iterator[np.ndarray]:
        """Yields the row of each of the first `count` batches, in order, and that of a last batch that is cut.

        `self._sums` are those of the batches so far.
        """
        self._sums = {name: tf.constant(value) for name, value in self._layout.empty_sums().items()}
        first = 0
        while first < count:
            bucket = bucket_at(self._batches, first)
            k = alike(self._batches, first, min(self._block_steps, count - first))
            with explained(functools.partial(self._problem, first, k)), named_shapes():
                plans = []
                if not self._batches.is_resident:
                    plans = [shard.plan(first, k, self._block_steps) for shard in self._shards[bucket]]
                if keep is None:
                    start = tf.constant(first, tf.int64)
                    rows, self._sums = self.compiled(start, tf.constant(k), plans, self._sums, bucket)
                    rows = rows.numpy()[:k]
                else:
                    rows = [self._row_kept(first, index, plans, bucket, keep) for index in range(k)]
            yield from (self._sound(first + index, row) for index, row in enumerate(rows))
            first += k
        if self._found.rest:
            with explained(functools.partial(self._problem, self._steps)):
                batch = {} if self._batches.is_resident else dict(self._batches.at(self._steps))
                row, self._sums = self._compiled_rest(tf.constant(self._steps, tf.int64), batch, self._sums)
            yield self._sound(self._steps, row.numpy())

    def _row_kept(self, first: int, index: int, plans: list[Batch], bucket: int, keep: Keep) -> np.ndarray:
        """Returns the row of a step, number `index` of a plan from `first` on, and has its batch and outputs kept."""
        step = tf.constant(first + index, tf.int64)
        row, self._sums, batch, outputs = self._compiled_kept(
            step, tf.constant(index if plans else 0), plans, self._sums, bucket
        )
        keep(first + index, batch, outputs)
        return row.numpy()

    def _sound(self, step: int, row: np.ndarray) -> np.ndarray:
        """The row of a batch of which nothing is out of range."""
        if self._layout.unpack(row)[VIOLATIONS][0]:
            raise UserError(self._problem(step) or f"evaluation, batch {step}: {UNKNOWN}")
        return row

    def _bad_weight(self) -> str:
        """Returns a sentence about the first variable of the model that is not finite; '' if all are."""
        are_finite = self._weights_are_finite().numpy()
        return next(
            (
                f"the variable '{path}' is not finite"
                for path, is_finite in zip(self._floating, are_finite, strict=True)
                if not is_finite
            ),
            "",
        )

    def _bad_batch(self, step: int) -> str:
        """Returns a sentence about the first batch that is not finite."""
        first, size = step * self._batches.batch_size, self._batches.batch_size
        examples = f" (examples {first} to {first + size - 1})" if len(self._members) == 1 else ""
        problem = f"batch {step}{examples} is the first that is not finite"
        reason = weight_problem(self._model, self._batches.at(step)["weight"]) if self._found.has_uneven else ""
        return f"{problem}; {reason}" if reason else problem

    @functools.cached_property
    def _weights_are_finite(self) -> Callable[[], tf.Tensor]:
        """() -> bool [variables]; a variable that is not trained, such as a mask, may be infinite."""

        def are_finite() -> tf.Tensor:
            flags = [tf.constant(True)]
            for variable in self._floating.values():
                value = paths.copies(variable)[0].read_value()
                flags.append(tf.reduce_all(tf.math.is_finite(value) if variable.trainable else ~tf.math.is_nan(value)))
            return tf.stack(flags)[1:]

        return tf.function(are_finite, autograph=False).get_concrete_function()

    @functools.cached_property
    def _floating(self) -> dict[str, tf.Variable]:
        return {path: variable for path, variable in paths.variables(self._model).items() if variable.dtype.is_floating}

    def _problem(self, first: int, count: int = 1) -> str:
        """Returns what is out of range in one of `count` batches from `first`; '' if nothing is."""

        def look(batch: Mapping[str, tf.Tensor], step: tf.Tensor) -> None:
            with scopes(self._precision, self._key, step):
                self._row(0, dict(batch))

        steps = range(first, first + count)
        return first_problem(
            self._batches, look, steps, [self._model], lambda step, problem: f"evaluation, batch {step}: {problem}"
        )

    def compiled_by(self, mode: str) -> "EvalBlock":
        """Returns the same pass, compiled as suits a training block compiled by `mode`."""
        other = copy.copy(self)
        other._compile(mode)
        return other

    def _compile(self, mode: str) -> None:
        mode, in_parts = _MODES.get(mode, mode), self._replicas.strategy is not None
        shapes = len(self._members)
        self.compiled = Compiled(self._run, mode, "evaluate", in_parts, shapes)
        self._compiled_kept = Compiled(self._run_kept, mode, "evaluate and keep", in_parts, shapes)
        self._compiled_rest = Compiled(self._run_rest, mode, "evaluate the rest", in_parts)
        self._compiled_outputs = Compiled(self._run_outputs, mode, "predict", in_parts, shapes)

    @property
    def _mode(self) -> str:
        return "xla" if "gradients" in self.compiled.programs and not self._has_collectives else "graph"

    def _run(
        self, first: tf.Tensor, k: tf.Tensor, plans: list[Batch], sums: MetricSums, bucket: int
    ) -> tuple[tf.Tensor, MetricSums]:
        shards = self._shards[bucket]
        plans = plans or [shard.plan(first, k, self._block_steps) for shard in shards]

        def step(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, MetricSums]:
            with scopes(self._precision, self._key, first + tf.cast(index, tf.int64)):
                batch, found = take_shards(self._replicas, shards, plans, index)
                row, states = self._replicas.all_reduce_sum(self._row, batch, mode=self._mode)
                return self._with_violations(row, found), tf.constant(False), states

        steps = repeat(step, k, self._block_steps, self._layout.width, self._dtype, sums)
        return steps.rows, steps.sums

    def _run_kept(
        self, step: tf.Tensor, index: tf.Tensor, plans: list[Batch], sums: MetricSums, bucket: int
    ) -> tuple[tf.Tensor, MetricSums, Batch, Batch]:
        """Returns what a step of `_run` adds, its batch and the outputs of the loss for it."""
        shards = self._shards[bucket]
        plans = plans or [shard.plan(step, 1, 1) for shard in shards]
        with scopes(self._precision, self._key, step):
            batch, found = take_shards(self._replicas, shards, plans, index)
            row, states, outputs = self._replicas.run(self._row_and_outputs, batch, mode=self._mode)
            row = self._with_violations(row, found)
        return row, {name: total + states[name] for name, total in sums.items()}, batch, outputs

    def _run_rest(self, step: tf.Tensor, batch: Batch, sums: MetricSums) -> tuple[tf.Tensor, MetricSums]:
        """The row of the last batch without its padding; each replica has all of it, because it need not divide."""
        size = self._batches.batch_size
        with scopes(self._precision, self._key, step):
            whole = batch or self._batches.at(step)
            rest = {name: x[: self._found.rest] if x.shape[:1] == [size] else x for name, x in whole.items()}
            row, states = self._replicas.redundant().all_reduce_sum(self._row, rest, mode=self._mode)
        return row, {name: total + states[name] for name, total in sums.items()}

    def _run_outputs(self, step: tf.Tensor, batch: Batch, bucket: int) -> tuple[Batch, Batch]:
        """Returns a whole batch and the outputs of the loss for it; every replica computes all of them.

        Args:
          step: number of the batch in the pass.
          batch: the batch; {} to read it here, inside of the compiled call.
          bucket: that of the step.
        """

        def forward_pass(index: int, whole: Batch) -> Batch:
            return dict(forward(self._loss, self._model, whole, training=False)[1])

        with scopes(self._precision, self._key, step):
            whole = batch or dict(self._members[bucket].at(step))
            return whole, self._replicas.redundant().run(forward_pass, whole, mode=self._mode)

    def _with_violations(self, row: tf.Tensor, found: list[tf.Tensor]) -> tf.Tensor:
        """Returns a row that also counts the guards of the split's transform that fail, which `take_shards` found."""
        if not found:
            return row
        return row + tf.one_hot(0, self._layout.width, tf.cast(found[0], row.dtype), dtype=row.dtype)

    def _row(self, index: int, batch: Batch) -> tuple[tf.Tensor, MetricSums]:
        """Returns the sums over the examples of one replica: the row, and the states without a place in it."""
        return self._row_and_outputs(index, batch)[:2]

    def _row_and_outputs(self, index: int, batch: Batch) -> tuple[tf.Tensor, MetricSums, Batch]:
        """Returns the sums over the examples of one replica, as `_row`, and the outputs of the loss for them."""
        with guards.watched(batch) as watch:
            terms, outputs = forward(self._loss, self._model, batch, training=False)
            watch.batch |= outputs
            states = {name: metric.update(outputs, batch) for name, metric in self._layout.metrics.items()}
        if PENALTY in self._layout.terms and PENALTY not in terms:  # a layer that adds one in training alone
            terms = {**terms, PENALTY: Term(tf.zeros([], self._dtype), tf.ones([], self._dtype))}
        row = self._layout.pack({VIOLATIONS: watch.violations(self._dtype)}, terms, states, self._dtype)
        return row, self._layout.additions(row, states), dict(outputs)

    def _merge(self, totals: Mapping[str, np.ndarray], row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        metrics = self._layout.row_metrics
        return {
            name: metrics[name].merge(value, row[name]) if name in metrics else value + row[name]
            for name, value in totals.items()
        }

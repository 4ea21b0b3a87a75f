"""K training steps in one compiled call, with the numbers of every one of them.

    train = TrainBlock(BlockParts(tools, step, rollback_variables, batches, schedules, layout))
    block = train(k)                      # k <= train.block_steps; any k, one trace, one compilation a shape
    block.row(k - 1)                      # {'loss': 0.21, 'learning_rate': 1e-3, 'gradient_norm': 0.8, …}

On one device the whole block is one program: batches are gathered, drawn for and consumed inside it. On several, the
loop goes around the replicas, each of which gathers its shard of a batch. `step.py` has the order of each step. Batches
of several shapes have a call for each run of steps of one bucket.
"""

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths, rng
from framework.compile import Compiled, programs
from framework.data.batches import Batch, Batches
from framework.data.bucketed import alike, bucket_at, members_of
from framework.data.fields import named_shapes
from framework.errors import UserError
from framework.optim import Schedule, global_norm
from framework.state import TrainState
from framework.step import coverage
from framework.step.blame import Blame, explained, first_problem
from framework.step.draws import check_draws
from framework.step.forward import total
from framework.step.gradients import Gradients
from framework.step.metric_row import VIOLATIONS, MetricRow
from framework.step.parts import StepFunction, StepTrace
from framework.step.repeat import MetricSums, Steps, advance, no_steps
from framework.step.scopes import scopes
from framework.step.shards import shards_of, steps_per_call, take_shards
from framework.step.step import count_step, take_step
from framework.step.tools import Tools, dry_run
from framework.trace import guards
from framework.trace.assigned import untouched

UNKNOWN = (
    "an id, a label or an assertion of the compiled step is out of range, and of the traced one none is. Compare with"
    " --config.train.compile=graph."
)


@dataclasses.dataclass(frozen=True)
class BlockParts:
    """What a training block is made of.

    Attributes:
      tools: with the state, metrics, config and replicas of the run.
      step: the step function, which calls `tools`.
      rollback_variables: what `step` changes beside weights and slots; rolled back with a step that is not taken.
      batches: for training.
      schedules: {model: schedule}.
      layout: of a row of numbers.
    """

    tools: Tools
    step: StepFunction
    rollback_variables: Sequence[tf.Variable]
    batches: Batches
    schedules: Mapping[str, Schedule]
    layout: MetricRow


@dataclasses.dataclass(frozen=True)
class Block:
    """What a call of K steps reports.

    Attributes:
      first_step: the step counter before the call.
      rows: floating [n, width]; n is less than K if the block halted.
      layout: of a row.
      is_halted: whether training must not simply continue after the last row. Either its step was not finite and the
        policy is not to skip it: then it is not counted, and the state is that before it (but on parameter servers,
        where later steps of the block are applied). Or too many steps in a row
        were skipped. Or a weight is not finite, which may leave no trace in the loss: fused kernels of some CPUs make
        relu(NaN) 0.
      sums: {metric: float64 [n]} of the metrics without a place in the row: what the call was given, plus the states of
        its finite steps.
      norms: {'parameter_norm': of the trained weights before the last step, 'update_norm': of what the step added to
        them}; with several models 'parameter_norm/generator', ….
      waited: seconds until streamed batches were there; the devices had nothing to do meanwhile.
      traced: steps of calls that traced a bucket, and the seconds of these calls.
    """

    first_step: int
    rows: np.ndarray
    layout: MetricRow
    is_halted: bool = False
    sums: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    norms: Mapping[str, float] = dataclasses.field(default_factory=dict)
    waited: float = 0.0
    traced: tuple[int, float] = (0, 0.0)

    def then(self, later: "Block") -> "Block":
        """Returns what this block and the next one report together."""
        rows = np.concatenate([self.rows, later.rows])
        traced = (self.traced[0] + later.traced[0], self.traced[1] + later.traced[1])
        waited = self.waited + later.waited
        return dataclasses.replace(later, first_step=self.first_step, rows=rows, waited=waited, traced=traced)

    def row(self, index: int) -> dict[str, float]:
        """Returns the numbers of step `first_step + index + 1`; with `norms` if it is the last."""
        results = self.layout.results(self.layout.unpack(self.rows[index]))
        return {**results, **(self.norms if index == len(self.rows) - 1 else {})}


def scalars_of(state: TrainState) -> tuple[str, ...]:
    """Returns the names of the numbers that a step reports beside terms and metrics."""
    names = ["" if name == "model" else f"/{name}" for name in state.optimizers]
    scalars = ["loss", *(f"{key}{name}" for key in ("learning_rate", "gradient_norm") for name in names)]
    return (*scalars, "skipped", "empty_terms", *(("loss_scale",) if state.loss_scale else ()), VIOLATIONS)


class TrainBlock:
    """The compiled training steps of one run.

    Attributes:
      block_steps: most steps of one call.
      layout: of a row of numbers.
      compiled: counts traces and compilations.
    """

    def __init__(self, parts: BlockParts) -> None:
        self._parts = parts
        self._tools = parts.tools
        self._batches = parts.batches
        self._state = parts.tools.parts.state
        self._config = parts.tools.parts.config
        self._replicas = parts.tools.parts.replicas
        self._dtype = parts.tools.parts.dtype
        self._members = members_of(self._batches)
        self._shards = [shards_of(member, self._replicas) for member in self._members]
        self._bucket: int | None = None  # that of each step
        self._key = tf.constant(rng.key(self._config.seed), tf.uint64)
        # Batches that have a state move on before a block halts: the batch that it halted at is kept here.
        self._kept_batch = {} if self._state.data is None else _variables_for(self._batches)
        self._is_halted = False
        self._inspect: dict[str, Compiled] = {}
        settings = self._config.train
        self._call_steps = steps_per_call(self._batches, min(settings.block_steps, settings.duration))
        is_one_shape = len(self._members) == 1
        self.block_steps = self._call_steps if is_one_shape else min(settings.block_steps, settings.duration)
        self.layout = parts.layout
        self.compiled = self._compile(settings.compile)

    def __call__(self, k: int, sums: Mapping[str, np.ndarray] | None = None) -> Block:
        """Runs `k` steps from `state.step` and waits for their numbers: in one compiled call, unless buckets change.

        Args:
          k: how many.
          sums: of the steps so far, see `Block.sums`; None for zeros.

        Raises:
          UserError: an id or label is out of range, or an assertion does not hold: named, the step is not taken.
        """
        self._check_k(k)
        block = self._call(k, sums or self.layout.empty_sums())
        while len(block.rows) < k and not block.is_halted:  # steps of other buckets
            block = block.then(self._call(k - len(block.rows), block.sums))
        return block

    def _call(self, most: int, sums: Mapping[str, np.ndarray]) -> Block:
        """Runs up to `most` steps, of the bucket of the next one, in one compiled call."""
        first = int(self._state.step)
        bucket, k = self._next(first, min(most, self._call_steps))
        traces, start = self.compiled.traces, time.perf_counter()
        with self._explained(first, k), named_shapes():
            resident = self._batches.is_resident
            plans = [] if resident else [shard.plan(first, k, self._call_steps) for shard in self._shards[bucket]]
            waited = 0.0 if resident else time.perf_counter() - start
            so_far = {name: tf.constant(value) for name, value in sums.items()}
            rows, count, is_halted, norms, totals = self.compiled(tf.constant(k), plans, so_far, bucket)
        rows = rows.numpy()[: int(count)]
        self._is_halted = bool(is_halted)
        if self._is_halted:
            self._check_violations(first + len(rows) - 1, rows[-1])
        norms = {name: float(norm) for name, norm in norms.items()}
        totals = {name: total.numpy() for name, total in totals.items()}
        is_new = len(self._members) > 1 and self.compiled.traces > traces
        traced = (len(rows), time.perf_counter() - start) if is_new else (0, 0.0)
        waited = 0.0 if is_new else waited  # none of that time counts as speed
        return Block(first, rows, self.layout, self._is_halted, totals, norms, waited, traced)

    def _next(self, step: int, most: int) -> tuple[int, int]:
        """Returns the bucket of a step, and how many steps from there on, at most `most`, one call can take."""
        if self._bucket is not None:
            return self._bucket, most
        return bucket_at(self._batches, step), alike(self._batches, step, most)

    def in_bucket(self, bucket: int | None) -> "TrainBlock":
        """Returns the same steps, of one bucket alone whatever the step is, for timing; None: of the bucket of each."""
        other = copy.copy(self)
        other._bucket = bucket
        return other

    @property
    def state(self) -> TrainState:
        """What the steps change."""
        return self._state

    def batch(self) -> Batch:
        """Returns the batch of the next step; after a block halted on batches with a state, the one it halted at."""
        if self._is_halted and self._kept_batch:
            return {name: variable.read_value() for name, variable in self._kept_batch.items()}
        return self._batches.at(self._state.step.read_value())

    def compiled_by(self, mode: str) -> "TrainBlock":
        """Returns the same steps on the same state, compiled in another way; itself if that is its own."""
        if mode == self.compiled.mode:
            return self
        other = copy.copy(self)
        other.compiled = other._compile(mode)
        other._inspect = {}
        return other

    def forget(self) -> None:
        """Makes the next calls trace again."""
        for compiled in (self.compiled, *self._inspect.values()):
            compiled.forget()

    def inspect(self, mode: str = "graph") -> dict[str, np.ndarray]:
        """Returns {path: gradient} of the next step; changes nothing.

        Args:
          mode: how this is compiled, as in `train.compile`; an eager run stays eager.
        """
        mode = "eager" if self.compiled.mode == "eager" else mode
        if mode not in self._inspect:
            in_parts = self._replicas.strategy is not None
            gradients = functools.partial(self._gradients, programs(mode, in_parts))
            self._inspect[mode] = Compiled(gradients, mode, "inspect", in_parts)
        with self.untouched(), self._explained(int(self._state.step), 1):
            # The batch is made eagerly: to trace how it is made takes longer than to trace the gradients.
            return {path: gradient.numpy() for path, gradient in self._inspect[mode](self.batch()).items()}

    def dry_run(self, batch: Batch, programs: Sequence[str] = ()) -> Gradients:
        """Returns the terms, metrics and unclipped gradients of the next step on `batch`; eagerly, if called eagerly.

        Args:
          programs: which stages are XLA programs of their own, see `compile.programs`.
        """
        with scopes(self._config.train.precision, self._key, self._state.step.read_value()):
            return dry_run(self._tools, self._parts.step, batch, programs)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Puts back what looking at a step changes: averages such as BatchNorm's, batches that have a state."""
        data = {} if self._state.data is None else paths.variables(self._state.data)
        with untouched((*self._parts.rollback_variables, *data.values())):
            yield

    def _compile(self, mode: str) -> Compiled:
        in_parts = self._replicas.strategy is not None
        return Compiled(self._run, mode, "train", in_parts, len(self._members))

    def _run(
        self, k: tf.Tensor, plans: list[Batch], sums: MetricSums, bucket: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor], MetricSums]:
        """Takes `k` steps: (rows, their number, whether the last halted, norms of the weights at the last, sums)."""
        shards = self._shards[bucket]
        plans = plans or [shard.plan(self._state.step, k, self._call_steps) for shard in shards]

        def segment(last: tf.Tensor, steps: Steps, norms: dict[str, tf.Tensor]) -> tuple[tf.Tensor, Any, Any]:
            before = self._trained()
            steps = advance(lambda i: self._take(shards, plans, i), k - 1 + last, steps)
            return last + 1, steps, self._norms(before)

        # All steps but the last, then the last: to compare weights around each step, XLA would copy them each time.
        steps = no_steps(self._call_steps, self.layout.width, self._dtype, sums)
        start = (tf.constant(0), steps, self._no_norms())
        _, steps, norms = tf.while_loop(lambda last, *_: last < 2, segment, start, parallel_iterations=1)
        if not tf.executing_eagerly():  # the whole of it, with what no probe saw: optimizers and schedules
            check_draws(tf.compat.v1.get_default_graph(), self._config, self._state)
            coverage.check(tf.compat.v1.get_default_graph(), self._state, list(self._kept_batch.values()))
        is_finite = tf.reduce_all(tf.math.is_finite(tf.stack(list(norms.values()))))
        return steps.rows, steps.count, steps.is_halted | ~is_finite, norms, steps.sums

    def _take(
        self, shards: Sequence[Batches], plans: list[Batch], index: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, MetricSums]:
        """Takes step `index` of a block: (row, whether to halt, what it adds to the sums)."""
        state = self._state
        updates = state.updates.read_value()
        with guards.watched({}) as watch:
            rates = {name: schedule(updates) for name, schedule in self._parts.schedules.items()}
        scale = None if state.loss_scale is None else state.loss_scale.scale.read_value()
        allowed = tf.constant(True)
        if state.skip_list is not None:
            allowed = tf.reduce_all(tf.not_equal(state.skip_list, state.step))
        with scopes(self._config.train.precision, self._key, state.step.read_value()):
            batch, violations = take_shards(self._replicas, shards, plans, index)
            violations += [watch.violations(self._dtype)] if watch.has_any else []
            for name, variable in self._kept_batch.items():
                variable.assign(batch[name])
            keeps_rows = self._config.optimizer.table_gradients == "rows"
            trace = StepTrace(self._tools.parts, allowed, self.compiled.programs, violations, keeps_rows)
            with self._tools.tracing(trace):
                result = take_step(trace, self._parts.step, batch, self._parts.rollback_variables)
        halts = count_step(trace, result)
        scalars = {"loss": total(result.terms), "skipped": state.skipped.read_value()}
        scalars["empty_terms"] = state.empty_terms.read_value()
        for name in state.optimizers:
            end = "" if name == "model" else f"/{name}"
            scalars[f"learning_rate{end}"] = rates[name]
            scalars[f"gradient_norm{end}"] = trace.norms[name] if name in trace.norms else tf.zeros([], self._dtype)
        scalars[VIOLATIONS] = result.violations
        if scale is not None:
            scalars["loss_scale"] = scale
        row = self.layout.pack(scalars, result.terms, result.metrics, self._dtype)
        return row, halts, self.layout.additions(row, result.metrics)

    def _gradients(self, programs: Sequence[str], batch: Batch) -> dict[str, tf.Tensor]:
        return self.dry_run(batch, programs).gradients

    def _trained(self) -> dict[str, list[tf.Tensor]]:
        """Returns {model: its trained weights}."""
        return {
            name: [variable.read_value() for variable in optimizer.trained.values()]
            for name, optimizer in self._state.optimizers.items()
        }

    def _norms(self, before: dict[str, list[tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Returns `Block.norms` of the update from the weights `before` to the present ones."""
        norms: dict[str, tf.Tensor] = {}
        for name, now in self._trained().items():
            update = [new - old for new, old in zip(now, before[name], strict=True)]
            norms |= zip(_norm_names(name), (global_norm(before[name]), global_norm(update)), strict=True)
        return {name: tf.cast(norm, self._dtype) for name, norm in norms.items()}

    def _no_norms(self) -> dict[str, tf.Tensor]:
        """Returns zeros of the structure of `_norms`: to trace norms that nobody reads would take seconds."""
        return {norm: tf.zeros([], self._dtype) for name in self._state.optimizers for norm in _norm_names(name)}

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.block_steps:
            raise ValueError(f"k={k} is not between 1 and block_steps={self.block_steps}")

    def _check_violations(self, step: int, row: np.ndarray) -> None:
        """Raises UserError if a step halted because of what is out of range, which a NaN may be the only sign of."""
        numbers = self.layout.unpack(row)
        is_counted = bool(numbers[VIOLATIONS][0])
        if is_counted or not np.isfinite(numbers["loss"]).all():
            problem = self._problem(step) or (_sentence(step, UNKNOWN) if is_counted else "")
            if problem:
                raise UserError(problem)

    @contextlib.contextmanager
    def _explained(self, first: int, count: int) -> Iterator[None]:
        """Explains what a kernel raises because of the batch of one of `count` steps from `first`."""

        def problem() -> str:
            self._is_halted = True  # of batches that have a state, the kept batch is the one to look at
            return self._problem(first, count)

        with explained(problem):
            yield

    def _problem(self, first: int, count: int = 1) -> str:
        """Returns what is out of range in the batch of one of `count` steps from `first`; '' if nothing is."""

        def rates(_: Any, update: tf.Tensor) -> None:
            with guards.watched({}):
                for schedule in self._parts.schedules.values():
                    schedule(update)

        def look(batch: Mapping[str, tf.Tensor], step: tf.Tensor) -> None:
            with scopes(self._config.train.precision, self._key, step):
                dry_run(self._tools, self._parts.step, batch, is_whole=True)

        roots = (self._state.model, self._state.extra)
        if problem := Blame(rates, {}).problem({}, int(self._state.updates)):
            return _sentence(first, problem)
        if self._kept_batch:
            return _sentence(first, Blame(look, self.batch(), *roots).problem(self.batch(), first))
        return first_problem(self._batches, look, range(first, first + count), roots, _sentence)


def _norm_names(model: str) -> tuple[str, str]:
    """Returns the names of the norms of the weights of a model, and of their update."""
    end = "" if model == "model" else f"/{model}"
    return f"parameter_norm{end}", f"update_norm{end}"


def _sentence(step: int, problem: str) -> str:
    return problem and f"step {step + 1} cannot be taken: {problem} Nothing of this step is saved."


def _variables_for(batches: Batches) -> dict[str, tf.Variable]:
    """Returns {name: variable} of the shapes of a batch."""
    shapes = tf.function(lambda: dict(batches.at(0)), autograph=False).get_concrete_function().structured_outputs
    return {name: tf.Variable(tf.zeros(spec.shape, spec.dtype), trainable=False) for name, spec in shapes.items()}

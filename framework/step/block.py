"""K steps in one compiled call, with the metrics of every one of them.

    train = TrainBlock(state, step, tools, layout, batches, schedules, config, rollback_variables, replicas)
    block = train(k)                      # k <= train.block_steps; any k, one trace, one compilation
    block.row(k - 1)                      # {'loss': 0.21, 'learning_rate': 1e-3, 'gradient_norm': 0.8, …}

With one device the whole block is one program: batches are gathered, drawn for and consumed inside it. With several,
the loop goes around the replicas, of which each gathers its part of a batch.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import paths, precision, rng
from framework.compile import Compiled, programs
from framework.data.batches import Batch, Batches
from framework.data.fields import named_shapes
from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.optim import Schedule, global_norm
from framework.state import TrainState
from framework.step import coverage
from framework.step.blame import Blame, first_problem
from framework.step.gradients import Gradients, total
from framework.step.metric_row import VIOLATIONS, MetricRow
from framework.step.probe import check_draws, scopes
from framework.step.tools import Step, Tools
from framework.trace import guards
from framework.trace.assigned import untouched

UNKNOWN = (
    "an id, a label or an assertion of the compiled step is out of range, and of the traced one none is. Compare with"
    " --config.train.compile=graph."
)


@dataclasses.dataclass(frozen=True)
class Block:
    """What a call of K steps reports.

    Attributes:
      first_step: the step counter before it.
      rows: floating [n, width]; n is less than K if the block halted.
      layout: of a row.
      is_halted: the last row is of a step that must not be passed over: something was not finite, and the policy is not
        to skip it (the step is not counted then, and the state is that before it), or was skipped too often. Or weights
        are not finite, which may leave no trace in the loss: fused kernels of some CPUs make relu(NaN) 0.
      norms: {'parameter_norm': of the trained weights at which the last step took its gradients, 'update_norm': of what
        it added to them}; with several models 'parameter_norm/generator', ….
    """

    first_step: int
    rows: np.ndarray
    layout: MetricRow
    is_halted: bool = False
    norms: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def row(self, index: int) -> dict[str, float]:
        """The numbers of the step that made the counter `first_step + index + 1`; for the last, `norms` too."""
        results = self.layout.results(self.layout.unpack(self.rows[index]))
        return {**results, **(self.norms if index == len(self.rows) - 1 else {})}


def scalars_of(state: TrainState) -> tuple[str, ...]:
    """What a step reports beside terms and metrics."""
    names = ["" if name == "model" else f"/{name}" for name in state.optimizers]
    scalars = ["loss", *(f"{key}{name}" for key in ("learning_rate", "gradient_norm") for name in names)]
    return (*scalars, "skipped", "empty_terms", *(("loss_scale",) if state.loss_scale else ()), VIOLATIONS)


class TrainBlock:
    """The compiled training steps of one run.

    Args:
      state: what steps change.
      step: (state, batch) -> (terms, metric states), made of `tools`.
      schedules: {model: schedule}.
      rollback_variables: variables that `step` changes beside weights and slots; put back where a step does not count.
      replicas: where parts of a batch are gathered and differentiated.

    Attributes:
      block_steps: most steps of one call.
      layout: what a row of numbers holds.
      compiled: counts traces and compilations.
    """

    def __init__(
        self,
        state: TrainState,
        step: Step,
        tools: Tools,
        layout: MetricRow,
        batches: Batches,
        schedules: Mapping[str, Schedule],
        config: FrozenConfigDict,
        rollback_variables: Sequence[tf.Variable],
        replicas: Replicas,
    ) -> None:
        self.block_steps = at_once(batches, min(config.train.block_steps, config.train.duration))
        self.layout = layout
        self.compiled = Compiled(self._run, config.train.compile, "train", in_parts=replicas.strategy is not None)
        self._inspect: dict[str, Compiled] = {}
        self._state, self._step, self._tools, self._rollback_variables = state, step, tools, rollback_variables
        self._batches, self._schedules, self._config = batches, schedules, config
        self._replicas, self._parts = replicas, parts_of(batches, replicas)
        # Batches that have a state have moved on when a block halts: the batch it halted at is looked at from here.
        self._seen = {} if state.data is None else _places_for(batches)
        self._is_halted = False
        self._dtype = precision.master_dtype(config.train.precision)
        self._key = tf.constant(rng.key(config.seed), tf.uint64)

    def __call__(self, k: int) -> Block:
        """Runs `k` steps from `state.step` and waits for their numbers.

        Raises:
          UserError: an id or label is out of range, or an assertion does not hold: named, the step is not taken.
        """
        if not 1 <= k <= self.block_steps:
            raise ValueError(f"k={k} is not between 1 and block_steps={self.block_steps}")
        first = int(self._state.step)
        with self._blamed(first, k), named_shapes():
            resident = self._batches.is_resident
            plans = [] if resident else [part.plan(first, k, self.block_steps) for part in self._parts]
            rows, count, is_halted, norms = self.compiled(tf.constant(k), plans)
        self._is_halted = bool(is_halted)
        if self._is_halted:
            self._refuse_violation(first + int(count) - 1, rows.numpy()[int(count) - 1])
        norms = {name: float(norm) for name, norm in norms.items()}
        return Block(first, rows.numpy()[: int(count)], self.layout, self._is_halted, norms)

    def _refuse_violation(self, step: int, row: np.ndarray) -> None:
        """Raises UserError if a step halted because of what is out of range, which it may say by a NaN alone."""
        numbers = self.layout.unpack(row)
        is_counted = bool(numbers[VIOLATIONS][0])
        if is_counted or not np.isfinite(numbers["loss"]).all():
            problem = self._problem(step) or (_told(step, UNKNOWN) if is_counted else "")
            if problem:
                raise UserError(problem)

    @contextlib.contextmanager
    def _blamed(self, first: int, count: int) -> Iterator[None]:
        """Explains what a kernel raises because of the batch of one of `count` steps from `first`."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            self._is_halted = True  # of batches that have a state, the one it stumbled over is looked at
            problem = self._problem(first, count)
            if not problem:
                raise
            raise UserError(problem) from error

    def _problem(self, first: int, count: int = 1) -> str:
        """What is out of range in the batch of one of `count` steps from `first`; '' if nothing is."""

        def rates(_: Any, update: tf.Tensor) -> None:
            with guards.watched({}):
                for schedule in self._schedules.values():
                    schedule(update)

        def look(batch: Mapping[str, tf.Tensor], step: tf.Tensor) -> None:
            with scopes(self._config.train.precision, self._key, step):
                self._tools.dry_run(self._step, batch, is_whole=True)

        roots = (self._state.model, self._state.extra)
        if found := Blame(rates, {}).problem({}, int(self._state.updates)):
            return _told(first, found)
        if self._seen:
            return _told(first, Blame(look, self.batch(), *roots).problem(self.batch(), first))
        return first_problem(self._batches, look, range(first, first + count), roots, _told)

    def compiled_by(self, mode: str) -> "TrainBlock":
        """The same steps on the same state, compiled in another way; itself if that is its own."""
        if mode == self.compiled.mode:
            return self
        other = copy.copy(self)
        other.compiled = Compiled(other._run, mode, "train", in_parts=self._replicas.strategy is not None)
        other._inspect = {}
        return other

    def forget(self) -> None:
        """Makes the next calls trace anew."""
        for compiled in (self.compiled, *self._inspect.values()):
            compiled.forget()

    @property
    def state(self) -> TrainState:
        """What its steps change."""
        return self._state

    def batch(self) -> Batch:
        """The batch of the next step; of batches that have a state, after a block halted, the one it halted at."""
        if self._is_halted and self._seen:
            return {name: variable.read_value() for name, variable in self._seen.items()}
        return self._batches.at(self._state.step.read_value())

    def inspect(self, mode: str = "graph") -> dict[str, np.ndarray]:
        """{path: gradient} that the next step will have; changes nothing.

        Args:
          mode: how this is compiled, as in `train.compile`; an eager run stays eager.
        """
        mode = "eager" if self.compiled.mode == "eager" else mode
        if mode not in self._inspect:
            in_parts = self._replicas.strategy is not None
            gradients = functools.partial(self._gradients, programs(mode, in_parts))
            self._inspect[mode] = Compiled(gradients, mode, "inspect", in_parts)
        with self.untouched(), self._blamed(int(self._state.step), 1):
            # Inside the graph where batches can be made there: a streamed one comes from the host.
            batch = {} if self._batches.is_resident else self.batch()
            return {path: gradient.numpy() for path, gradient in self._inspect[mode](batch).items()}

    def dry_run(self, batch: Batch, programs: Sequence[str] = ()) -> Gradients:
        """What the next step would report and apply on `batch`; eagerly, if called so.

        Args:
          programs: what of it is an XLA program by itself, see `Tools.run`.
        """
        with scopes(self._config.train.precision, self._key, self._state.step.read_value()):
            return self._tools.dry_run(self._step, batch, programs)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Puts back what looking at a step moves: averages such as BatchNorm's, batches that have a state."""
        data = {} if self._state.data is None else paths.variables(self._state.data)
        with untouched((*self._rollback_variables, *data.values())):
            yield

    def _run(self, k: tf.Tensor, plans: list[Batch]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        plans = plans or [part.plan(self._state.step, k, self.block_steps) for part in self._parts]

        def part(last: tf.Tensor, steps: Steps, norms: dict[str, tf.Tensor]) -> tuple[tf.Tensor, Any, Any]:
            before = self._trained()
            steps = advance(lambda i: self._counted(plans, i), k - 1 + last, steps)
            return last + 1, steps, self._norms(before)

        # All steps but the last, then the last: to compare weights around each step, XLA would copy them each time.
        steps = Steps(tf.constant(0), tf.zeros([self.block_steps, self.layout.width], self._dtype), tf.constant(False))
        start = (tf.constant(0), steps, self._norms(self._trained()))
        _, steps, norms = tf.while_loop(lambda last, *_: last < 2, part, start, parallel_iterations=1)
        if not tf.executing_eagerly():  # the whole of it, with what no probe saw: optimizers and schedules
            check_draws(tf.compat.v1.get_default_graph(), self._config)
            coverage.check(tf.compat.v1.get_default_graph(), self._state, list(self._seen.values()))
        is_finite = tf.reduce_all(tf.math.is_finite(tf.stack(list(norms.values()))))
        return steps.rows, steps.count, steps.is_halted | ~is_finite, norms

    def _trained(self) -> dict[str, list[tf.Tensor]]:
        return {
            name: [variable.read_value() for variable in optimizer.trained.values()]
            for name, optimizer in self._state.optimizers.items()
        }

    def _norms(self, before: dict[str, list[tf.Tensor]]) -> dict[str, tf.Tensor]:
        """`Block.norms` of the way from the weights `before` to those that are."""
        found: dict[str, tf.Tensor] = {}
        for name, now in self._trained().items():
            end = "" if name == "model" else f"/{name}"
            moved = [new - old for new, old in zip(now, before[name], strict=True)]
            found |= {f"parameter_norm{end}": global_norm(before[name]), f"update_norm{end}": global_norm(moved)}
        return {name: tf.cast(norm, self._dtype) for name, norm in found.items()}

    def _counted(self, plans: list[Batch], index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step with its counters: (row, whether to halt)."""
        state = self._state
        before = state.updates.read_value()
        with guards.watched({}) as watch:
            rates = {name: schedule(before) for name, schedule in self._schedules.items()}
        scale = None if state.loss_scale is None else state.loss_scale.scale.read_value()
        allowed = tf.constant(True)
        if state.skip_list is not None:
            allowed = tf.reduce_all(tf.not_equal(state.skip_list, state.step))
        with scopes(self._config.train.precision, self._key, state.step.read_value()):
            batch, found = take_parts(self._replicas, self._parts, plans, index)
            found += [watch.violations(self._dtype)] if watch.has_any else []
            for name, variable in self._seen.items():
                variable.assign(batch[name])
            terms, metrics = self._tools.run(
                self._step, batch, self._rollback_variables, allowed, self.compiled.programs, found
            )
        halt = self._count(allowed)
        scalars = {"loss": total(terms), "skipped": state.skipped.read_value()}
        scalars["empty_terms"] = state.empty_terms.read_value()
        scalars |= {"learning_rate" if name == "model" else f"learning_rate/{name}": r for name, r in rates.items()}
        scalars |= self._tools.norms()
        scalars[VIOLATIONS] = self._tools.violations()
        if scale is not None:
            scalars["loss_scale"] = scale
        return self.layout.pack(scalars, terms, metrics, self._dtype), halt

    def _count(self, allowed: tf.Tensor) -> tf.Tensor:
        """Moves the counters and the loss scale past a step; returns whether the block must not go on."""
        state, settings = self._state, self._config.train
        finite = self._tools.is_finite()
        scale = state.loss_scale if state.loss_scale is not None and state.loss_scale.is_dynamic else None
        # Where it is not skipped, a step that was not finite is as if it had not been.
        halt = tf.constant(False) if scale is not None or settings.on_nonfinite == "skip" else ~finite & allowed
        is_out_of_range = tf.not_equal(self._tools.violations(), 0)
        halt |= is_out_of_range
        passed = tf.cast(~halt, tf.int64)
        state.step.assign_add(passed)
        skipped = passed * tf.cast(~(finite & allowed), tf.int64)
        state.skipped.assign_add(skipped)
        state.skipped_in_row.assign((state.skipped_in_row + skipped) * skipped)
        if scale is not None:
            scale.update(finite | ~allowed)
            halt |= scale.is_stuck
        elif settings.on_nonfinite == "skip":
            halt |= state.skipped_in_row >= settings.nonfinite_limit
        return halt

    def _gradients(self, programs: Sequence[str], batch: Batch) -> dict[str, tf.Tensor]:
        return self.dry_run(batch or self.batch(), programs).gradients


def at_once(batches: Batches, steps: int) -> int:
    """Of so many steps, those of one call: of streamed batches no more than are read while those before are trained."""
    return min(steps, getattr(batches, "ahead", None) or steps)


def parts_of(batches: Batches, replicas: Replicas) -> list[Batches]:
    """What each replica of this process reads of every batch, on its own device."""
    if replicas.strategy is None:
        return [batches]
    size = batches.batch_size // replicas.count
    parts = []
    for index, device in enumerate(replicas.devices, start=replicas.first):
        with tf.device(device):
            parts.append(batches.part(index * size, size))
    return parts


def _told(step: int, found: str) -> str:
    return found and f"step {step + 1} cannot be taken: {found} Nothing of this step is saved."


def take_parts(
    replicas: Replicas, parts: Sequence[Batches], plans: Sequence[Batch], index: tf.Tensor
) -> tuple[Batch, list[tf.Tensor]]:
    """The batch of one step, each replica's part on its device; and how many guards of its transform do not hold."""
    first, has_guards = replicas.first, False

    def take(place: int) -> tuple[Batch, tf.Tensor]:
        nonlocal has_guards
        with guards.watched({}) as watch:
            batch = parts[place - first].take(plans[place - first], index)
        has_guards |= watch.has_any
        return batch, watch.violations(tf.float32)

    batch, found = replicas.run(take)
    return batch, [replicas.all_reduce_sum(lambda place, part: part, found)] if has_guards else []


def _places_for(batches: Batches) -> dict[str, tf.Variable]:
    """{name: variable} of the shapes of a batch."""
    shapes = tf.function(lambda: dict(batches.at(0)), autograph=False).get_concrete_function().structured_outputs
    return {name: tf.Variable(tf.zeros(spec.shape, spec.dtype), trainable=False) for name, spec in shapes.items()}


class Steps(NamedTuple):
    """Steps that were made.

    Attributes:
      count: int32 scalar.
      rows: [size, width], of which `count` are filled.
      is_halted: bool scalar; the last of them halted.
    """

    count: tf.Tensor
    rows: tf.Tensor
    is_halted: tf.Tensor


def repeat(
    step: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]], k: tf.Tensor, size: int, width: int, dtype: tf.DType
) -> Steps:
    """Calls `step(0) … step(k - 1)`, which return a row and whether to halt."""
    return advance(step, k, Steps(tf.constant(0), tf.zeros([size, width], dtype), tf.constant(False)))


def advance(step: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]], end: tf.Tensor, steps: Steps) -> Steps:
    """Goes on with `step(steps.count) … step(end - 1)`.

    The buffer's size is fixed and `end` is a tensor, so no number of steps recompiles. (A TensorArray sized by it, or
    autograph's `for i in tf.range(k)`, makes XLA compile anew for every `k`, silently.)
    """

    def body(count: tf.Tensor, rows: tf.Tensor, is_halted: tf.Tensor) -> Steps:
        row, is_halted = step(count)
        return Steps(count + 1, tf.tensor_scatter_nd_update(rows, [[count]], row[tf.newaxis]), is_halted)

    return Steps(*tf.while_loop(lambda i, rows, halted: (i < end) & ~halted, body, tuple(steps), parallel_iterations=1))

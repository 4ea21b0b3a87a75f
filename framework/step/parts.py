"""The values that the stages of a step pass on: what a step is computed with, what it has found, what it returns."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import precision
from framework.compile import jit
from framework.distribute.replicas import Replicas
from framework.errors import UserError, near
from framework.metrics import Metric
from framework.optim import Optimizer
from framework.state import TrainState
from framework.step.forward import Batch, Terms, check_step, total
from framework.step.gradients import Gradients
from framework.trace import guards

# step(state, batch) -> (terms, metric states)
StepFunction = Callable[[TrainState, Batch], tuple[Terms, Mapping[str, tf.Tensor]]]


@dataclasses.dataclass(frozen=True)
class StepParts:
    """What every step of a run is computed with.

    Attributes:
      state: all that a step changes.
      metrics: {name: metric}.
      config: resolved.
      replicas: where the shards of a batch are differentiated.
      has_collectives: whether the forward pass communicates between replicas.
    """

    state: TrainState
    metrics: Mapping[str, Metric]
    config: FrozenConfigDict
    replicas: Replicas
    has_collectives: bool = False

    @property
    def dtype(self) -> tf.DType:
        """The dtype of term sums, metric states and rows."""
        return precision.master_dtype(self.config.train.precision)

    def optimizer(self, model: str) -> Optimizer:
        """Returns the optimizer of a model.

        Raises:
          UserError: the model is unknown, or has none.
        """
        optimizers = self.state.optimizers
        if not isinstance(model, str):
            raise UserError(
                f"the step names a model by a value of type {type(model).__name__}. Write its name, as"
                f" tools.gradients(…, of='{next(iter(optimizers))}') and tools.apply(…, to='{next(iter(optimizers))}');"
                f" models with an optimizer are {', '.join(optimizers)}."
            )
        if model not in optimizers:
            raise UserError(
                f"the step names a model '{model}', but those with an optimizer are {', '.join(optimizers)}."
                f"{near(model, optimizers)}"
            )
        return optimizers[model]


class Checks:
    """Whether a step may be applied, as far as it is traced.

    Args:
      dtype: of counts.
      violations: counts of guards of the batch that do not hold, see `framework/trace/guards.py`.
    """

    def __init__(self, dtype: tf.DType, violations: Sequence[tf.Tensor] = ()) -> None:
        self._dtype = dtype
        self._finite: list[tf.Tensor] = []
        self._violations: list[tf.Tensor] = []
        for count in violations:
            self.add_violations(count)

    def add_finite(self, flag: tf.Tensor) -> None:
        """Adds a bool scalar; False forbids the step."""
        self._finite.append(flag)

    def add_violations(self, count: tf.Tensor) -> None:
        """Adds the number of guards that do not hold; any number but 0 forbids the step."""
        self._finite.append(tf.equal(count, 0))
        self._violations.append(count)

    def add_gradients(self, gradients: Gradients) -> None:
        """Adds the checks of a forward pass: a finite loss, and its guards."""
        self.add_finite(tf.math.is_finite(total(gradients.terms)))
        self.add_violations(gradients.violations)

    def is_finite(self) -> tf.Tensor:
        """Returns a bool scalar: whether all losses and gradients so far are finite, and all guards hold."""
        return tf.reduce_all(tf.stack([tf.constant(True), *self._finite]))

    def violations(self) -> tf.Tensor:
        """Returns how many guards so far do not hold, scalar."""
        return tf.add_n(self._violations) if self._violations else tf.zeros([], self._dtype)


class StepTrace:
    """One step while it is traced: how it is computed, and what its stages have found so far.

    Args:
      parts: of the run.
      allowed: bool scalar; False leaves this step out.
      programs: which stages are XLA programs of their own, see `compile.programs`.
      violations: counts of guards of the batch that do not hold.
      keeps_rows: gradients of tables stay the rows that were looked up.

    Attributes:
      replicas, micro_batches: the pieces in which this step takes a batch.
      norms: {model: norm of its gradients before clipping}, of the updates so far.
      extremes: of the activations of the forward passes so far, see `Gradients`; () without any.
    """

    def __init__(
        self,
        parts: StepParts,
        allowed: tf.Tensor | None = None,
        programs: Sequence[str] = (),
        violations: Sequence[tf.Tensor] = (),
        keeps_rows: bool = False,
    ) -> None:
        self.parts, self.programs, self.keeps_rows = parts, tuple(programs), keeps_rows
        self.allowed = tf.constant(True) if allowed is None else allowed
        self.replicas: Replicas = parts.replicas
        self.micro_batches: int = parts.config.train.micro_batches
        self.checks = Checks(parts.dtype, violations)
        self.norms: dict[str, tf.Tensor] = {}
        self.extremes: Any = ()
        self._watch: guards.Watch | None = None

    @property
    def is_masked(self) -> bool:
        """Whether the XLA program that writes the weights chooses itself between new and old ones.

        Otherwise a conditional around the update decides, which would copy all variables that an XLA program may
        change. False under a strategy.
        """
        return self.replicas.strategy is None and bool({"whole", "update"} & set(self.programs))

    def program(self, stage: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `fn`, compiled as an XLA program of its own if `stage` is one of `programs`."""
        return jit(fn) if stage in self.programs else fn

    def add_extremes(self, extremes: Any) -> None:
        """Takes note of the activations of a forward pass."""
        if tf.is_tensor(extremes):
            self.extremes = tf.maximum(self.extremes, extremes) if tf.is_tensor(self.extremes) else extremes

    def call(self, step: StepFunction, batch: Batch) -> tuple[Terms, Mapping[str, tf.Tensor]]:
        """Calls the step function, checks what it returns, and guards the operations that are its own."""
        metrics, dtype = self.parts.metrics, self.parts.dtype
        if getattr(step, "is_standard", False):  # which has no operations of its own
            return check_step(step(self.parts.state, batch), metrics, dtype)
        with guards.watched(batch) as self._watch:
            returned = check_step(step(self.parts.state, batch), metrics, dtype)
            self.guard_own()
        self._watch = None
        return returned

    def guard_own(self) -> None:
        """Adds the guards of the step function's own operations so far to the checks."""
        if self._watch is None:
            return
        known = len(self._watch.guards)
        self._watch.read()
        if len(self._watch.guards) > known:
            self.checks.add_violations(self._watch.violations(self.parts.dtype, known))


class DryRun(StepTrace):
    """A step that a single device computes, in the micro-batches of the config, and that applies nothing.

    Args:
      parts: of the run.
      programs: see `StepTrace`.
      is_whole: compute it in one micro-batch, whatever the config says.

    Attributes:
      gradients: {path: gradient} before clipping; with several models {'model/path': gradient}.
    """

    def __init__(self, parts: StepParts, programs: Sequence[str] = (), is_whole: bool = False) -> None:
        super().__init__(parts, programs=programs)
        self.replicas = parts.replicas.redundant()
        self.micro_batches = 1 if is_whole else self.micro_batches
        self.gradients: dict[str, tf.Tensor] = {}


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step gives.

    Attributes:
      terms: {name: Term} of the global batch.
      metrics: {name: state} of the global batch.
      is_finite: bool scalar; whether all losses and gradients are finite, and all guards hold.
      is_taken: bool scalar; whether the step was applied: it is finite, and allowed.
      violations: scalar; how many guards do not hold.
      empty_terms: int64 scalar; how many terms of the loss have no weight in this batch.
    """

    terms: Terms
    metrics: Mapping[str, tf.Tensor]
    is_finite: tf.Tensor
    is_taken: tf.Tensor
    violations: tf.Tensor
    empty_terms: tf.Tensor

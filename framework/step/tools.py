"""What an experiment's own step function is made of, and the step function of all other experiments.

    def make_step(cfg, tools):
        loss = make_loss(cfg)

        def step(state, batch):
            result = tools.gradients(lambda micro_batch: loss(state.model, micro_batch, True), batch)
            tools.apply(result.gradients)
            return result.terms, result.metrics

        return step

`gradients` and `apply` bring micro-batches, loss scale, clipping, norms and the finite check with them; `step.py` has
their stages in order. A step in which any loss or gradient is not finite is rolled back, whatever it changed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from framework import rng
from framework.errors import UserError
from framework.state import TrainState
from framework.step.forward import Batch, ForwardPass, Loss, Terms, checked_pass
from framework.step.gradients import Gradients, Objective
from framework.step.micro_batches import examples_of
from framework.step.parts import DryRun, StepFunction, StepParts, StepTrace
from framework.step.penalties import of_model
from framework.step.step import apply_update, batch_gradients


class Tools:
    """The stages of a step, for a step function.

    Call them in the body of the step function: not inside a `tf.cond`, `tf.while_loop` or `tf.function` of yours.
    """

    def __init__(self, parts: StepParts) -> None:
        self.parts = parts
        self._trace: StepTrace | None = None

    def gradients(self, forward_pass: ForwardPass, batch: Mapping[str, tf.Tensor], of: str = "model") -> Gradients:
        """Returns gradients of the total loss of the global batch; may be called several times a step.

        Args:
          forward_pass: micro-batch -> (terms, outputs), as a loss returns them. Metrics read the outputs; {} leaves the
            metrics alone. Penalties of the model's layers are added here.
          batch: {name: [batch, ...]}.
          of: the model whose trained variables to differentiate by, if `make_model` returns a dict.

        Returns:
          terms, metric states, and {path: gradient}, which are unscaled. Penalties of one of several models have its
          name, so that terms of several calls can be put into one dict.
        """
        trace, optimizer = self._tracing("gradients"), self.parts.optimizer(of)
        loss_scale, policy = self.parts.state.loss_scale, self.parts.config.train.on_nonfinite
        is_dynamic = loss_scale is not None and loss_scale.is_dynamic
        objective = Objective(
            checked_pass(forward_pass, self.parts.state.models[of]),
            optimizer.trained,
            self.parts.metrics,
            self.parts.dtype,
            loss_scale=None if loss_scale is None else loss_scale.scale.read_value(),
            comm_dtype=trace.replicas.comm_dtype,
            keeps_rows=trace.keeps_rows,
            nan_tells=policy != "skip" and not is_dynamic,  # else a loss of NaN is skipped and nobody looks for a label
            points=self.parts.state.quantize.points if self.parts.state.quantize is not None else (),
        )
        result = batch_gradients(
            objective,
            batch,
            trace.replicas,
            trace.micro_batches,
            mode="xla" if "gradients" in trace.programs else "graph",
            has_collectives=self.parts.has_collectives,
        )
        trace.checks.add_gradients(result)
        trace.add_extremes(result.extremes)
        return result._replace(terms=of_model(result.terms, of), extremes=())

    def apply(self, gradients: Mapping[str, tf.Tensor], to: str = "model") -> None:
        """Clips gradients and applies them, unless a loss or gradient of this step so far is not finite.

        Args:
          gradients: {path: gradient} of that model's trained variables.
          to: the model, if `make_model` returns a dict.
        """
        trace, optimizer = self._tracing("apply"), self.parts.optimizer(to)
        if not isinstance(gradients, Mapping):
            raise UserError(
                f"tools.apply got a value of type {type(gradients).__name__}, not {{path: gradient}}. Write"
                " tools.apply(result.gradients) of result = tools.gradients(…)."
            )
        if gradients.keys() != optimizer.trained.keys():
            raise UserError(
                f"tools.apply got gradients of {', '.join(gradients)}, but '{to}' trains"
                f" {', '.join(optimizer.trained)}. Pass result.gradients of tools.gradients, with the same keys."
            )
        if isinstance(trace, DryRun):
            trace.gradients |= {path if to == "model" else f"{to}/{path}": value for path, value in gradients.items()}
            return
        trace.guard_own()
        update = functools.partial(
            apply_update,
            optimizer,
            clipping=self.parts.config.clip,
            replicas=trace.replicas,
            is_masked=trace.is_masked,
        )
        allowed = trace.checks.is_finite() & trace.allowed
        is_finite, trace.norms[to] = trace.program("update", update)(dict(gradients), allowed)
        trace.checks.add_finite(is_finite)

    def each(self, fn: Callable[[Any], Any], batch: Any) -> Any:
        """Returns fn(shard of the batch) of each replica; for `gradients`, `gather` or `all_reduce`."""

        def on_shard(replica: int, shard: Any) -> Any:
            with rng.at_example(replica * examples_of(shard)):  # draws as these examples do on one device
                return fn(shard)

        return self._tracing("each").replicas.run(on_shard, batch)

    def gather(self, batch: Any) -> Any:
        """Returns a nest of [shard, ...], as `each` returned it, as [batch, ...], the same on every replica."""
        return self._tracing("gather").replicas.gather(lambda replica, shard: shard, batch)

    def all_reduce(self, batch: Any) -> Any:
        """Returns the sum over replicas of a nest of tensors that `each` returned; on one device, the nest itself."""
        return self._tracing("all_reduce").replicas.all_reduce_sum(lambda replica, shard: shard, batch)

    def is_finite(self) -> tf.Tensor:
        """Returns a bool scalar: whether all losses and gradients of this step so far are finite."""
        return self._tracing("is_finite").checks.is_finite()

    @contextlib.contextmanager
    def tracing(self, trace: StepTrace) -> Iterator[None]:
        """While open, these tools belong to `trace`."""
        outer, self._trace = self._trace, trace
        try:
            yield
        finally:
            self._trace = outer

    def _tracing(self, name: str) -> StepTrace:
        if self._trace is None:
            raise UserError(
                f"tools.{name} is called outside of a step. Call it in the function that make_step returns."
            )
        return self._trace


def dry_run(
    tools: Tools, step: StepFunction, batch: Batch, programs: Sequence[str] = (), is_whole: bool = False
) -> Gradients:
    """Returns the terms, metrics and unclipped gradients of a step, and applies none; its own assignments stay.

    Args:
      batch: {name: [batch, ...]}, all of it, as a single device takes it.
      programs, is_whole: see `DryRun`.
    """
    trace = DryRun(tools.parts, programs, is_whole)
    with tools.tracing(trace):
        terms, metrics = trace.call(step, batch)
    return Gradients(dict(terms), dict(metrics), trace.gradients)


def standard_step(loss: Loss, tools: Tools) -> StepFunction:
    """Returns the step function of experiments without `make_step`: one forward and backward pass, one update."""

    def step(state: TrainState, batch: Batch) -> tuple[Terms, Mapping[str, tf.Tensor]]:
        result = tools.gradients(lambda micro_batch: loss(state.model, micro_batch, True), batch)
        tools.apply(result.gradients)
        return result.terms, result.metrics

    step.is_standard = True  # type: ignore[attr-defined]
    return step

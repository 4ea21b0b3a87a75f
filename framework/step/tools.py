"""What a step is made of, and the step that most experiments use.

    def make_step(cfg, tools):
        loss = make_loss(cfg)

        def step(state, batch):
            found = tools.gradients(lambda part: loss(state.model, part, True), batch)
            tools.apply(found.gradients)
            return found.terms, found.metrics

        return step

`gradients` and `apply` bring micro-batches, loss scale, clipping, norms and the finite check with them. A step in which
any loss or gradient was not finite is undone as a whole, whatever it changed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import paths, precision, rng
from framework.compile import jit
from framework.distribute.replicas import Replicas
from framework.errors import UserError, near
from framework.metrics import Metric
from framework.state import TrainState
from framework.step.gradients import Gradients, Loss, Terms, counted, examples_of, gradients_of, total
from framework.step.normalizers import Pass
from framework.step.penalties import is_penalty, of_model
from framework.step.update import Applied, apply, when
from framework.trace import guards

# step(state, batch) -> (terms, metric states)
Step = Callable[[TrainState, Mapping[str, tf.Tensor]], tuple[Terms, Mapping[str, tf.Tensor]]]


class Tools:
    """Stages of one step; used inside a step function, while it is traced.

    Call them in its own body: not inside a `tf.cond`, `tf.while_loop` or `tf.function` of yours.
    """

    def __init__(
        self,
        state: TrainState,
        metrics: Mapping[str, Metric],
        config: FrozenConfigDict,
        replicas: Replicas,
        has_collectives: bool = False,
    ) -> None:
        self._state, self._metrics, self._config = state, metrics, config
        self._replicas, self._has_collectives = replicas, has_collectives
        self._dtype = precision.master_dtype(config.train.precision)
        self._finite: list[tf.Tensor] = []
        self._violations: list[tf.Tensor] = []
        self._applied: dict[str, Applied] = {}
        self._programs: tuple[str, ...] = ()
        self._allowed = tf.constant(True)
        self._looked: dict[str, tf.Tensor] | None = None
        self._is_whole = False
        self._watch: guards.Watch | None = None

    def gradients(self, one_pass: Pass, batch: Mapping[str, tf.Tensor], of: str = "model") -> Gradients:
        """Gradients of the total of a pass's terms over the whole global batch; may be called several times a step.

        Args:
          one_pass: micro-batch -> (terms, outputs), as a loss returns them; outputs feed the metrics, {} leaves them
            alone. Penalties of the model are added here.
          batch: {name: [batch, ...]}.
          of: the model whose trained variables to differentiate by, where `make_model` returns a dict.

        Returns:
          terms, metric states, and {path: gradient}, which are unscaled. Penalties of one of several models have its
          name, so that terms of several calls can be put into one dict.
        """
        model, optimizer = self._state.models[self._known(of)], self._state.optimizers[of]

        loss_scale = self._state.loss_scale
        is_scaled = loss_scale is not None and loss_scale.is_dynamic
        found = gradients_of(
            counted(one_pass, model),
            batch,
            optimizer.trained,
            self._metrics,
            dtype=self._dtype,
            micro_batches=1 if self._is_whole else self._config.train.micro_batches,
            scale=None if loss_scale is None else loss_scale.scale.read_value(),
            replicas=self._replicas,
            mode="xla" if "gradients" in self._programs else "graph",
            has_collectives=self._has_collectives,
            # Then a step that is NaN ends the run, or goes back, and is looked at.
            nan_tells=self._config.train.on_nonfinite != "skip" and not is_scaled,
        )
        self._finite += [tf.math.is_finite(total(found.terms)), tf.equal(found.violations, 0)]
        self._violations.append(found.violations)
        return found._replace(terms=of_model(found.terms, of))

    def apply(self, gradients: Mapping[str, tf.Tensor], to: str = "model") -> None:
        """Clips gradients and applies them, unless something of this step so far was not finite.

        Args:
          gradients: {path: gradient} of that model's trained variables.
          to: the model, where `make_model` returns a dict.
        """
        optimizer = self._state.optimizers[self._known(to)]
        if gradients.keys() != optimizer.trained.keys():
            raise UserError(
                f"tools.apply got gradients of {', '.join(gradients)}, but '{to}' trains"
                f" {', '.join(optimizer.trained)}. Hand on what tools.gradients returned, with the same keys."
            )
        if self._looked is not None:
            self._looked |= {path if to == "model" else f"{to}/{path}": value for path, value in gradients.items()}
            return

        self._notice()

        def update(gradients: Mapping[str, tf.Tensor], allowed: tf.Tensor) -> Applied:
            return apply(optimizer, gradients, self._config.clip, allowed, self._replicas, self._is_masked())

        allowed = self.is_finite() & self._allowed
        applied = self._updating(update)(dict(gradients), allowed)
        self._finite.append(applied.is_finite)
        self._applied[to] = applied

    def each(self, fn: Callable[[Any], Any], batch: Any) -> Any:
        """fn(part of the batch), on the replica that holds the part; for `gradients`, `gather` or `all_reduce`."""
        return self._replicas.run(lambda index, part: _at_its_place(index, part, fn), batch)

    def gather(self, batch: Any) -> Any:
        """A nest of [part, ...], as `each` returned it, as [batch, ...], the same everywhere."""
        return self._replicas.gather(lambda index, part: part, batch)

    def all_reduce(self, batch: Any) -> Any:
        """The sum over replicas of a nest of tensors that `each` returned; on one device these are the sums already."""
        return self._replicas.all_reduce_sum(lambda index, part: part, batch)

    def is_finite(self) -> tf.Tensor:
        """Bool scalar: all losses and gradients of this step so far are."""
        return tf.reduce_all(tf.stack([tf.constant(True), *self._finite]))

    def violations(self) -> tf.Tensor:
        """How many guards of this step so far do not hold, scalar; see `guards.watched`."""
        return tf.add_n(self._violations) if self._violations else tf.zeros([], self._dtype)

    def norms(self) -> dict[str, tf.Tensor]:
        """{'gradient_norm': …} of this step's updates; with several models 'gradient_norm/generator', …."""
        zero = tf.zeros([], self._dtype)
        return {
            "gradient_norm" if name == "model" else f"gradient_norm/{name}": self._applied[name].gradient_norm
            if name in self._applied
            else zero
            for name in self._state.optimizers
        }

    def run(
        self,
        step: Step,
        batch: Mapping[str, tf.Tensor],
        rollback_variables: Sequence[tf.Variable],
        allowed: tf.Tensor,
        programs: Sequence[str] = (),
        violations: Sequence[tf.Tensor] = (),
    ) -> Any:
        """Runs a step as a whole or not at all.

        Args:
          rollback_variables: what is put back where the step does not count; `apply` keeps the weights itself.
          allowed: bool scalar; False for a step that is to be left out.
          programs: what of the step is an XLA program, see `compile.programs`.
          violations: of guards of the batch, which count as those of the step.

        Returns:
          what the step returned.
        """
        self._finite, self._applied, self._allowed, self._looked = [], {}, allowed, None
        self._violations = list(violations)
        self._finite += [tf.equal(found, 0) for found in violations]
        self._programs = tuple(programs)
        before = [(copy, copy.read_value()) for variable in rollback_variables for copy in paths.copies(variable)]
        returned = self._stepped(step, batch)
        state, is_good = self._state, self.is_finite() & allowed
        terms = [term for name, term in returned[0].items() if not is_penalty(name)]
        empty = sum(tf.cast(tf.equal(term.weight, 0), tf.int64) for term in terms)

        def keep() -> None:
            self._replicas.sync_mean(rollback_variables)
            if state.ema is not None and not self._is_masked():
                state.ema.update(state.updates.read_value())

        def put_back() -> None:
            for copy, value in before:
                copy.assign(value)

        # Arithmetic where there is a choice: a conditional takes time, whether compiled or not.
        counted = tf.cast(is_good, tf.int64)
        state.updates.assign_add(counted)
        state.empty_terms.assign_add(counted * empty)
        if state.ema is not None and self._is_masked():
            self._updating(state.ema.update)(state.updates.read_value(), is_good)
        if rollback_variables or (state.ema is not None and not self._is_masked()):
            when(is_good, keep, put_back)
        return returned

    def _is_masked(self) -> bool:
        """Whether weights are written by XLA programs, where a conditional copies what it may change."""
        return self._replicas.strategy is None and bool({"whole", "update"} & set(self._programs))

    def _updating(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, which writes weights or averages, as a program of its own where updates are to be."""
        return jit(fn) if "update" in self._programs else fn

    def dry_run(
        self, step: Step, batch: Mapping[str, tf.Tensor], programs: Sequence[str] = (), is_whole: bool = False
    ) -> Gradients:
        """What a step would report and apply; `apply` does nothing. What the step itself assigns stays assigned.

        Args:
          batch: {name: [batch, ...]}, the whole of it, which is looked at as by a single device.
          programs: see `run`.
          is_whole: in one piece, whatever the number of micro-batches.
        """
        self._finite, self._applied, self._looked, self._programs = [], {}, {}, tuple(programs)
        self._violations = []
        replicas, self._replicas = self._replicas, self._replicas.redundant()
        self._is_whole = is_whole
        try:
            terms, metrics = self._stepped(step, batch)
        finally:
            self._replicas, self._is_whole = replicas, False
        return Gradients(dict(terms), dict(metrics), self._looked)

    def _stepped(self, step: Step, batch: Mapping[str, tf.Tensor]) -> tuple[Terms, Mapping[str, tf.Tensor]]:
        """What a step returns, whose own operations are watched beside those of its losses."""
        if getattr(step, "is_standard", False):  # which does nothing else
            return self._checked(step(self._state, batch))
        with guards.watched(batch) as self._watch:
            returned = self._checked(step(self._state, batch))
            self._notice()
        self._watch = None
        return returned

    def _notice(self) -> None:
        """Counts what does not hold of an experiment's own step so far."""
        if self._watch is None:
            return
        known = len(self._watch.guards)
        self._watch.read()
        if len(self._watch.guards) > known:
            found = self._watch.violations(self._dtype, known)
            self._finite.append(tf.equal(found, 0))
            self._violations.append(found)

    def _checked(self, returned: Any) -> tuple[Terms, Mapping[str, tf.Tensor]]:
        """What a step returned; metrics that it leaves out have seen no examples."""
        if not isinstance(returned, tuple) or len(returned) != 2 or not all(isinstance(x, Mapping) for x in returned):
            raise UserError(
                f"the step returned {type(returned).__name__}. It must return (terms, metric states), e.g."
                " `return found.terms, found.metrics` of `found = tools.gradients(…)`."
            )
        terms, metrics = returned
        for name in metrics.keys() - self._metrics.keys():
            raise UserError(
                f"the step returned a metric '{name}' that make_metrics does not have.{near(name, self._metrics)}"
            )
        empty = {name: tf.zeros([len(metric.empty())], self._dtype) for name, metric in self._metrics.items()}
        return terms, {**empty, **metrics}

    def _known(self, name: str) -> str:
        names = self._state.optimizers
        if name not in names:
            raise UserError(
                f"the step names a model '{name}', but those with an optimizer are {', '.join(names)}."
                f"{near(name, names)}"
            )
        return name


def _at_its_place(index: int, part: Any, fn: Callable[[Any], Any]) -> Any:
    """fn(part), which draws as examples of its place in the global batch do."""
    with rng.at_example(index * examples_of(part)):
        return fn(part)


def standard_step(loss: Loss, tools: Tools) -> Step:
    """One pass, one update: what an experiment without `make_step` runs."""

    def step(state: TrainState, batch: Mapping[str, tf.Tensor]) -> tuple[Terms, Mapping[str, tf.Tensor]]:
        found = tools.gradients(lambda part: loss(state.model, part, True), batch)
        tools.apply(found.gradients)
        return found.terms, found.metrics

    step.is_standard = True  # type: ignore[attr-defined]
    return step

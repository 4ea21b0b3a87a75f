"""What a loss gives, found by tracing it once before anything runs; this also creates the model's variables."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import logging
from ml_collections import FrozenConfigDict

from framework import paths, precision, rng
from framework.data.batches import Batches, epoch_steps
from framework.data.fields import check_batch
from framework.errors import UserError, near
from framework.experiment.returns import shown
from framework.losses import Term
from framework.metrics import Metric
from framework.state import TrainState
from framework.step import coverage
from framework.step.counted import numbers_of, refuse_counted
from framework.step.forward import Loss, check_batch_dependent, forward
from framework.step.normalizers import check_weights, refuse_constant
from framework.step.parts import StepFunction
from framework.step.penalties import is_penalty, refuse_parts, refuse_weights, uneven
from framework.step.tools import Tools, dry_run
from framework.trace import guards
from framework.trace.assigned import assigned


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
      terms: names of the loss's terms, the penalty included.
      batch, outputs: {name: TensorSpec}.
      graph: of the forward pass.
      assigned_variables: variables that the forward pass may assign to, such as moving averages.
      has_collectives: the forward pass communicates between replicas: a layer, the model or the loss has an attribute
        `needs_collectives`, or is a synchronised BatchNormalization.
      data: graph of a batch and its transform.
      unread: operations that XLA would pass over in silence, see `guards.Watch`.
    """

    terms: tuple[str, ...]
    batch: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]
    graph: tf.Graph
    assigned_variables: tuple[tf.Variable, ...]
    has_collectives: bool
    data: tf.Graph | None = None
    unread: tuple[str, ...] = ()


def probe(
    loss: Loss,
    model: Any,
    metrics: Mapping[str, Metric],
    batches: Batches,
    config: FrozenConfigDict,
    replicas: int,
) -> Probe:
    """Traces the forward pass and the metrics of one training batch; nothing is run.

    Raises:
      UserError: a loss, metric or random draw that the step cannot take.
    """
    terms: dict[str, Any] = {}

    def first() -> Any:
        with scopes(config.train.precision, 0, tf.constant(0, tf.int64)), guards.watched({}):
            return dict(batches.at(0))

    def trace(batch: Any) -> Any:
        batch = NamedBatch(batch)
        with scopes(config.train.precision, 0, tf.constant(0, tf.int64)), guards.watched(batch) as watch:
            found, outputs = forward(loss, model, batch, training=True)
            watch.batch |= outputs
            for name, metric in metrics.items():
                _check_metric(name, metric, metric.update(_Outputs(outputs), batch))
        # A weight may be a constant, which is a tensor of no graph.
        terms.update({name: type(term)(*map(tf.identity, term)) for name, term in found.items()})
        return dict(outputs)

    data = tf.function(first, autograph=False).get_concrete_function()
    batch = {name: tf.TensorSpec(spec.shape, spec.dtype) for name, spec in data.structured_outputs.items()}
    check_batch(batch, batches.batch_size)
    numbers = numbers_of(loss, model, metrics)
    with _explained(batch, config):
        function = tf.function(trace, autograph=False).get_concrete_function(batch)

    def again() -> Any:
        return tf.function(trace, autograph=False).get_concrete_function(batch).graph

    refuse_counted(numbers, lambda: numbers_of(loss, model, metrics), again)
    _check_called(model)
    check_draws(data.graph, config)
    check_draws(function.graph, config)
    check_weights(function.graph, {name: term.weight for name, term in terms.items()})
    check_terms(terms, function.graph.inputs[: len(batch)])
    has_collectives = _has_collectives(loss, model)
    check_batch_dependent(terms, config.train.micro_batches, 1 if has_collectives else replicas)
    _check_batch(batch, config.train.micro_batches, replicas)
    if has_collectives:
        _check_collectives(config, replicas)
    if replicas > 1 and not hasattr(batches, "part"):
        raise UserError(
            f"batches that have a state live on one device, but there are {replicas} replicas."
            " Use --config.runtime.strategy=one_device."
        )
    if config.train.micro_batches > 1:
        _check_once_an_update(function.graph, model, config.train.micro_batches)
    unread = [*guards.unread_of(data.graph if batches.is_resident else None), *guards.unread_of(function.graph)]
    if config.train.compile in ("xla", "xla_gradients"):
        guards.refuse_unread(unread)
    moved = assigned(function.graph, model)
    return Probe(
        tuple(terms),
        batch,
        function.structured_outputs,
        function.graph,
        moved,
        has_collectives,
        data.graph,
        tuple(unread),
    )


def _check_called(model: Any) -> None:
    """Raises UserError if a model waits for its first input still, and so has no variables."""
    for name, part in paths.models(model).items():
        try:
            _ = part.trainable_variables
        except ValueError as error:
            which = "the model" if part is model else f"the model '{name}'"
            raise UserError(
                f"{which} is never called by make_loss, and so has no variables. Call it there, or begin it with"
                " keras.Input(shape)."
            ) from error


def _has_collectives(loss: Loss, model: Any) -> bool:
    parts = [loss, *paths.objects(model).values()]
    return any(getattr(part, "needs_collectives", False) or getattr(part, "synchronized", False) for part in parts)


def _check_collectives(config: FrozenConfigDict, replicas: int) -> None:
    if replicas == 1:
        return
    if config.train.compile in ("xla", "xla_gradients"):
        raise UserError(
            f"train.compile='{config.train.compile}': the forward pass communicates between replicas (synchronised"
            " BatchNorm, or needs_collectives), which XLA cannot compile. Use --config.train.compile=graph."
        )
    if config.train.micro_batches > 1:
        raise UserError(
            f"train.micro_batches={config.train.micro_batches}: the forward pass communicates between replicas"
            " (synchronised BatchNorm, or needs_collectives), which a loop over micro-batches cannot."
            " Use --config.train.micro_batches=1."
        )


def probe_step(
    step: StepFunction, tools: Tools, batch: Mapping[str, tf.TensorSpec], config: FrozenConfigDict, state: TrainState
) -> tuple[str, ...]:
    """Traces an experiment's own step, which is not run; returns the names of its terms.

    Raises:
      UserError: a draw that a resumed run would not draw again, a variable that no checkpoint would have, a term that
        is no weighted sum of the examples, or what the step returns cannot be reported.
    """
    terms: list[str] = []

    def trace(batch: Any) -> None:
        with scopes(config.train.precision, 0, tf.constant(0, tf.int64)):
            found = dry_run(tools, step, batch).terms
        check_terms(found, batch.values())
        terms.extend(found)

    function = tf.function(trace, autograph=False).get_concrete_function(batch)
    check_draws(function.graph, config)
    coverage.check(function.graph, state)
    return tuple(terms)


def check_covered(found: Probe, state: TrainState, batches: Batches) -> dict[str, str]:
    """Compares what the probe's traces read and assign with the state; returns their `coverage.constants`.

    Raises:
      UserError: a variable or table that no checkpoint has.
    """
    coverage.check(found.graph, state)
    steers = coverage.constants(found.graph, state, "the loss")
    if found.data is not None:
        coverage.check_data(found.data, state, "the transform of the training data")
        steers |= coverage.constants(found.data, state, "the transform of the training data", batches)
    return steers


def check_penalties(model: Any, batches: Batches, config: FrozenConfigDict, replicas: int) -> None:
    """Looks for penalties that micro-batches, replicas, padding or weights would make wrong, once steps are traced.

    A penalty that is right for rows of weight 1 alone needs a look at the weights: of the first batch, and of the last
    of an epoch, which may be padded. Those of other batches make it NaN.

    Raises:
      UserError: there is one.
    """
    refuse_parts(model, config.train.micro_batches, replicas)
    if uneven(model) and not isinstance(batches, tf.Module):  # whose batches move on when they are looked at
        for step in {0, epoch_steps(batches) - 1}:
            refuse_weights(model, batches.at(step)["weight"], f"the training batch of step {step}")


def check_terms(terms: Mapping[str, Term], batch: Iterable[tf.Tensor]) -> None:
    """Raises UserError if a term, but of a layer, has a constant weight and a sum over the examples of `batch`."""
    own = {name: (term.sum, term.weight) for name, term in terms.items() if not is_penalty(name)}
    if not all(tf.is_symbolic_tensor(part) for term in own.values() for part in term):
        own = {name: (tf.identity(total), tf.identity(weight)) for name, (total, weight) in own.items()}
    refuse_constant(own, {tensor.op for tensor in batch})


def scopes(precision_name: str, key: Any, step: tf.Tensor) -> Any:
    """The precision and randomness scopes of one step, as one context."""
    stack = contextlib.ExitStack()
    stack.enter_context(precision.scope(precision_name))
    stack.enter_context(rng.scope(key, step))
    return stack


class NamedBatch(dict):
    """A batch in which a slip of the pen is found."""

    def __missing__(self, name: Any) -> Any:
        raise UserError(f"there is no '{name}' in a batch, which has {', '.join(self)}.{near(str(name), self)}")


class _Outputs(dict):
    """The outputs of a loss, likewise."""

    def __missing__(self, name: Any) -> Any:
        has = f"has {', '.join(self)}.{near(str(name), self)}" if self else "is empty."
        raise UserError(
            f"a metric reads '{name}' of the outputs that the loss returns, which {has}"
            f" Return e.g. terms, {{'{name}': …}}, or leave the metric out of make_metrics."
        )


@contextlib.contextmanager
def _explained(batch: Mapping[str, tf.TensorSpec], config: FrozenConfigDict) -> Iterator[None]:
    """An error of types becomes one that names the entries of NumPy's favourite type, where there are any."""
    try:
        yield
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        wide = [name for name, spec in batch.items() if spec.dtype == tf.float64]
        if not wide or config.train.precision == "float64" or not re.search("float64|double", str(error)):
            raise
        raise UserError(
            f"{str(error).splitlines()[0]} Of the batch, {', '.join(wide)} {'is' if len(wide) == 1 else 'are'} float64,"
            f" and a run in {config.train.precision} computes in float32: write e.g. array.astype(np.float32)."
        ) from error


def _check_metric(name: str, metric: Metric, state: Any) -> None:
    if np.ndim(metric.empty()) != 1:
        raise UserError(
            f"metric '{name}': empty returned {shown(metric.empty())}. It must return the state of no examples, a"
            " vector, e.g. np.zeros(2)."
        )
    if not tf.is_tensor(state):
        raise UserError(
            f"metric '{name}': update returned {shown(state)}. It must return the state of a batch, a floating tensor"
            f" of {len(metric.empty())} numbers, e.g. tf.stack([sum, weight])."
        )
    if state.shape.as_list() != [len(metric.empty())]:
        raise UserError(
            f"metric '{name}': update returned shape {state.shape}, but empty() has {len(metric.empty())} numbers."
            " A state is a vector of fixed length, e.g. tf.stack([sum, weight])."
        )


def _check_batch(batch: Mapping[str, tf.TensorSpec], micro_batches: int, replicas: int) -> None:
    """What is cut into micro-batches, or spread over replicas, must have the batch first."""
    size = batch["weight"].shape[0]
    for name, spec in batch.items():
        if micro_batches * replicas > 1 and (spec.shape.rank in (None, 0) or spec.shape[0] != size):
            cut = f"train.micro_batches={micro_batches}" if micro_batches > 1 else f"{replicas} replicas"
            raise UserError(
                f"{cut}: '{name}' of the batch has shape {spec.shape}, but only what has"
                f" the {size} examples first can be cut. Keep it out of the batch, or use one micro-batch."
            )


def check_frozen(graph: Any, frozen: Mapping[str, tf.Variable]) -> None:
    """Raises UserError if a forward pass assigns to one of {path: variable} that are frozen."""
    for path in coverage.assigned(graph, frozen):
        raise UserError(
            f"'{path}' is frozen by optimizer.groups, but the forward pass assigns to it: its layer does so in training"
            " whether it is trained or not. Call the layer with training=False, or take it out of the frozen group."
        )


def _check_once_an_update(graph: Any, model: Any, micro_batches: int) -> None:
    """Raises UserError if the forward pass moves a variable by anything but BatchNormalization's moving averages.

    Those move once a micro-batch and are documented; what else a layer moves in a call, such as the power iteration of
    SpectralNormalization, would make of micro-batches another training.
    """
    layers = paths.objects(model)
    for path in coverage.assigned(graph, paths.variables(model)):
        owner = next(
            (layers[place] for place in paths.above(path) if isinstance(layers.get(place), keras.layers.Layer)), None
        )
        if not any("BatchNormalization" in kind.__name__ for kind in type(owner).__mro__):
            raise UserError(
                f"train.micro_batches={micro_batches}: each call of {type(owner).__name__} moves '{path}', which would"
                f" happen {micro_batches} times an update instead of once. Use --config.train.micro_batches=1."
            )


# Ops that draw from a generator of the process, or of the op, which no checkpoint holds.
_STATEFUL_DRAW = re.compile(
    r"(Random(Uniform|UniformInt|StandardNormal|Gamma|GammaGrad|Poisson|PoissonV2|Shuffle|Crop)|TruncatedNormal"
    r"|ParameterizedTruncatedNormal|Multinomial|RngReadAndSkip|RngSkip|\w+CandidateSampler|SampleDistortedBoundingBox(V2)?"
    r"|Stateful(Uniform(FullInt|Int)?|StandardNormal(V2)?|TruncatedNormal|RandomBinomial))"
)


def check_draws(graph: tf.Graph, config: FrozenConfigDict) -> None:
    """Looks for draws that a resumed run would not repeat, in a trace and all functions that it calls.

    What Python code draws inside `tf.numpy_function` cannot be seen.

    Raises:
      UserError: there is one, and `runtime.deterministic` is set; else it is logged.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    for node in nodes:
        if _STATEFUL_DRAW.fullmatch(node.op):
            what = f"'{node.name}' draws random numbers ({node.op}) that a resumed run would not draw again"
            if config.runtime.deterministic:
                raise UserError(
                    f"{what}. Use framework.layers.Dropout or framework.rng, or --config.runtime.deterministic=False."
                )
            logging.warning("%s: if this run is interrupted, it will not end in the same bits", what)
            return

"""Traces a loss, or an experiment's own step, once before anything runs; this also creates the model's variables.

found = probe(loss, model, metrics, batches, config, replicas=1)
found.terms, found.outputs                  # ('cross_entropy', 'penalty'), {'logits': TensorSpec(…)}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework.data.batches import Batches
from framework.data.fields import check_batch
from framework.errors import UserError
from framework.layers import keras_draws
from framework.metrics import Metric
from framework.state import TrainState
from framework.step import coverage
from framework.step.counted import check_counted, numbers_of
from framework.step.draws import check_draws
from framework.step.forward import Loss, check_batch_dependent, forward
from framework.step.layer_calls import LayerCall, recorded
from framework.step.normalizers import check_weights
from framework.step.parts import StepFunction
from framework.step.probe_checks import (
    NamedBatch,
    NamedOutputs,
    check_called,
    check_collectives,
    check_metric,
    check_mixed,
    check_moved,
    check_pieces,
    check_terms,
    has_collectives,
    types_explained,
)
from framework.step.scopes import scopes
from framework.step.tools import Tools, dry_run
from framework.trace import guards
from framework.trace.activations import refuse_second_softmax
from framework.trace.assigned import assigned
from framework.trace.repeated_draws import refuse_repeated_draws

_STEP = tf.TensorSpec([], tf.int64)


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a trace of the loss shows.

    Attributes:
      terms: names of the loss's terms, penalties included.
      batch, outputs: {name: TensorSpec}.
      graph: of the forward pass.
      assigned_variables: variables that the forward pass may assign to, such as moving averages.
      has_collectives: the forward pass communicates between replicas: a layer, the model or the loss has an attribute
        `needs_collectives`, or is a synchronised BatchNormalization.
      data: graph of a batch and its transform.
      unread: operations that XLA would pass over in silence, see `guards.Watch`.
      calls: the calls of layers in the forward pass.
    """

    terms: tuple[str, ...]
    batch: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]
    graph: tf.Graph
    assigned_variables: tuple[tf.Variable, ...]
    has_collectives: bool
    data: tf.Graph | None = None
    unread: tuple[str, ...] = ()
    calls: tuple[LayerCall, ...] = ()


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
      UserError: a loss, metric, model or random draw that the step cannot take.
    """
    terms: dict[str, Any] = {}

    def first_batch() -> Any:
        with scopes(config.train.precision, 0, tf.constant(0, tf.int64)), guards.watched({}):
            return dict(batches.at(0))

    def forward_pass(batch: Any, step: tf.Tensor) -> Any:
        batch = NamedBatch(batch)
        with scopes(config.train.precision, 0, step), guards.watched(batch) as watch:
            returned, outputs = forward(loss, model, batch, training=True)
            watch.batch |= outputs
            for name, metric in metrics.items():
                check_metric(name, metric, metric.update(NamedOutputs(outputs), batch))
        # A weight may be a constant, which is a tensor of no graph.
        terms.update({name: type(term)(*map(tf.identity, term)) for name, term in returned.items()})
        return dict(outputs)

    data = tf.function(first_batch, autograph=False).get_concrete_function()
    batch = {name: tf.TensorSpec(spec.shape, spec.dtype) for name, spec in data.structured_outputs.items()}
    check_batch(batch, batches.batch_size)
    numbers = numbers_of(loss, model, metrics)
    with types_explained(batch, config), recorded() as calls:
        function = tf.function(forward_pass, autograph=False).get_concrete_function(batch, _STEP)

    def trace_again() -> Any:
        return tf.function(forward_pass, autograph=False).get_concrete_function(batch, _STEP).graph

    check_counted(numbers, lambda: numbers_of(loss, model, metrics), trace_again)
    check_called(model)
    check_draws(data.graph, config)
    keras_draws.refuse_rows(model)
    check_draws(function.graph, config, model)
    refuse_repeated_draws("the loss", function.graph)
    refuse_second_softmax(function.graph)
    check_weights(function.graph, {name: term.weight for name, term in terms.items()})
    check_terms(terms, function.graph.inputs[: len(batch)])
    communicates = has_collectives(loss, model)
    check_batch_dependent(terms, config.train.micro_batches, 1 if communicates else replicas)
    check_pieces(batch, config.train.micro_batches, replicas)
    if communicates:
        check_collectives(config, replicas)
    if replicas > 1 and not hasattr(batches, "shard"):
        raise UserError(
            f"batches that have a state live on one device, but there are {replicas} replicas."
            " Use --config.runtime.strategy=one_device."
        )
    if config.train.micro_batches > 1:
        check_moved(function.graph, model, config.train.micro_batches)
    unread = [*guards.unread_of(data.graph if batches.is_resident else None), *guards.unread_of(function.graph)]
    if config.train.compile in ("xla", "xla_gradients"):
        guards.refuse_unread(unread)
    return Probe(
        terms=tuple(terms),
        batch=batch,
        outputs=function.structured_outputs,
        graph=function.graph,
        assigned_variables=assigned(function.graph, model),
        has_collectives=communicates,
        data=data.graph,
        unread=tuple(unread),
        calls=tuple(calls),
    )


def probe_step(
    step: StepFunction, tools: Tools, batch: Mapping[str, tf.TensorSpec], config: FrozenConfigDict, state: TrainState
) -> tuple[str, ...]:
    """Traces an experiment's own step, which is not run; returns the names of its terms.

    Raises:
      UserError: a draw that a resumed run would not draw again, a variable that no checkpoint would have, a term that
        is no weighted sum of the examples, or a returned value that cannot be reported.
    """
    terms: list[str] = []

    def trace(batch: Any, step_counter: tf.Tensor) -> None:
        with scopes(config.train.precision, 0, step_counter):
            returned = dry_run(tools, step, batch).terms
        check_terms(returned, batch.values())
        terms.extend(returned)

    function = tf.function(trace, autograph=False).get_concrete_function(batch, _STEP)
    check_mixed(batch, function.graph, "the step")
    check_draws(function.graph, config, state)
    refuse_repeated_draws("the step", function.graph)
    refuse_second_softmax(function.graph)
    coverage.check(function.graph, state)
    return tuple(terms)


def check_covered(probe: Probe, state: TrainState, batches: Batches) -> dict[str, str]:
    """Compares what the probe's traces read and assign with the state; returns their `coverage.constants`.

    Raises:
      UserError: a variable or table that no checkpoint has.
    """
    coverage.check(probe.graph, state)
    hashes = coverage.constants(probe.graph, state, "the loss")
    if probe.data is not None:
        coverage.check_data(probe.data, state, "the transform of the training data")
        hashes |= coverage.constants(probe.data, state, "the transform of the training data", batches)
    return hashes

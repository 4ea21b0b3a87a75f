"""What a step cannot take of a loss, metric, model or batch, found in a trace before anything runs."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import FrozenConfigDict

from framework import paths
from framework.errors import UserError, near
from framework.experiment.returns import shown
from framework.losses import Term
from framework.metrics import Metric
from framework.step import coverage
from framework.step.normalizers import check_not_constant
from framework.step.penalties import is_penalty


class NamedBatch(dict):
    """A batch that explains a wrong name in one line."""

    def __missing__(self, name: Any) -> Any:
        raise UserError(f"there is no '{name}' in a batch, which has {', '.join(self)}.{near(str(name), self)}")


class NamedOutputs(dict):
    """The outputs of a loss, with the same for a metric that reads them."""

    def __missing__(self, name: Any) -> Any:
        has = f"has {', '.join(self)}.{near(str(name), self)}" if self else "is empty."
        raise UserError(
            f"a metric reads '{name}' of the outputs that the loss returns, which {has}"
            f" Return e.g. terms, {{'{name}': …}}, or leave the metric out of make_metrics."
        )


@contextlib.contextmanager
def types_explained(batch: Mapping[str, tf.TensorSpec], config: FrozenConfigDict) -> Iterator[None]:
    """Turns an error of types into one that names the float64 fields of the batch, the default type of NumPy."""
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


def check_metric(name: str, metric: Metric, state: Any) -> None:
    """Raises UserError if the state of a metric is no vector of the length of its empty one."""
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


def check_mixed(batch: Mapping[str, tf.TensorSpec], graph: tf.Graph, what: str) -> None:
    """Raises UserError if labels are mixed, and the trace uses the first of each pair alone.

    Args:
      batch: the specs of the batch, the first inputs of the graph.
      graph: the trace of the loss or the step.
      what: its name, for the message.
    """
    labels = [name for name in batch if f"{name}_2" in batch]
    inputs = dict(zip(sorted(batch), graph.inputs, strict=False))
    if labels and "mix" in batch and not inputs["mix"].consumers():
        raise UserError(
            f"{what} does not read 'mix' of the batch, the weights of '{labels[0]}' and '{labels[0]}_2' that MixUp and"
            " CutMix make: it would train on mixed examples with the first label alone. Write"
            " losses.mixed(losses.sparse_cross_entropy, logits, batch)."
        )


def check_pieces(batch: Mapping[str, tf.TensorSpec], micro_batches: int, replicas: int) -> None:
    """Raises UserError if a batch is cut into micro-batches or shards, and a field does not have the examples first."""
    size = batch["weight"].shape[0]
    for name, spec in batch.items():
        if micro_batches * replicas > 1 and (spec.shape.rank in (None, 0) or spec.shape[0] != size):
            cut = f"train.micro_batches={micro_batches}" if micro_batches > 1 else f"{replicas} replicas"
            raise UserError(
                f"{cut}: '{name}' of the batch has shape {spec.shape}, but only what has"
                f" the {size} examples first can be cut. Keep it out of the batch, or use one micro-batch."
            )


def check_called(model: Any) -> None:
    """Raises UserError if a model has no variables, because nothing has called it."""
    for name, each in paths.models(model).items():
        try:
            _ = each.trainable_variables
        except ValueError as error:
            which = "the model" if each is model else f"the model '{name}'"
            raise UserError(
                f"{which} is never called by make_loss, and so has no variables. Call it there, or begin it with"
                " keras.Input(shape)."
            ) from error


def has_collectives(loss: Any, model: Any) -> bool:
    """Returns whether the forward pass communicates between replicas."""
    objects = [loss, *paths.objects(model).values()]
    return any(getattr(each, "needs_collectives", False) or getattr(each, "synchronized", False) for each in objects)


def check_collectives(config: FrozenConfigDict, replicas: int) -> None:
    """Raises UserError if a forward pass that communicates between replicas would be compiled by XLA or looped over."""
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


def check_terms(terms: Mapping[str, Term], batch: Iterable[tf.Tensor]) -> None:
    """Raises UserError if a term of the loss has a constant weight and a sum over the examples of `batch`."""
    own = {name: (term.sum, term.weight) for name, term in terms.items() if not is_penalty(name)}
    if not all(tf.is_symbolic_tensor(number) for term in own.values() for number in term):
        own = {name: (tf.identity(total), tf.identity(weight)) for name, (total, weight) in own.items()}
    check_not_constant(own, {tensor.op for tensor in batch})


def check_frozen(graph: Any, frozen: Mapping[str, tf.Variable]) -> None:
    """Raises UserError if a forward pass assigns to one of {path: variable} that are frozen."""
    for path in coverage.assigned(graph, frozen):
        raise UserError(
            f"'{path}' is frozen by optimizer.groups, but the forward pass assigns to it: its layer does so in training"
            " whether it is trained or not. Call the layer with training=False, or take it out of the frozen group."
        )


def check_moved(graph: Any, model: Any, micro_batches: int) -> None:
    """Raises UserError if the forward pass changes a variable other than the moving averages of BatchNormalization.

    Moving averages move once a micro-batch, as documented. With any other variable that a call changes, such as the
    power iteration of SpectralNormalization, micro-batches would train something else than one batch does.
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

"""Differentiates the total loss of micro-batches and adds the gradients up: the only training tape of the framework.

    objective = Objective(forward_pass, variables, metrics, tf.float32)
    sums = accumulate(objective, micro_batches, normalizers)           # of one replica's shard
    unscale(objective, sums).gradients['dense/kernel']

`step.batch_gradients` calls these in order. Variables have names, so that an error says which one the loss leaves out.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from framework.compile import is_in_xla
from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.losses import Term
from framework.metrics import Metric
from framework.metrics.base import cast_state, empty_states
from framework.optim import observing
from framework.step.forward import Batch, ForwardPass, check_batch_dependent, total
from framework.step.micro_batches import MicroBatches, add_up
from framework.step.normalizers import term_normalizers
from framework.step.penalties import is_penalty
from framework.trace import guards

# {term: its weight over the global batch}
Normalizers = Mapping[str, tf.Tensor]
# Normalizers; or a function of the weights of a shard that returns them; or None if the shard is the whole batch
Normalizing = Normalizers | Callable[[Normalizers], Normalizers] | None


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is differentiated by which variables.

    Attributes:
      forward_pass: batch -> (terms, outputs).
      variables: {path: variable}.
      metrics: {name: metric}, computed from the outputs if there are any.
      dtype: of term sums and metric states; states that are summed on the device are float64.
      loss_scale: scalar that the loss is multiplied by; None for 1.
      comm_dtype: dtype in which gradients travel between replicas; None for their own.
      keeps_rows: gradients of tables stay the rows that were looked up, each row once (tf.IndexedSlices), instead of
        being as large as the table; of one micro-batch on one replica.
      nan_tells: whether a label that makes the loss NaN need not be counted as a violation too.
      points: of the model, whose activations are observed, see `Quantizer.points`.
    """

    forward_pass: ForwardPass
    variables: Mapping[str, tf.Variable]
    metrics: Mapping[str, Metric]
    dtype: tf.DType
    loss_scale: tf.Tensor | None = None
    comm_dtype: tf.DType | None = None
    keeps_rows: bool = False
    nan_tells: bool = False
    points: Sequence[str] = ()


class Gradients(NamedTuple):
    """What a forward and backward pass gives: sums over the examples that it saw, and extremes.

    Attributes:
      terms: {name: Term}, sums and weights.
      metrics: {name: state}; zeros if the forward pass has no outputs.
      gradients: {path: tensor} of the total of the terms.
      violations: scalar; how many guards do not hold, see `guards.watched`. With any, the numbers mean nothing.
      extremes: [2 * points], of the activations, see `Observer.extremes`; () without points. On several replicas,
        before their sums, it is [replicas, 2 * points]: those of each replica in its row, else 0.
    """

    terms: dict[str, Term]
    metrics: dict[str, tf.Tensor]
    gradients: dict[str, tf.Tensor]
    violations: Any = 0.0
    extremes: Any = ()


def global_normalizers(
    forward_pass: ForwardPass, batch: Batch, cut: Callable[[int, Batch], MicroBatches], count: int, replicas: Replicas
) -> Normalizers | None:
    """Returns the weight of each loss term over all micro-batches and replicas; None if the batch is in one piece.

    Weights are functions of the batch alone, so they are computed without a forward pass.

    Args:
      cut: (replica, shard) -> its micro-batches.
      count: micro-batches of each shard.

    Raises:
      UserError: a term that cannot be computed from pieces of a batch.
    """
    if count * replicas.count == 1:
        return None

    def checked(micro_batch: Batch) -> Any:
        terms, outputs = forward_pass(micro_batch)
        check_batch_dependent(terms, count, replicas.count)
        return terms, outputs

    return replicas.all_reduce_sum(lambda replica, shard: _weights(checked, cut(replica, shard)), batch)


def all_reduce_weights(weights: Normalizers) -> Normalizers:
    """Returns the normalizers of terms whose weights are `weights` on this replica; called inside a replica."""
    return tf.distribute.get_replica_context().all_reduce("SUM", weights)


def accumulate(objective: Objective, micro_batches: MicroBatches, normalizers: Normalizing) -> Gradients:
    """Returns the sums over the micro-batches of a shard; several run in a compiled loop, one after the other."""

    def one(micro_batch: Batch) -> Gradients:
        return _differentiate(objective, micro_batch, normalizers)

    if not isinstance(normalizers, Mapping) or micro_batches.count == 1:
        sums = micro_batches.at(0, one)
    else:
        objective = dataclasses.replace(objective, keeps_rows=False)  # rows of several micro-batches do not add up
        start = _zeros(objective, normalizers)
        sums = add_up(lambda index: micro_batches.at(index, one), 0, micro_batches.count, start, _added)
    if objective.comm_dtype is None:
        return sums
    return sums._replace(gradients={path: tf.cast(g, objective.comm_dtype) for path, g in sums.gradients.items()})


def in_row(sums: Gradients, replica: int, replicas: int) -> Gradients:
    """Returns `sums` with the extremes in the row of a replica, so that a sum over replicas keeps those of each."""
    if replicas == 1 or not tf.is_tensor(sums.extremes):
        return sums
    rows = [sums.extremes if row == replica else tf.zeros_like(sums.extremes) for row in range(replicas)]
    return sums._replace(extremes=tf.stack(rows))


def over_rows(sums: Gradients) -> Gradients:
    """Returns `sums` with the extremes of all replicas."""
    if not tf.is_tensor(sums.extremes) or sums.extremes.shape.rank == 1:
        return sums
    return sums._replace(extremes=tf.reduce_max(sums.extremes, 0))


def unscale(objective: Objective, sums: Gradients) -> Gradients:
    """Returns `sums` with gradients in the dtypes of their variables, divided by the loss scale."""
    gradients = {path: tf.cast(g, objective.variables[path].dtype) for path, g in sums.gradients.items()}
    if objective.loss_scale is not None:
        gradients = {path: g / tf.cast(objective.loss_scale, g.dtype) for path, g in gradients.items()}
    return sums._replace(gradients=gradients)


def rows_of(gradient: Any) -> tf.Tensor:
    """Returns the numbers of a gradient: those of its rows if it is sparse."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def with_rows(gradient: Any, values: tf.Tensor) -> Any:
    """Returns a gradient like `gradient` whose numbers are `values`."""
    if not isinstance(gradient, tf.IndexedSlices):
        return values
    return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)


def _weights(forward_pass: ForwardPass, micro_batches: MicroBatches) -> dict[str, tf.Tensor]:
    """Returns {term: its weight over all micro-batches}, without a forward pass."""
    names: list[str] = []

    def named(index: tf.Tensor) -> Any:
        terms, outputs = micro_batches.at(index, forward_pass)
        names.extend(name for name in terms if not is_penalty(name))
        return terms, outputs

    examples = tf.nest.flatten(dict(micro_batches.batch))
    weights = term_normalizers(named, tf.TensorSpec([], tf.int32), of_pieces=names, examples=examples)
    return add_up(weights, 1, micro_batches.count, weights(tf.constant(0)))


def _differentiate(objective: Objective, batch: Batch, normalizers: Normalizing) -> Gradients:
    """Returns the gradients of one micro-batch, scaled by the loss scale."""
    dtype, variables = objective.dtype, objective.variables
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(variables.values()))
        with guards.watched(batch) as loss_watch, observing(objective.points, batch) as observer:
            terms, outputs = objective.forward_pass(batch)
        if callable(normalizers):
            normalizers = normalizers({name: term.weight for name, term in terms.items()})
        loss = total(terms, normalizers)
        if objective.loss_scale is not None:
            loss *= tf.cast(objective.loss_scale, loss.dtype)
    gradients = tape.gradient(loss, dict(variables))
    _check_used(gradients)
    metrics = empty_states(objective.metrics, dtype)
    with guards.watched({**batch, **outputs}) as metrics_watch:
        if outputs:
            metrics = {name: metric.update(outputs, batch) for name, metric in objective.metrics.items()}
    shaped = _each_row_once if objective.keeps_rows else _dense
    return Gradients(
        {name: Term(tf.cast(term.sum, dtype), tf.cast(term.weight, dtype)) for name, term in terms.items()},
        {name: cast_state(objective.metrics[name], state, dtype) for name, state in metrics.items()},
        {path: shaped(gradient, variables[path].shape) for path, gradient in gradients.items()},
        loss_watch.violations(dtype, nan_too=not objective.nan_tells) + metrics_watch.violations(dtype),
        observer.extremes(dtype) if objective.points else (),
    )


def _check_used(gradients: Mapping[str, Any]) -> None:
    """Raises UserError if a variable has no gradient."""
    idle = [path for path, gradient in gradients.items() if gradient is None]
    if idle:
        raise UserError(
            f"the loss does not depend on {', '.join(idle)}, so it would never train."
            " Use it in make_loss, or set trainable=False on its layer."
        )


def _zeros(objective: Objective, terms: Normalizers) -> Gradients:
    """Returns the sums over no micro-batch."""
    dtype = objective.dtype
    return Gradients(
        {name: Term(tf.zeros([], dtype), tf.zeros([], dtype)) for name in terms},
        empty_states(objective.metrics, dtype),
        {path: tf.zeros(variable.shape, variable.dtype) for path, variable in objective.variables.items()},
        tf.zeros([], dtype),
        tf.zeros([2 * len(objective.points)], dtype) if objective.points else (),
    )


def _added(sums: Gradients, more: Gradients) -> Gradients:
    """Returns the sums of both, and the extremes of both."""
    added = tf.nest.map_structure(tf.add, sums, more)
    return added._replace(extremes=tf.nest.map_structure(tf.maximum, sums.extremes, more.extremes))


def _dense(gradient: tf.Tensor | tf.IndexedSlices, shape: tf.TensorShape) -> tf.Tensor:
    """Returns a gradient as large as its variable, also if only rows of the variable were looked up.

    Args:
      shape: of the variable, which a gradient that comes out of a function does not tell.
    """
    if not isinstance(gradient, tf.IndexedSlices) or not is_in_xla():
        dense = tf.convert_to_tensor(gradient)
        return dense if dense.shape.is_fully_defined() else tf.ensure_shape(dense, shape)
    # XLA's CPU compiler lets one thread write a constant 0, and all threads write what is computed, as here from an
    # index.
    indices = tf.reshape(gradient.indices, [-1])
    is_never = tf.equal(tf.bitwise.bitwise_and(indices[0], 1), 2)
    dtype = gradient.values.dtype
    start = tf.where(is_never, tf.ones(shape, dtype), tf.zeros(shape, dtype))
    rows = tf.reshape(gradient.values, [-1, *shape[1:]])
    return tf.tensor_scatter_nd_add(start, indices[:, tf.newaxis], rows)


def _each_row_once(gradient: Any, shape: tf.TensorShape) -> Any:
    """Returns a sparse gradient in which no index occurs twice, so that the norm of its rows is its norm."""
    del shape
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    indices, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(indices))
    return tf.IndexedSlices(values, indices, gradient.dense_shape)

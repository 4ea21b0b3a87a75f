"""Terms of a loss: a weighted sum and its weight, never a mean.

return {"error": losses.mean(tf.abs(predictions - batch["y"]), batch["weight"])}, {}
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from framework.distribute import replicas
from framework.errors import UserError


class Term(NamedTuple):
    """One part of a loss: `sum` / `weight` is its mean. `0.5 * term` is the same part with half of its sum.

    Attributes:
      sum: scalar, float32 or float64, sum of weighted values. If values of weight 0 may be NaN or infinite, write
        `losses.mean(values, weight)`: a plain product with 0 is NaN.
      weight: scalar, floating or integer; a function of the batch alone, not of the model. Each micro-batch
        and replica sees a part of the batch, and their sums and weights are added, so a weight is a sum over examples,
        such as `tf.reduce_sum(batch["weight"])`. A constant, such as 1, is refused, unless the sum does not depend on
        the batch either, such as that of a penalty on the weights of a model.
    """

    sum: tf.Tensor
    weight: tf.Tensor

    def __mul__(self, factor: Any) -> "Term":  # a tuple would be repeated
        if isinstance(factor, tuple | list):
            raise UserError("a Term is multiplied by a number or a scalar tensor, not by a Term: write 0.5 * term.")
        if isinstance(factor, int | float):  # tf.cast would round it to float32 before
            return type(self)(self.sum * tf.constant(float(factor), self.sum.dtype), self.weight)
        return type(self)(self.sum * tf.cast(factor, self.sum.dtype), self.weight)

    def __rmul__(self, factor: Any) -> "Term":
        return self * factor

    def __add__(self, other: Any) -> "Term":  # a tuple would be made longer
        raise UserError("Terms are not added, because each has a weight of its own. Return {'a': one, 'b': another}.")


# np.float64(0.5) * term is `__rmul__`, not an array of the scaled sum and weight. In the class, it would be a field.
Term.__array_ufunc__ = None  # type: ignore[attr-defined]


class BatchDependent(Term):
    """A term whose value for one example depends on the others of its batch, such as an in-batch softmax.

    Micro-batches would compare each example with fewer others, so `train.micro_batches` > 1 is refused. So are several
    replicas, unless the loss has `needs_collectives = True` and compares with the features that `all_gather` returns.
    """


def once(value: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns the term of a scalar that does not depend on the examples, such as a penalty: it counts once an update.

    Args:
      value: scalar, the same on all replicas and in all micro-batches.
      weight: [batch], of the examples.
    """
    count = tf.cast(tf.reduce_sum(weight), value.dtype)
    return Term(value * count, count)


def mean(values: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns the term of a weighted mean, summed in at least float32.

    Args:
      values: [batch, ...], numbers of any dtype. A value of weight 0 may be NaN or infinite; its gradient is 0, but 0
        times an infinite derivative before it, such as that of a logarithm, is NaN.
      weight: of the values' shape, or [batch]: then each value of an example has its weight.

    Raises:
      UserError: a weight of another shape, which would be broadcast to something else.
    """
    values, weight = tf.convert_to_tensor(values), tf.convert_to_tensor(weight)
    values = in_full(values)
    weight = tf.cast(weight_of_each("losses.mean", "values", values, weight), values.dtype)
    return Term(tf.reduce_sum(tf.math.multiply_no_nan(values, weight)), tf.reduce_sum(weight))


def mixed(
    loss: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Term],
    logits: tf.Tensor,
    batch: Mapping[str, tf.Tensor],
    label: str = "label",
) -> Term:
    """Returns the term of both labels of a batch that `MixUp` or `CutMix` of `data.augment` made, by their weights.

    A batch without `mix`, such as one of an evaluation, has the term of its label.

    Args:
      loss: (logits, labels, weight) -> Term, such as `losses.sparse_cross_entropy`.
      logits: of the mixed examples.
      batch: has `label`, `weight`, and maybe `label_2` and `mix`, the weight of the first label.
      label: the field of the labels.
    """
    if "mix" not in batch:
        return loss(logits, batch[label], batch["weight"])
    mix = tf.cast(batch["mix"], batch["weight"].dtype)
    first = loss(logits, batch[label], batch["weight"] * mix)
    second = loss(logits, batch[f"{label}_2"], batch["weight"] * (1 - mix))
    return Term(first.sum + second.sum, first.weight + second.weight)


def all_gather(features: tf.Tensor) -> tf.Tensor:
    """Returns the features of all replicas, in order: [shard, ...] becomes [batch, ...]. Gradients flow back.

    On one device these are the features themselves. A forward pass that communicates can neither be compiled by XLA nor
    cut into micro-batches, so a loss that calls this function says so:

        loss.needs_collectives = True
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1 or replicas.is_redundant():
        return features
    return context.all_gather(features, axis=0)


def gather_offset(features: tf.Tensor) -> tf.Tensor:
    """Returns the place of this replica's first example in the result of `all_gather`: int32 scalar."""
    context = tf.distribute.get_replica_context()
    is_one = context is None or context.num_replicas_in_sync == 1 or replicas.is_redundant()
    index = 0 if is_one else context.replica_id_in_sync_group
    return index * tf.shape(features)[0]


def in_full(tensor: tf.Tensor) -> tf.Tensor:
    """Returns float64 as it is, and every other dtype as float32."""
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)


def weight_of_each(function: str, kind: str, values: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Returns the weight in the shape of the values, after a look at the shapes.

    Args:
      function: for the message; kind: what it calls the values.
      values: [batch, ...].
      weight: of the same shape, or [batch].

    Raises:
      UserError: it is neither.
    """
    shape = values.shape
    if weight.shape.rank is not None and shape.rank == weight.shape.rank and shape.is_compatible_with(weight.shape):
        return tf.ensure_shape(weight, shape)
    if weight.shape.rank == 1 and (shape.rank or 0) > 1 and weight.shape.is_compatible_with(shape[:1]):
        column = tf.reshape(weight, [-1, *[1] * (shape.rank - 1)])
        return tf.broadcast_to(column, tf.shape(values))
    raise UserError(
        f"{function}: {kind} have shape {shape} and weights {weight.shape}. A weight is [batch], or of the shape of the"
        f" {kind}: write e.g. weight[:, 0] of a column, values[:, 0] of values [batch, 1]."
    )


def pair(function: str, kind: str, first: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns predictions (or logits) and targets of the same shape, in the dtype that they are computed in.

    Args:
      function: for the message; kind: what it calls the first.

    Raises:
      UserError: the shapes differ: of [batch, 1] beside [batch], a difference would be [batch, batch].
    """
    first, targets = in_full(tf.convert_to_tensor(first)), tf.convert_to_tensor(targets)
    ranks = {first.shape.rank, targets.shape.rank}
    if None in ranks or len(ranks) > 1 or not first.shape.is_compatible_with(targets.shape):
        raise UserError(
            f"{function}: {kind} have shape {first.shape} and targets {targets.shape}, but each of the {kind} has its"
            f" target. Write e.g. {kind}[:, 0] of {kind} [batch, 1]."
        )
    return first, tf.cast(tf.ensure_shape(targets, first.shape), first.dtype)


def where_weighted(weight: tf.Tensor, *tensors: tf.Tensor) -> list[tf.Tensor]:
    """Returns the tensors with 0 where the weight is 0, so that neither value nor gradient there can be NaN.

    Args:
      weight: [...].
      tensors: [..., more].
    """
    is_weighted = tf.cast(weight, tf.bool)
    return [
        tf.where(
            tf.reshape(is_weighted, tf.concat([tf.shape(weight), [1] * (tensor.shape.rank - weight.shape.rank)], 0)),
            tensor,
            tf.zeros([], tensor.dtype),
        )
        for tensor in tensors
    ]

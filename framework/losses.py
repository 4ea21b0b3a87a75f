"""Losses as terms: a weighted sum and its weight, never a mean.

    terms = {'cross_entropy': sparse_cross_entropy(logits, batch['label'], batch['weight'])}

The step divides each sum by the weight of the *whole* global batch, which is what makes padding, micro-batches and
replicas change nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from framework import moved
from framework.compile import is_in_xla, jit
from framework.distribute import replicas
from framework.errors import UserError
from framework.trace.guards import IN_RANGE, claim_classes

# Logits from which on a graph has an XLA program for them: 8 million take 8 ms less, of a step's 120.
_LARGE = 2**20


class Term(NamedTuple):
    """One part of a loss: `sum` / `weight` is its mean.

    Attributes:
      sum: scalar, float32 or float64, sum of weighted values. If values of weight 0 may be NaN or infinite, write
        `tf.reduce_sum(tf.math.multiply_no_nan(values, weight))`: a plain product with 0 is NaN.
      weight: scalar, floating or integer; a function of the batch alone, not of the model. Micro-batches and replicas
        see parts of a batch, whose sums and weights add up: a weight is a sum over examples, as
        `tf.reduce_sum(batch["weight"])` is. A constant, such as 1, is refused unless the sum does not depend on the
        batch either, as that of a penalty on the weights of a model does not.
    """

    sum: tf.Tensor
    weight: tf.Tensor


class BatchDependent(Term):
    """A term whose value for one example depends on the others of its batch, such as an in-batch softmax.

    Micro-batches would compare each example with fewer others, so `train.micro_batches` > 1 is refused. So are several
    replicas, unless the loss has `needs_collectives = True` and compares with the features that `all_gather` returns.
    """


def all_gather(features: tf.Tensor) -> tf.Tensor:
    """[part, ...] of each replica as [batch, ...] on all of them, in order; gradients find their way back.

    On one device these are the features themselves. A loss that calls it says so, because what communicates inside of
    the forward pass can neither be compiled by XLA nor looped over:

        loss.needs_collectives = True
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1 or replicas.is_alone():
        return features
    return context.all_gather(features, axis=0)


def gather_offset(features: tf.Tensor) -> tf.Tensor:
    """int32 scalar: the place that the first of this replica's examples has among those of `all_gather`."""
    context = tf.distribute.get_replica_context()
    is_one = context is None or context.num_replicas_in_sync == 1 or replicas.is_alone()
    index = 0 if is_one else context.replica_id_in_sync_group
    return index * tf.shape(features)[0]


def sparse_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, weight: tf.Tensor) -> Term:
    """Cross-entropy of the softmax of logits against class numbers, in at least float32.

    Args:
      logits: floating [..., classes], of two classes or more.
      labels: integer [...]; where the weight is 0, any number, such as -1. A label that is no class makes the loss NaN.
      weight: [...]; 0 for padding, whose logits may be NaN or infinite.

    Raises:
      UserError: a weight for something else than each label, labels for something else than each row of logits, or
        logits of a single class.
    """
    logits, labels, weight = (tf.convert_to_tensor(tensor) for tensor in (logits, labels, weight))
    _check_shapes(logits, labels)
    if labels.dtype.is_floating:  # a number between two classes is none of them
        labels = tf.where(tf.floor(labels) == labels, tf.cast(labels, tf.int64), tf.constant(-1, tf.int64))
    if labels.dtype not in (tf.int32, tf.int64):
        labels = tf.cast(labels, tf.int64)
    if not labels.shape.is_compatible_with(weight.shape):
        raise UserError(
            f"sparse_cross_entropy: labels have shape {labels.shape} and weights {weight.shape}, but each label has its"
            " weight. Write e.g. tf.cast(labels != PADDING, tf.float32)."
        )
    labels = tf.where(tf.not_equal(weight, 0), labels, tf.zeros_like(labels))
    if logits.shape[-1] is not None:
        claim_classes(labels, logits.shape[-1])
    values = _cross_entropy(logits, labels)
    weight = tf.cast(weight, values.dtype)
    return Term(tf.reduce_sum(tf.math.multiply_no_nan(values, weight)), tf.reduce_sum(weight))


def _check_shapes(logits: tf.Tensor, labels: tf.Tensor) -> None:
    shapes = f"sparse_cross_entropy: logits have shape {logits.shape} and labels {labels.shape}"
    if logits.shape[-1] == 1:
        raise UserError(
            f"{shapes}. The softmax of a single logit is always 1: write"
            " tf.nn.sigmoid_cross_entropy_with_logits(labels=…, logits=logits[..., 0]), or give the model two classes."
        )
    rows, each = logits.shape[:-1].num_elements(), labels.shape.num_elements()
    if rows is not None and each is not None and rows != each:
        raise UserError(
            f"{shapes}, but each row of logits has one label, the number of its class. Write e.g."
            " tf.argmax(labels, -1) of one-hot labels."
        )


def _cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """[...]: log of the sum of exp(logits), minus the logit of the label."""
    dtype, classes = tf.float64 if logits.dtype == tf.float64 else tf.float32, logits.shape[-1]
    rows, of_rows = tf.reshape(logits, [-1, classes]), tf.reshape(labels, [-1])

    # The arithmetic, and so the rounding, is that of tf.nn's, which writes the gradient in the forward pass, as large
    # as the logits, and reads it again later.
    def sums(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.cast(rows, dtype)
        top = tf.stop_gradient(tf.reduce_max(rows, -1, keepdims=True))
        return top, tf.reduce_sum(tf.exp(rows - top), -1, keepdims=True)

    def derivative(rows: tf.Tensor, top: tf.Tensor, total: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        of_logits = tf.exp(tf.cast(rows, dtype) - top) / total - tf.one_hot(of_rows, classes, dtype=dtype)
        # Of a row that has no weight, nothing: not even of a NaN.
        return tf.cast(tf.math.multiply_no_nan(of_logits, upstream[:, tf.newaxis]), rows.dtype)

    if (rows.shape.num_elements() or 0) >= _LARGE and not tf.executing_eagerly() and not is_in_xla():
        sums, derivative = jit(sums), jit(derivative)

    # The sums are arguments so that the gradient, all of which is by the rows, has a derivative by them.
    @tf.custom_gradient
    def fn(rows: tf.Tensor, top: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
        # In a graph the kernel would raise where a label is no class, and XLA would take the nearest.
        nearest = tf.clip_by_value(of_rows, 0, classes - 1)
        picked = tf.cast(tf.gather(rows, nearest, batch_dims=1, name=IN_RANGE), dtype)
        is_class = (of_rows >= 0) & (of_rows < classes)
        picked = tf.where(is_class, picked, tf.constant(float("nan"), dtype))
        values = tf.math.log(total[:, 0]) - (picked - top[:, 0])
        return values, lambda upstream: (derivative(rows, top, total, upstream), None, None)

    return tf.reshape(fn(rows, *sums(rows)), tf.shape(labels))


__getattr__ = moved.former_names(__name__)

"""Losses of class numbers."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from framework.compile import is_in_xla, jit
from framework.errors import UserError
from framework.losses.base import Term
from framework.trace.guards import IN_RANGE, claim_classes

# Logits from which on a graph has an XLA program for them: 8 million take 8 ms less, of a step's 120.
_LARGE = 2**20


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

"""Losses of classes: cross-entropy of class numbers, of class probabilities and of binary targets, focal and hinge.

Each takes logits; what comes from a softmax or sigmoid is refused. Where the weight is 0, logits and labels may be
anything; elsewhere a label that is no class, or a probability that is none, makes the loss NaN, and the step stops and
names it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from framework.compile import is_in_xla, jit
from framework.errors import UserError
from framework.losses.base import Term, in_full, mean, pair, weight_of_each, where_weighted
from framework.trace.activations import refuse_probabilities
from framework.trace.guards import IN_RANGE, claim_classes, claim_range

# From this many logits on, a graph has an XLA program for them: 8 million take 8 ms less, of a step's 120.
_LARGE = 2**20
_ROUNDING = 0.01  # how far from 1 the sum of probabilities in half precision may be


def sparse_cross_entropy(
    logits: tf.Tensor,
    labels: tf.Tensor,
    weight: tf.Tensor,
    smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Term:
    """Returns the cross-entropy of the softmax of logits against class numbers, in at least float32.

    Args:
      logits: floating [..., classes], of two classes or more.
      labels: integer [...]; where the weight is 0, any number, such as -1. A label that is no class makes the loss NaN.
      weight: [...]; 0 for padding, whose logits may be NaN or infinite.
      smoothing: share of the label's probability that is spread evenly over all classes (Szegedy et al. 2016).
      class_weights: one number a class; an example's weight is multiplied by that of its label.

    Raises:
      UserError: a weight for something else than each label, labels for something else than each row of logits, or
        logits of a single class.
    """
    logits, labels, weight = (tf.convert_to_tensor(tensor) for tensor in (logits, labels, weight))
    labels = _checked_labels("sparse_cross_entropy", logits, labels, weight)
    _check_smoothing("sparse_cross_entropy", smoothing)
    values = cross_entropy(logits, labels, smoothing)
    weight = tf.cast(weight, values.dtype)
    if class_weights is not None:
        weight *= _of_labels("sparse_cross_entropy", class_weights, labels, logits.shape[-1], weight.dtype)
    return Term(tf.reduce_sum(tf.math.multiply_no_nan(values, weight)), tf.reduce_sum(weight))


def categorical_cross_entropy(
    logits: tf.Tensor,
    targets: tf.Tensor,
    weight: tf.Tensor,
    smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Term:
    """Returns the cross-entropy of the softmax of logits against class probabilities, in at least float32.

    Args:
      logits: floating [..., classes].
      targets: [..., classes], one-hot or probabilities of sum 1; others make the loss NaN.
      weight: [...], or [batch].
      smoothing: share of the targets that is spread evenly over all classes (Szegedy et al. 2016).
      class_weights: one number a class; an example's weight is multiplied by their mean under its targets.
    """
    name = "categorical_cross_entropy"
    logits, targets, weight = checked_targets(name, logits, targets, weight)
    classes = logits.shape[-1]
    if class_weights is not None:
        weight = tf.cast(weight, logits.dtype)
        weight *= tf.reduce_sum(targets * _per_class(name, class_weights, classes, logits.dtype), -1)
    if smoothing:
        _check_smoothing(name, smoothing)
        targets = (1 - smoothing) * targets + smoothing / classes
    return mean(-tf.reduce_sum(tf.math.multiply_no_nan(tf.nn.log_softmax(logits), targets), -1), weight)


def binary_cross_entropy(
    logits: tf.Tensor,
    targets: tf.Tensor,
    weight: tf.Tensor,
    smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Term:
    """Returns the binary cross-entropy of the sigmoid of logits, in at least float32.

    Args:
      logits: floating [batch, ...]; several a row are labels that do not exclude each other.
      targets: of the same shape: 0 or 1, or probabilities; others make the loss NaN.
      weight: of the same shape, or [batch].
      smoothing: share of the targets that is replaced by 1/2.
      class_weights: (negative class, positive class); a weight is multiplied by their mean under its target.
    """
    logits, targets, weight = _checked_binary("binary_cross_entropy", logits, targets, weight)
    if class_weights is not None:
        no, yes = tf.unstack(_per_class("binary_cross_entropy", class_weights, 2, logits.dtype))
        weight = tf.cast(weight, logits.dtype) * (no + (yes - no) * targets)
    if smoothing:
        _check_smoothing("binary_cross_entropy", smoothing)
        targets = (1 - smoothing) * targets + smoothing / 2
    return mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits), weight)


def focal(
    logits: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor, gamma: float = 2.0, alpha: float | None = 0.25
) -> Term:
    """Returns the focal loss (Lin et al. 2017): binary cross-entropy in which what is easy counts less.

    It is -a * (1 - p)**gamma * log(p), with p the probability of the target, and a = alpha for 1 and 1 - alpha for 0.

    Args:
      logits, weight: as in `binary_cross_entropy`.
      targets: of the same shape, 0 or 1; others make the loss NaN.
      gamma: 0, which is cross-entropy, or at least 1.
      alpha: from 0 to 1; None leaves a out.
    """
    if gamma != 0 and gamma < 1:
        raise UserError(f"focal: gamma={gamma} must be 0 or at least 1; between, the gradient has no bound.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise UserError(f"focal: alpha={alpha} is not from 0 to 1.")
    logits, targets, weight = _checked_binary("focal", logits, targets, weight)
    targets = tf.where(tf.floor(targets) == targets, targets, tf.constant(float("nan"), targets.dtype))
    values = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    if gamma:
        values *= tf.sigmoid((1 - 2 * targets) * logits) ** gamma
    if alpha is not None:
        values *= (1 - alpha) + (2 * alpha - 1) * targets
    return mean(values, weight)


def hinge(logits: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor, margin: float = 1.0) -> Term:
    """Returns the hinge loss: max(0, margin - logit) for a positive example, max(0, margin + logit) for a negative one.

    Args:
      logits: floating [batch, ...], scores of the positive class.
      targets: of the same shape, 0 or 1, not -1; others make the loss NaN.
      weight: of the same shape, or [batch].
      margin: above 0.
    """
    if margin <= 0:
        raise UserError(f"hinge: margin={margin} is not above 0.")
    logits, targets, weight = _checked_binary("hinge", logits, targets, weight)
    targets = tf.where(tf.floor(targets) == targets, targets, tf.constant(float("nan"), targets.dtype))
    return mean(tf.nn.relu(margin - (2 * targets - 1) * logits), weight)


def sparse_hinge(logits: tf.Tensor, labels: tf.Tensor, weight: tf.Tensor, margin: float = 1.0) -> Term:
    """Returns the hinge loss of several classes (Crammer and Singer 2001).

    It is max(0, margin + the largest logit of another class - the label's logit).

    Args:
      logits, labels, weight: as in `sparse_cross_entropy`.
      margin: above 0.
    """
    if margin <= 0:
        raise UserError(f"sparse_hinge: margin={margin} is not above 0.")
    logits, labels, weight = (tf.convert_to_tensor(tensor) for tensor in (logits, labels, weight))
    labels = _checked_labels("sparse_hinge", logits, labels, weight)
    (logits,) = where_weighted(weight, in_full(_rows(logits, labels)))
    is_label = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    own = tf.reduce_sum(tf.where(is_label, logits, 0), -1)
    other = tf.reduce_max(tf.where(is_label, logits.dtype.min, logits), -1)
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    values = tf.where(is_class, tf.nn.relu(margin + other - own), tf.constant(float("nan"), logits.dtype))
    return mean(values, weight)


def _checked_labels(function: str, logits: tf.Tensor, labels: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Returns labels as int32 or int64: 0 where the weight is 0, and -1 for a number between two classes."""
    refuse_probabilities(function, logits)
    _check_shapes(function, logits, labels)
    if labels.dtype.is_floating:  # a number between two classes is none of them
        labels = tf.where(tf.floor(labels) == labels, tf.cast(labels, tf.int64), tf.constant(-1, tf.int64))
    if labels.dtype not in (tf.int32, tf.int64):
        labels = tf.cast(labels, tf.int64)
    if not labels.shape.is_compatible_with(weight.shape):
        raise UserError(
            f"{function}: labels have shape {labels.shape} and weights {weight.shape}, but each label has its"
            " weight. Write e.g. tf.cast(labels != PADDING, tf.float32)."
        )
    labels = tf.where(tf.cast(weight, tf.bool), labels, tf.zeros_like(labels))
    if logits.shape[-1] is not None:
        claim_classes(labels, logits.shape[-1])
    return labels


def checked_targets(
    function: str, logits: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns logits, class probabilities and the weight of each row; NaN for rows that are no probabilities."""
    refuse_probabilities(function, tf.convert_to_tensor(logits))
    logits, targets = pair(function, "logits", logits, targets)
    if logits.shape[-1] in (None, 1):
        raise UserError(
            f"{function}: logits have shape {logits.shape}, but the softmax of a single logit is always 1. Write"
            " losses.binary_cross_entropy, or give the model two classes."
        )
    weight = weight_of_each(function, "rows of logits", logits[..., 0], tf.convert_to_tensor(weight))
    logits, targets = where_weighted(weight, logits, targets)
    total = tf.where(tf.cast(weight, tf.bool), tf.reduce_sum(targets, -1), tf.ones([], targets.dtype))
    claim_range(targets, 0, 1)
    claim_range(total, 1 - _ROUNDING, 1 + _ROUNDING)
    is_bad = tf.reduce_any(~((targets >= 0) & (targets <= 1)), -1) | ~(tf.abs(total - 1) <= _ROUNDING)
    return logits, tf.where(is_bad[..., tf.newaxis], tf.constant(float("nan"), targets.dtype), targets), weight


def _checked_binary(
    function: str, logits: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns logits, targets and the weight of each; NaN for targets that are not from 0 to 1."""
    refuse_probabilities(function, tf.convert_to_tensor(logits))
    logits, targets = pair(function, "logits", logits, targets)
    weight = weight_of_each(function, "logits", logits, tf.convert_to_tensor(weight))
    logits, targets = where_weighted(weight, logits, targets)
    claim_range(targets, 0, 1)
    is_probability = (targets >= 0) & (targets <= 1)
    return logits, tf.where(is_probability, targets, tf.constant(float("nan"), targets.dtype)), weight


def _rows(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns logits in the shape of the labels, with the classes last."""
    return tf.reshape(logits, tf.concat([tf.shape(labels), logits.shape[-1:]], 0))


def _check_smoothing(function: str, smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise UserError(f"{function}: smoothing={smoothing} is not from 0 to below 1.")


def _per_class(function: str, class_weights: Sequence[float], classes: int | None, dtype: tf.DType) -> tf.Tensor:
    """Returns the class weights as a vector."""
    numbers = [float(number) for number in class_weights]
    if len(numbers) != classes or not all(0 <= number < float("inf") for number in numbers):
        raise UserError(
            f"{function}: class_weights={numbers} must be {classes} numbers of at least 0, one for each class."
        )
    return tf.constant(numbers, dtype)


def _of_labels(
    function: str, class_weights: Sequence[float], labels: tf.Tensor, classes: int | None, dtype: tf.DType
) -> tf.Tensor:
    """Returns the class weight of each label; of one that is no class, that of the nearest."""
    numbers = _per_class(function, class_weights, classes, dtype)
    return tf.gather(numbers, tf.clip_by_value(labels, 0, numbers.shape[0] - 1), name=IN_RANGE)


def _check_shapes(function: str, logits: tf.Tensor, labels: tf.Tensor) -> None:
    shapes = f"{function}: logits have shape {logits.shape} and labels {labels.shape}"
    if logits.shape[-1] == 1:
        raise UserError(
            f"{shapes}. The softmax of a single logit is always 1: write losses.binary_cross_entropy(logits[..., 0],"
            " labels, weight), or give the model two classes."
        )
    rows, each = logits.shape[:-1].num_elements(), labels.shape.num_elements()
    if rows is not None and each is not None and rows != each:
        raise UserError(
            f"{shapes}, but each row of logits has one label, the number of its class. Write e.g."
            " tf.argmax(labels, -1) of one-hot labels."
        )


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Returns the log of the sum of exp(logits), minus the mean logit of the smoothed label: [...], unchecked.

    Args:
      logits: [..., classes]; without smoothing, all but that of the label may be -inf.
      labels: integer [...]; NaN for one that is no class.
      smoothing: as in `sparse_cross_entropy`.
    """
    dtype = tf.float64 if logits.dtype == tf.float64 else tf.float32
    classes = tf.shape(logits)[-1] if logits.shape[-1] is None else logits.shape[-1]
    rows, of_rows = tf.reshape(logits, [-1, classes]), tf.reshape(labels, [-1])

    # The arithmetic, and so the rounding, is that of tf.nn's, which writes the gradient in the forward pass, as large
    # as the logits, and reads it again later.
    def sums(rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = tf.cast(rows, dtype)
        top = tf.stop_gradient(tf.reduce_max(rows, -1, keepdims=True))
        mean = [tf.reduce_mean(rows - top, -1)] if smoothing else []
        return top, tf.reduce_sum(tf.exp(rows - top), -1, keepdims=True), *mean

    def derivative(rows: tf.Tensor, top: tf.Tensor, total: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        spread = smoothing / classes if smoothing else 0.0
        label = tf.one_hot(of_rows, classes, 1 - smoothing + spread, spread, dtype=dtype)
        of_logits = tf.exp(tf.cast(rows, dtype) - top) / total - label
        # The gradient of a row without weight is 0, even if its logits are NaN.
        return tf.cast(tf.math.multiply_no_nan(of_logits, upstream[:, tf.newaxis]), rows.dtype)

    if (rows.shape.num_elements() or 0) >= _LARGE and not tf.executing_eagerly() and not is_in_xla():
        sums, derivative = jit(sums), jit(derivative)

    # The sums are arguments so that the gradient, all of which is by the rows, has a derivative by them.
    @tf.custom_gradient
    def fn(rows: tf.Tensor, top: tf.Tensor, total: tf.Tensor, *mean: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        # In a graph the kernel would raise where a label is no class, and XLA would take the nearest.
        nearest = tf.clip_by_value(of_rows, 0, classes - 1)
        picked = tf.cast(tf.gather(rows, nearest, batch_dims=1, name=IN_RANGE), dtype)
        is_class = (of_rows >= 0) & (of_rows < classes)
        picked = tf.where(is_class, picked, tf.constant(float("nan"), dtype))
        of_label = picked - top[:, 0]
        if smoothing:
            of_label = (1 - smoothing) * of_label + smoothing * mean[0]
        values = tf.math.log(total[:, 0]) - of_label
        return values, lambda upstream: (derivative(rows, top, total, upstream), *[None] * len((top, total, *mean)))

    return tf.reshape(fn(rows, *sums(rows)), tf.shape(labels))

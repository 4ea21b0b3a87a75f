"""What metrics read of the loss's outputs and of the batch, in the shapes and dtypes that they are computed in."""

from typing import Any

import tensorflow as tf

from framework.errors import UserError
from framework.losses.base import in_full, pair, weight_of_each, where_weighted
from framework.metrics.base import Tensors
from framework.trace.activations import refuse_probabilities
from framework.trace.guards import IN_RANGE


def labelled(metric: Any, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns logits [..., classes], labels [...] as int64 and weights [...] of a metric of class numbers.

    A label that is no class is -1, so that the metric can make it NaN; where the weight is 0, logits and labels are 0.

    Args:
      metric: has the keys `logits`, `label` and `weight`.

    Raises:
      UserError: shapes that do not fit.
    """
    name = type(metric).__name__
    logits, label = in_full(tf.convert_to_tensor(outputs[metric.logits])), tf.convert_to_tensor(batch[metric.label])
    classes, shape = logits.shape[-1] if logits.shape.rank else None, label.shape
    if classes in (None, 1) or shape.rank != logits.shape.rank - 1 or not shape.is_compatible_with(logits.shape[:-1]):
        raise UserError(
            f"{name}: logits '{metric.logits}' have shape {logits.shape} and labels '{metric.label}' {shape}, but"
            " logits are [..., classes], and each row has one label, the number of its class. Write e.g."
            " tf.argmax(labels, -1) of one-hot labels."
        )
    if not (label.dtype.is_floating or label.dtype.is_integer or label.dtype.is_bool):
        raise UserError(f"{name}: labels '{metric.label}' are of dtype {label.dtype.name}, but labels are numbers.")
    weight = weight_of(metric, "labels", label, batch)
    number = tf.cast(label, tf.int64)
    is_class = (number >= 0) & (number < classes) & tf.equal(tf.cast(number, label.dtype), label)
    number = tf.where(is_class, number, -1)
    logits, number = where_weighted(weight, logits, number)
    return logits, number, weight


def binary(metric: Any, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns logits, targets and weights of one shape of a metric of yes or no; targets but 0 and 1 are NaN.

    Args:
      metric: has the keys `logits`, `label` and `weight`.

    Raises:
      UserError: shapes that do not fit, or logits that a softmax or sigmoid gives.
    """
    refuse_probabilities(type(metric).__name__, tf.convert_to_tensor(outputs[metric.logits]))
    logits, target, weight = _weighted(metric, "logits", outputs[metric.logits], batch[metric.label], batch)
    is_target = tf.equal(target, 0) | tf.equal(target, 1)
    return logits, tf.where(is_target, target, tf.constant(float("nan"), target.dtype)), weight


def predicted(metric: Any, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns predictions, targets and weights of one shape of a metric of numbers.

    Args:
      metric: has the keys `predictions`, `target` and `weight`.

    Raises:
      UserError: shapes that do not fit.
    """
    return _weighted(metric, "predictions", outputs[metric.predictions], batch[metric.target], batch)


def _weighted(
    metric: Any, kind: str, values: tf.Tensor, targets: tf.Tensor, batch: Tensors
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns values, targets and weights of one shape; where a weight is 0, values and targets are 0."""
    name = type(metric).__name__
    values, targets = pair(name, kind, values, targets)
    weight = weight_of(metric, kind, values, batch)
    values, targets = where_weighted(weight, values, targets)
    return values, targets, weight


def weight_of(metric: Any, kind: str, values: tf.Tensor, batch: Tensors) -> tf.Tensor:
    """Returns the weight of each value, in the shape of the values.

    Args:
      metric: its key `weight` names a field of the batch, of the values' shape or [batch]: then all values of an
        example have the weight of the example. None is 'weight', and refuses several values an example, because the
        weights of examples do not say which of the values are padding.
      kind: what errors call the values: "labels".
      values: [batch, ...].

    Raises:
      UserError: the shapes do not fit, or the weight of several values of an example is not named.
    """
    name, shape = type(metric).__name__, values.shape
    weight = tf.convert_to_tensor(batch[metric.weight or "weight"])
    is_single = shape.rank is not None and all(size == 1 for size in shape[1:])
    if metric.weight is None and weight.shape.rank == 1 and not is_single:
        raise UserError(
            f"{name}: {kind} have shape {shape} and weights 'weight' {weight.shape}, so padding inside an example would"
            f" count; give weight='token_weight', a field of the shape of the {kind} that is 0 for padding, or"
            " weight='weight' if no example has padding."
        )
    return weight_of_each(name, kind, values, weight)


def histogram(bins: tf.Tensor, count: int, *numbers: tf.Tensor) -> tf.Tensor:
    """Returns sums by bin in float64: [len(numbers) * count], one after the other.

    Args:
      bins: integer [...], from 0 to count - 1.
      numbers: each [...], added up in its bin.
    """
    places = tf.reshape(bins, [-1])
    sums = [
        tf.math.unsorted_segment_sum(tf.reshape(tf.cast(number, tf.float64), [-1]), places, count, name=IN_RANGE)
        for number in numbers
    ]
    return tf.concat(sums, 0)

"""Losses of predicted numbers: squared, absolute and Huber errors, and the angle between vectors.

Each takes predictions and targets of the same shape, and a weight of that shape or [batch]. Where the weight is 0,
predictions and targets may be NaN or infinite. All compute in float32, or in float64 if the predictions are.
"""

import tensorflow as tf

from framework.errors import UserError
from framework.losses.base import Term, mean, pair, weight_of_each, where_weighted


def mean_squared_error(predictions: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns the weighted mean of (prediction - target)**2.

    Args:
      predictions: [batch, ...].
      targets: of the same shape.
      weight: of the same shape, or [batch].
    """
    difference, weight = _difference("mean_squared_error", predictions, targets, weight)
    return mean(tf.square(difference), weight)


def mean_absolute_error(predictions: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns the weighted mean of |prediction - target|; arguments as in `mean_squared_error`."""
    difference, weight = _difference("mean_absolute_error", predictions, targets, weight)
    return mean(tf.abs(difference), weight)


def huber(predictions: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor, delta: float = 1.0) -> Term:
    """Returns the weighted mean of Huber's loss (1964): d**2 / 2 up to |d| = delta, delta * (|d| - delta / 2) beyond.

    Args:
      predictions, targets, weight: as in `mean_squared_error`; d is prediction - target.
      delta: above 0, in the unit of the targets.
    """
    if delta <= 0:
        raise UserError(f"huber: delta={delta} is not above 0.")
    difference, weight = _difference("huber", predictions, targets, weight)
    size = tf.abs(difference)
    near = tf.minimum(size, delta)
    return mean(near * (size - near / 2), weight)


def cosine_distance(predictions: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns the weighted mean of 1 - cos(angle between prediction and target): from 0 to 2.

    Args:
      predictions: [..., size], vectors of any length; of a vector of zeros the distance is 1, and the gradient 0.
      targets: of the same shape.
      weight: [...], or [batch].
    """
    predictions, targets = pair("cosine_distance", "predictions", predictions, targets)
    weight = tf.convert_to_tensor(weight)
    weight = weight_of_each("cosine_distance", "vectors", predictions[..., 0], weight)
    predictions, targets = where_weighted(weight, predictions, targets)
    return mean(1 - tf.reduce_sum(_direction(predictions) * _direction(targets), -1), weight)


def _direction(vectors: tf.Tensor) -> tf.Tensor:
    """Returns vectors of length 1; zeros stay zeros. The largest entry is divided out first, so nothing overflows."""
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(vectors), -1, keepdims=True))
    scaled = vectors / tf.where(largest > 0, largest, tf.ones_like(largest))
    square = tf.reduce_sum(tf.square(scaled), -1, keepdims=True)
    is_vector = square > 0
    return tf.where(is_vector, scaled * tf.math.rsqrt(tf.where(is_vector, square, tf.ones_like(square))), 0)


def _difference(
    function: str, predictions: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns prediction - target, and the weight of each."""
    predictions, targets = pair(function, "predictions", predictions, targets)
    weight = weight_of_each(function, "predictions", predictions, tf.convert_to_tensor(weight))
    predictions, targets = where_weighted(weight, predictions, targets)
    return predictions - targets, weight

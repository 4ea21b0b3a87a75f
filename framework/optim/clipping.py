"""Gradient clipping.

    norm = global_norm(gradients.values())
    gradients = clip(gradients, variables, config.clip, norm)

A gradient within the bound is multiplied by exactly 1. The caller looks for infinity and NaN before it clips.
"""

import re
from collections.abc import Iterable, Mapping

import tensorflow as tf
from ml_collections import ConfigDict

from framework.compile import is_in_xla

# Partial sums of a sum of squares in XLA. Its CPU compiler may not reorder additions, so one running sum takes four
# cycles an element: 640,000 elements took 131 microseconds, and 19 with a vector register of partial sums. A graph sums
# as fast without, and a Transformer of 173 variables is traced with a tenth fewer nodes.
_LANES = 16
# A variable of a smaller norm counts as this long, or it could never leave 0 (Brock et al., 2021).
_SHORTEST = 1e-3


def global_norm(tensors: Iterable[tf.Tensor]) -> tf.Tensor:
    """Returns the root of the sum of all squares: a scalar, float64 if one of `tensors` is float64, else float32."""
    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
    dtype = tf.float64 if any(tensor.dtype == tf.float64 for tensor in tensors) else tf.float32
    squares = [tf.zeros([], dtype), *(_sum_of_squares(tf.cast(tensor, dtype)) for tensor in tensors)]
    # The order of tf.add_n depends on which memory is free.
    return tf.sqrt(tf.reduce_sum(tf.stack(squares)))


def _sum_of_squares(tensor: tf.Tensor) -> tf.Tensor:
    """Returns a scalar of the dtype of `tensor`, which has any shape."""
    size = tensor.shape.num_elements()
    if size is None or size < 64 * _LANES or not is_in_xla():
        return tf.reduce_sum(tf.square(tensor))
    flat, whole = tf.reshape(tensor, [-1]), size // _LANES * _LANES
    partial = tf.reduce_sum(tf.square(tf.reshape(flat[:whole], [_LANES, -1])), axis=0)
    # The maximum, which changes nothing, keeps XLA from merging the two sums into one.
    total = tf.reduce_sum(tf.maximum(partial, 0))
    return total if whole == size else total + tf.reduce_sum(tf.square(flat[whole:]))


def clip(
    gradients: Mapping[str, tf.Tensor], variables: Mapping[str, tf.Variable], settings: ConfigDict, norm: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns the gradients within the bound of `config.clip`.

    * global_norm: multiplies all gradients by one factor, if `norm` exceeds the threshold
    * value: keeps each element between -threshold and threshold
    * variable_norm: multiplies each gradient whose norm exceeds the threshold by a factor of its own
    * adaptive: makes the gradient of a unit at most threshold times as long as its weights (AGC: Brock et al., 2021); a
      unit is an index of the last axis, and a vector or scalar is one unit

    Args:
      gradients: {path: gradient}.
      variables: {path: variable}, with the same paths.
      settings: `config.clip`.
      norm: `global_norm` of the gradients.
    """
    threshold = settings.threshold
    if settings.name == "global_norm":
        factor = _factor(norm, threshold)
        return {path: gradient * tf.cast(factor, gradient.dtype) for path, gradient in gradients.items()}
    if settings.name == "value":
        return {path: _within(gradient, threshold) for path, gradient in gradients.items()}
    if settings.name == "variable_norm":
        return {path: gradient * _factor(_norm(gradient), threshold) for path, gradient in gradients.items()}
    if settings.name == "adaptive":
        return {
            path: gradient
            if re.fullmatch(settings.exclude, path)
            else _adapted(gradient, tf.convert_to_tensor(variables[path]), threshold)
            for path, gradient in gradients.items()
        }
    return dict(gradients)


def _factor(norm: tf.Tensor, longest: float | tf.Tensor) -> tf.Tensor:
    """Returns the factor that shortens `norm` to `longest`; exactly 1 if `norm` is not longer."""
    longest = tf.cast(longest, norm.dtype) if tf.is_tensor(longest) else tf.constant(longest, norm.dtype)
    return longest / tf.maximum(norm, longest)


def _within(gradient: tf.Tensor, threshold: float) -> tf.Tensor:
    bound = tf.constant(threshold, gradient.dtype)
    return tf.clip_by_value(gradient, -bound, bound)


def _norm(tensor: tf.Tensor, axes: list[int] | None = None) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(tf.square(tensor), axes, keepdims=axes is not None))


def _adapted(gradient: tf.Tensor, weights: tf.Tensor, threshold: float) -> tf.Tensor:
    axes = list(range(gradient.shape.rank - 1)) if gradient.shape.rank > 1 else None
    longest = tf.constant(threshold, weights.dtype) * tf.maximum(_norm(weights, axes), _SHORTEST)
    return gradient * _factor(_norm(gradient, axes), longest)

"""Normalisations by name, layer normalisation with its gradient in closed form, and group normalisation for exports.

y = layers.LayerNormalization(epsilon=1e-6)(x)              # [..., width], over the last dimension
y = layers.make_normalization("group", groups=8)(x)         # [batch, height, width, channels]
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

NORMALIZATIONS = ("batch", "sync_batch", "group", "layer", "none")

_HALF = ("float16", "bfloat16")
_MOMENTUM = 0.9
_EPSILON = 1e-5


def make_normalization(
    kind: str, groups: int | None = None, gamma_initializer: Any = "ones", **kwargs: Any
) -> keras.layers.Layer | None:
    """Returns a new layer that normalises pictures, channels last.

    Moving averages have momentum 0.9, and variances an epsilon of 1e-5, as in most published ResNets.

    Args:
      kind: 'batch' normalises each channel over the examples and pixels of its replica, 'sync_batch' over those of all
        replicas; 'group' each group of channels over the pixels of an example; 'layer' the channels of each pixel;
        'none' returns None.
      groups: number of groups, a divisor of the channels; 'group' needs it, and no other takes it.
      gamma_initializer: of the scale.
      kwargs: `dtype` and `name` of the layer.

    Sources: Ioffe & Szegedy, 2015, "Batch normalization"; Wu & He, 2018, "Group normalization"; Ba et al., 2016, "Layer
    normalization".
    """
    if kind not in NORMALIZATIONS:
        raise ValueError(f"normalization='{kind}' is none of {', '.join(NORMALIZATIONS)}")
    if kind == "group" and groups is None:
        raise ValueError("normalization='group' needs groups=N, a divisor of the channels")
    if kind != "group" and groups is not None:
        raise ValueError(f"normalization='{kind}' takes no groups, but groups={groups}")
    if groups is not None and groups < 1:
        raise ValueError(f"groups={groups} must be at least 1")
    if kind == "none":
        return None
    kwargs = {"epsilon": _EPSILON, "gamma_initializer": gamma_initializer, **kwargs}
    if kind == "layer":
        return LayerNormalization(**kwargs)
    if kind == "group":
        return GroupNormalization(groups, **kwargs)
    return keras.layers.BatchNormalization(momentum=_MOMENTUM, synchronized=kind == "sync_batch", **kwargs)


class LayerNormalization(keras.layers.LayerNormalization):
    """Normalises the last dimension, as `keras.layers.LayerNormalization`, in fewer passes over memory.

    Values are those of Keras but for rounding. Over other dimensions than the last alone, the layer is that of Keras.
    Sources: Ba et al., 2016, "Layer normalization"; the gradient is that of Ioffe & Szegedy, 2015, "Batch
    normalization", section 3, over the width.

    Call: x, floating [..., width] -> the same shape and dtype; computed in the dtype of the variables.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if isinstance(inputs, tf.RaggedTensor) or list(self.axis) != [inputs.shape.rank - 1]:
            return super().call(inputs)
        x = tf.cast(inputs, self.compute_dtype)
        normalized = _normalized(tf.cast(x, self.dtype) if x.dtype.name in _HALF else x, self.epsilon)
        if self.gamma is not None:
            normalized *= self.gamma
        if self.beta is not None:
            normalized += self.beta
        return tf.cast(normalized, x.dtype)


class GroupNormalization(keras.layers.GroupNormalization):
    """Normalises groups of channels over all places of an example, as `keras.layers.GroupNormalization`.

    Values are those of Keras, but computed in the dtype of the variables, also in half precision; and LiteRT runs the
    layer for any batch size, which it refuses for the mask of ones that Keras multiplies by. With a mask, or over
    another axis than the last, the layer is that of Keras. Source: Wu & He, 2018, "Group normalization".

    Call: x, floating [batch, ..., channels] -> the same shape and dtype.
    """

    def add_weight(self, *args: Any, **kwargs: Any) -> tf.Variable:
        return super().add_weight(*args, experimental_autocast=False, **kwargs)  # `call` reads it in full precision

    def call(self, inputs: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        x = tf.cast(inputs, self.compute_dtype)
        wide = tf.cast(x, self.dtype) if x.dtype.name in _HALF else x
        if mask is not None or self.axis not in (-1, inputs.shape.rank - 1):
            return tf.cast(super().call(wide, mask), x.dtype)
        shape, members = tf.shape(x), x.shape[-1] // self.groups
        grouped = tf.reshape(wide, [shape[0], -1, self.groups, members])  # [batch, places, groups, members]
        mean, variance = tf.nn.moments(grouped, [1, 3], keepdims=True)
        beta, gamma = (
            None if variable is None else tf.reshape(variable, [self.groups, members])
            for variable in (self.beta, self.gamma)
        )
        normalized = tf.nn.batch_normalization(grouped, mean, variance, beta, gamma, self.epsilon)
        return tf.cast(tf.reshape(normalized, shape), x.dtype)


def _normalized(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Returns x without its mean, divided by its standard deviation, over the last dimension."""

    def forward(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
        return centred * scale, scale

    @tf.custom_gradient
    def fn(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            normalized, scale = forward(x)  # again, for second derivatives; compilers see that it is the same
            along = tf.reduce_mean(upstream * normalized, -1, keepdims=True)
            return scale * (upstream - tf.reduce_mean(upstream, -1, keepdims=True) - normalized * along)

        return forward(x)[0], gradient

    return fn(x)

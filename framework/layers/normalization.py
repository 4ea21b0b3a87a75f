"""Layer normalisation with its gradient in closed form.

y = layers.LayerNormalization(epsilon=1e-6)(x)              # [..., width], over the last dimension
"""

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

_HALF = ("float16", "bfloat16")


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

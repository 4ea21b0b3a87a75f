"""Dropout whose masks depend on (seed, layer, step, example) alone.

    keras.Sequential([keras.layers.Dense(128), layers.Dropout(0.2), keras.layers.Dense(10)])

tf_keras's own draws from a process-wide generator that is in no checkpoint: a resumed run would see other masks.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import rng


class Dropout(keras.layers.Layer):
    """Zeroes each element with probability `rate` in training and scales the others so that the mean stays.

    Source: Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from overfitting".

    Args:
      rate: 0 <= rate < 1; the nearest multiple of 2**-16 is what is drawn and scaled by.

    Call: x, floating, [batch, ...] with all but the batch dimension static -> same shape and dtype. `training=True`
    needs an open `rng.scope` (the step opens one), else RuntimeError.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} must be at least 0 and below 1")
        self.rate = rate
        self.rng_stream = ""  # set to the layer's path when the state is created

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        shape = tf.shape(inputs)
        per_example = inputs.shape[1:].num_elements()
        if per_example is None:
            raise ValueError(f"Dropout needs static dimensions after the first, but its input is {inputs.shape}")
        examples = inputs.shape[0] or shape[0]
        keep = tf.reshape(rng.keep_mask(self.rng_stream or "dropout", examples, per_example, self.rate), shape)
        scale = tf.constant(2**16 / (2**16 - rng.threshold(self.rate)), inputs.dtype)
        return tf.where(keep, inputs * scale, tf.zeros([], inputs.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}

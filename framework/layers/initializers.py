"""Initial values that Keras lacks.

keras.layers.Conv2D(64, 3, padding="same", kernel_initializer=layers.Dirac())
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras


class Dirac(keras.initializers.Initializer):
    """Makes the first filters of a convolution return its input channels, one each.

    Filter i < min(input channels, filters) is 1 for channel i at the centre of the window and 0 elsewhere, so that a
    convolution with padding 'same' and stride 1 copies the channel. Source: Zagoruyko & Komodakis, 2017, "DiracNets";
    in part of the filters alone as in airbench (Jordan, 2024).

    Args:
      others: initialiser of the other filters, by name, config or object; its fan-out counts all filters.
    """

    def __init__(self, others: Any = "he_normal") -> None:
        self.others = keras.initializers.get(others)

    def __call__(self, shape: Any, dtype: Any = None, **kwargs: Any) -> tf.Tensor:
        """Returns a kernel, [*window, input channels, filters]."""
        if len(shape) < 3:
            raise ValueError(f"Dirac makes kernels of convolutions, [*window, inputs, filters], and not {list(shape)}")
        values = self.others(shape, dtype, **kwargs)
        *window, inputs, filters = shape
        count = min(inputs, filters)
        copying = np.zeros([*window, inputs, count])
        copying[tuple((size - 1) // 2 for size in window)] = np.eye(inputs, count)
        return tf.concat([tf.constant(copying, values.dtype), values[..., count:]], -1)

    def get_config(self) -> dict[str, Any]:
        return {"others": keras.initializers.serialize(self.others)}

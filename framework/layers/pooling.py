"""Max pooling whose gradient XLA computes under determinism too.

y = layers.MaxPooling2D(2)(x)                               # [batch, 32, 32, 64] -> [batch, 16, 16, 64]
"""

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

from framework.compile import is_in_xla


class MaxPooling2D(keras.layers.MaxPooling2D):
    """Takes the largest value of each window of pixels, as `keras.layers.MaxPooling2D`.

    XLA refuses TensorFlow's gradient under `runtime.deterministic`. Inside of an XLA program the gradient is therefore
    computed by comparison, for windows that do not overlap (strides = pool_size, padding 'valid', channels last): it
    goes to the first of the largest values of a window, row by row, as in TensorFlow. All else is the layer of Keras.

    Call: x, floating [batch, height, width, channels] -> [batch, height // rows, width // columns, channels].
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        is_tiled = self.pool_size == self.strides and self.padding == "valid" and self.data_format == "channels_last"
        if is_tiled and is_in_xla() and None not in inputs.shape[1:]:
            return _largest_of_tiles(inputs, *self.pool_size)
        return super().call(inputs)


def _largest_of_tiles(x: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Returns the largest value of each tile of rows x columns pixels; pixels beyond the last tile are left out."""

    @tf.custom_gradient
    def fn(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        height, width = x.shape[1] // rows, x.shape[2] // columns
        largest = tf.nn.max_pool2d(x, [rows, columns], [rows, columns], "VALID")

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            is_open = tf.ones_like(largest, tf.bool)  # the largest value of the tile is still to come
            pixels = []
            for row in range(rows):
                for column in range(columns):
                    at = x[:, row : height * rows : rows, column : width * columns : columns]
                    is_first = is_open & (at == largest)
                    is_open &= ~is_first
                    pixels.append(tf.where(is_first, upstream, tf.zeros([], upstream.dtype)))
            tiles = tf.reshape(tf.stack(pixels, axis=3), [-1, height, width, rows, columns, x.shape[3]])
            tiled = tf.transpose(tiles, [0, 1, 3, 2, 4, 5])
            whole = tf.reshape(tiled, [-1, height * rows, width * columns, x.shape[3]])
            return tf.pad(whole, [[0, 0], [0, x.shape[1] % rows], [0, x.shape[2] % columns], [0, 0]])

        return largest, gradient

    return fn(x)

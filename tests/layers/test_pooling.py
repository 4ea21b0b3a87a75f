"""framework/layers/pooling.py: the gradient in XLA against the first largest value of each window, by NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from framework import layers
from framework.compile import jit

PIXELS = np.random.default_rng(0).integers(0, 3, (2, 7, 8, 3)).astype(np.float32)  # many windows have equal values


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (7, 8)])
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_the_gradient_goes_to_the_first_of_the_largest_values(mode, size):
    rows, columns = size
    layer = layers.MaxPooling2D(size)
    numbers = np.arange(2 * (7 // rows) * (8 // columns) * 3, dtype=np.float32) + 1
    upstream = numbers.reshape(2, 7 // rows, 8 // columns, 3)
    expected = np.zeros_like(PIXELS)
    for example, row, column, channel in np.ndindex(upstream.shape):
        window = PIXELS[example, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns, channel]
        first = np.unravel_index(window.argmax(), window.shape)
        expected[example, row * rows + first[0], column * columns + first[1], channel] = upstream[
            example, row, column, channel
        ]

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, x, upstream)

    compiled = {"eager": gradient, "graph": tf.function(gradient), "xla": jit(gradient)}[mode]
    assert np.array_equal(compiled(tf.constant(PIXELS)), expected)

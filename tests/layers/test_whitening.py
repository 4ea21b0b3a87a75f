"""framework/layers/whitening.py and initializers.py against NumPy in float64."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers


def pictures(*shape, seed=0):
    """Neighbouring pixels and channels that go together, as in photographs."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return noise + np.roll(noise, 1, 1) + 0.5 * np.roll(noise, 1, 2) + 0.3 * noise[..., :1] + 0.2


def windows(pixels, size):
    """Returns the windows of pictures as rows, in the order height, width, channels."""
    _, height, width, _ = pixels.shape
    places = [(i, j) for i in range(height - size + 1) for j in range(width - size + 1)]
    return np.concatenate([pixels[:, i : i + size, j : j + size].reshape(len(pixels), -1) for i, j in places])


@pytest.mark.parametrize("size", [2, 3])
def test_the_outputs_of_a_whitening_kernel_are_uncorrelated(size):
    pixels = pictures(300, 6, 7, 3)
    window = size * size * 3
    kernel = layers.whitening_kernel(pixels, size, epsilon=1e-9)
    assert kernel.shape == (size, size, 3, 2 * window) and kernel.dtype == np.float64
    outputs = windows(pixels, size) @ kernel.reshape(window, -1)
    identity = np.eye(window)
    expected = np.block([[identity, -identity], [-identity, identity]])
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), expected, atol=1e-6)


def test_epsilon_order_and_signs_are_those_of_the_recipe():
    pixels = pictures(130, 5, 4, 2, seed=1)  # more than are in memory at a time
    rows = windows(pixels, 2)
    filters = layers.whitening_kernel(pixels).reshape(8, 16)[:, :8]
    values = np.linalg.eigvalsh(rows.T @ rows / len(rows))[::-1]
    lengths = np.linalg.norm(filters, axis=0)
    np.testing.assert_allclose(lengths, 1 / np.sqrt(values + 5e-4), rtol=1e-9)
    for filter, value, length in zip(filters.T, values, lengths, strict=True):
        np.testing.assert_allclose(rows.T @ (rows @ filter) / len(rows), value * filter, atol=1e-10 * length)
        assert filter[np.abs(filter).argmax()] > 0


def test_the_layer_convolves_with_the_kernel_and_trains_the_bias_alone():
    pixels = pictures(20, 5, 6, 3)
    layer = layers.WhiteningConv2D(dtype="float64")
    layer.adapt(pixels)
    layer.bias.assign(np.arange(24.0))
    rows = windows(pixels, 2) @ layers.whitening_kernel(pixels).reshape(12, 24) + np.arange(24)
    expected = np.moveaxis(rows.reshape(4, 5, 20, 24), 2, 0)
    np.testing.assert_allclose(layer(pixels), expected, rtol=0, atol=1e-10)
    assert [variable.name for variable in layer.trainable_weights] == [layer.bias.name]
    model = keras.Sequential([keras.Input([5, 6, 3]), layers.WhiteningConv2D(name="first")])
    model.layers[0].adapt(pixels)  # of a layer that is built already
    np.testing.assert_allclose(model.layers[0].kernel, layer.kernel, rtol=1e-6)


def test_until_adapted_the_layer_returns_windows_and_their_negatives():
    pixels = pictures(2, 3, 3, 1)
    outputs = layers.WhiteningConv2D(dtype="float64")(pixels).numpy()
    rows = windows(pixels, 2)
    expected = np.moveaxis(np.concatenate([rows, -rows], 1).reshape(2, 2, 2, 8), 2, 0)
    assert np.array_equal(outputs, expected)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            np.zeros([4, 5, 3]),
            "pictures [4, 5, 3] must be [examples, height, width, channels] of at least 2 x 2 pixels",
        ),
        (np.zeros([4, 1, 5, 3]), "pictures [4, 1, 5, 3] must be"),
        (np.zeros([0, 5, 5, 3]), "pictures [0, 5, 5, 3] must be"),
        (
            np.zeros([4, 5, 5, 3], np.uint8),
            "pictures are uint8: give them as the model gets them, floating and normalised",
        ),
        (np.full([4, 5, 5, 3], np.nan), "pictures hold numbers that are not finite"),
    ],
)
def test_pictures_that_cannot_be_whitened_are_refused(pixels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        layers.WhiteningConv2D().adapt(pixels)


def test_wrong_arguments_are_refused():
    message = "WhiteningConv2D: kernel_size=0 must be at least 1, epsilon=0.1 not below 0"
    with pytest.raises(ValueError, match=message):
        layers.WhiteningConv2D(0, 0.1)


@pytest.mark.parametrize(("inputs", "filters"), [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("size", [2, 3])
def test_dirac_filters_copy_their_channels(inputs, filters, size):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, inputs))
    conv = keras.layers.Conv2D(
        filters, size, padding="same", use_bias=False, kernel_initializer=layers.Dirac(), dtype="float64"
    )
    outputs = conv(x).numpy()
    count = min(inputs, filters)
    assert np.array_equal(outputs[..., :count], x[..., :count])
    assert np.all(np.abs(conv.kernel.numpy()[..., count:]).sum((0, 1, 2)) > 0)


def test_the_other_filters_are_those_of_the_other_initialiser():
    others = keras.initializers.RandomUniform(-0.5, 0.5, seed=3)
    kernel = layers.Dirac(others)([3, 3, 2, 6], tf.float64).numpy()
    assert np.array_equal(kernel[..., 2:], others([3, 3, 2, 6], tf.float64).numpy()[..., 2:])
    again = keras.initializers.deserialize(
        keras.initializers.serialize(layers.Dirac("zeros")), custom_objects={"Dirac": layers.Dirac}
    )
    assert isinstance(again, layers.Dirac) and again([1, 1, 1, 2]).numpy().tolist() == [[[[1.0, 0.0]]]]
    message = "Dirac makes kernels of convolutions, [*window, inputs, filters], and not [4, 5]"
    with pytest.raises(ValueError, match=re.escape(message)):
        layers.Dirac()([4, 5])

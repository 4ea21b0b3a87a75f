"""framework/layers/augmentation.py: the values of Keras for the same draws, drawn for each picture."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import compat, layers, rng
from framework.layers.draws import KeyedGenerator

PICTURES = np.random.default_rng(0).uniform(0, 255, (5, 6, 8, 3)).astype(np.float32)
FILLS = ("constant", "nearest", "reflect", "wrap")


def by_keras(name, **arguments):
    """Returns what the layer of Keras makes with our draws, of each picture alone if it draws for a whole batch."""
    layer = getattr(keras.layers, name)(**arguments)
    compat.set_generator(layer, KeyedGenerator(name.lower()))
    with rng.scope(rng.key(3), 4):
        return layer(PICTURES, training=True).numpy()


def by_ours(name, **arguments):
    with rng.scope(rng.key(3), 4):
        return getattr(layers, name)(**arguments)(PICTURES, training=True).numpy()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("RandomTranslation", {"height_factor": 0.4, "width_factor": (0.1, 0.3), "fill_mode": x}) for x in FILLS),
        *(("RandomRotation", {"factor": 0.3, "fill_mode": x, "fill_value": 7.0}) for x in FILLS),
        ("RandomRotation", {"factor": 0.3, "interpolation": "nearest"}),
        *(("RandomZoom", {"height_factor": (-0.5, 0.7), "fill_mode": x}) for x in FILLS),
        ("RandomZoom", {"height_factor": 0.2, "width_factor": 0.5}),
        ("RandomBrightness", {"factor": (-0.2, 0.8)}),
    ],
)
def test_pictures_are_those_of_keras(name, arguments):
    expected = by_keras(name, **arguments)
    np.testing.assert_allclose(by_ours(name, **arguments), expected, rtol=0, atol=2e-3)
    assert not np.allclose(expected, PICTURES)


def draws(stream, times=1):
    with rng.scope(rng.key(3), 4):
        return [rng.uniform(stream, len(PICTURES), 1).numpy()[:, 0] for _ in range(times)]


def test_flips_are_drawn_for_each_axis():
    across, down = (draw < 0.5 for draw in draws("randomflip", times=2))
    expected = [x[:: -1 if d else 1, :: -1 if a else 1] for x, a, d in zip(PICTURES, across, down, strict=True)]
    assert np.array_equal(by_ours("RandomFlip"), expected)
    expected = [x[:, :: -1 if a else 1] for x, a in zip(PICTURES, across, strict=True)]
    assert np.array_equal(by_ours("RandomFlip", mode="horizontal"), expected)


def test_contrast_is_that_of_keras_for_each_picture():
    (draw,) = draws("randomcontrast")
    expected = [
        tf.clip_by_value(tf.image.adjust_contrast(x, 0.5 + d), 0, 255) for x, d in zip(PICTURES, draw, strict=True)
    ]
    np.testing.assert_allclose(by_ours("RandomContrast", factor=0.5), expected, atol=1e-4)


def test_crops_are_uniform_and_drawn_for_each_picture():
    ours = by_ours("RandomCrop", height=4, width=3)
    tops, lefts = (
        np.floor(draw * room).astype(int) for draw, room in zip(draws("randomcrop", times=2), (3, 6), strict=True)
    )
    assert np.array_equal(ours, [x[i : i + 4, j : j + 3] for x, i, j in zip(PICTURES, tops, lefts, strict=True)])
    layer = layers.RandomCrop(1, 1)
    places = tf.tile(tf.reshape(tf.range(6.0), [1, 2, 3, 1]), [6000, 1, 1, 1])
    with rng.scope(rng.key(0), 0):
        counts = np.bincount(layer(places, training=True).numpy().ravel().astype(int), minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square of 5 degrees of freedom, 0.001
    small = layers.RandomCrop(9, 9)
    with rng.scope(rng.key(0), 0):
        resized = small(PICTURES, training=True)
    np.testing.assert_allclose(resized, keras.layers.RandomCrop(9, 9)(PICTURES, training=False), rtol=1e-6)


def test_pictures_of_unknown_size_are_refused():
    with rng.scope(rng.key(0), 0), pytest.raises(ValueError, match=r"takes pictures .* was given the shape"):
        layers.RandomFlip()(PICTURES[0], training=True)
    with pytest.raises(ValueError, match="seed=3"):
        layers.RandomFlip(seed=3)


@pytest.mark.parametrize("size", [(4, 5), (9, 7), (2, 9), (6, 6)])  # smaller and larger than the pictures
def test_a_crop_in_inference_needs_no_scope_in_a_graph_and_is_that_of_keras(size):
    images = np.random.default_rng(0).uniform(size=(2, 6, 6, 3)).astype(np.float32)
    expected = keras.layers.RandomCrop(*size)(images, training=False).numpy()
    ours = tf.function(layers.RandomCrop(*size), autograph=False)
    np.testing.assert_allclose(ours(tf.constant(images), training=False), expected, rtol=1e-6)

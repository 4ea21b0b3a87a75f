"""framework/layers/dropout.py and draws.py: shapes of masks, and the distributions of noise."""

import math

import numpy as np
import pytest
import tensorflow as tf

from framework import layers, rng
from framework.errors import UserError
from framework.layers.draws import KeyedGenerator

KEY = rng.key(1)


def trained(layer, x, step=0):
    layer.rng_stream = "stream"
    with rng.scope(KEY, step):
        return layer(tf.constant(x), training=True).numpy()


SPATIAL = {
    "sequence": (lambda rate: layers.SpatialDropout1D(rate), (40, 7, 30), (40, 1, 30)),
    "picture": (lambda rate: layers.SpatialDropout2D(rate), (40, 3, 2, 30), (40, 1, 1, 30)),
    "picture, channels first": (
        lambda rate: layers.SpatialDropout2D(rate, data_format="channels_first"),
        (40, 30, 3, 2),
        (40, 30, 1, 1),
    ),
    "volume": (lambda rate: layers.SpatialDropout3D(rate), (40, 3, 2, 2, 30), (40, 1, 1, 1, 30)),
    "of a noise shape": (lambda rate: layers.Dropout(rate, noise_shape=(None, 1, 30)), (40, 7, 30), (40, 1, 30)),
}


@pytest.mark.parametrize("name", SPATIAL)
def test_a_mask_spans_what_is_dropped_as_a_whole(name):
    make, shape, mask = SPATIAL[name]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with rng.scope(KEY, 0):
        halves = rng.random_bits16("stream", 40, 30).numpy().reshape(mask)
    threshold = round(0.25 * 2**16)
    assert np.array_equal(trained(make(0.25), x), np.where(halves >= threshold, x * np.float32(4 / 3), 0))


def test_a_mask_that_examples_share_is_refused():
    with pytest.raises(ValueError, match=r"but noise_shape=\(1, 5\) has one for all\. Write noise_shape=\(None, 5\)"):
        trained(layers.Dropout(0.5, noise_shape=(1, 5)), np.ones((4, 5), np.float32))
    trained(layers.Dropout(0.5, noise_shape=(4, 1)), np.ones((4, 5), np.float32))  # that of a batch of 4
    with pytest.raises(ValueError, match=r"^noise_shape=\(1, 5\): an AlphaDropout drops single elements"):
        layers.AlphaDropout(0.5, noise_shape=(1, 5))


@pytest.mark.parametrize(
    ("kind", "argument"),
    [(layers.Dropout, 0.5), (layers.GaussianNoise, 1.0), (layers.LSTM, 3), (layers.SpatialDropout1D, 0.5)],
)
def test_a_seed_is_refused(kind, argument):
    with pytest.raises(ValueError, match=r"^seed=3: .* and type --config\.seed=3$"):
        kind(argument, seed=3)


def test_noise_is_normal():
    """Kolmogorov and Smirnov's distance of 400,000 numbers, their moments, and no correlation of neighbours."""
    noise = trained(layers.GaussianNoise(2.0), np.zeros((400, 1000), np.float32)).astype(np.float64) / 2
    n = noise.size
    ordered = np.sort(noise.ravel())
    cdf = 0.5 * (1 + np.vectorize(math.erf)(ordered[::37] / math.sqrt(2)))
    assert np.abs(cdf - (np.arange(n)[::37] + 0.5) / n).max() < 1.95 / math.sqrt(n)
    assert abs(noise.mean()) < 4.5 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4.5 * math.sqrt(2 / n)
    assert abs((noise**4).mean() - 3) < 4.5 * math.sqrt(96 / n)
    assert abs(noise).max() > 4.2
    for one, two in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        assert abs((one * two).mean()) < 4.5 / math.sqrt(one.size)


def test_gaussian_dropout_is_one_plus_noise():
    x = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    deviation = math.sqrt(0.2 / 0.8)
    noise = trained(layers.GaussianNoise(deviation), np.zeros_like(x))
    assert np.array_equal(trained(layers.GaussianDropout(0.2), x), x * (noise + 1))


def test_alpha_dropout_is_its_definition_and_keeps_mean_and_variance():
    x, rate = np.random.default_rng(0).normal(size=(200, 1000)), 0.3
    layer = layers.AlphaDropout(rate, dtype="float64")
    found = trained(layer, x)
    with rng.scope(KEY, 0):
        kept = rng.uniform("stream", *x.shape).numpy() >= np.float32(rate)
    lowest = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717
    scale = 1 / math.sqrt((1 - rate) * (1 + rate * lowest**2))
    np.testing.assert_allclose(found, scale * (np.where(kept, x, lowest) - rate * lowest), rtol=1e-12, atol=1e-12)
    assert abs(found.mean()) < 5 / math.sqrt(x.size) * 2 and abs(found.var() - 1) < 0.02


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_noise_in_another_dtype_is_the_same_rounded(dtype):
    zeros = np.zeros((6, 50), np.float32)
    expected = tf.cast(trained(layers.GaussianNoise(0.5), zeros), dtype)
    found = trained(layers.GaussianNoise(0.5, dtype=dtype), tf.cast(zeros, dtype))
    np.testing.assert_allclose(tf.cast(found, tf.float64), tf.cast(expected, tf.float64), rtol=0, atol=1e-7)
    assert found.dtype == expected.dtype


def test_noise_of_no_deviation_draws_nothing():
    assert np.array_equal(layers.GaussianNoise(0.0)(tf.ones([2, 3]), training=True), np.ones([2, 3]))


def test_what_begins_with_a_seed_is_refused():
    generator = KeyedGenerator("layer")
    for draw in (generator.make_seed_for_stateless_op, generator.make_legacy_seed, generator.truncated_normal):
        with pytest.raises(
            UserError, match=r"^'layer' draws for a whole batch.*Write a layer that draws for each example"
        ):
            draw()

"""framework/layers/positions.py by their formulas in float64; padding on either side; what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from framework import layers

DEPTH, BATCH, LENGTH = 6, 2, 5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_sinusoidal_positions_are_those_of_the_paper():
    found = layers.sinusoidal(50, 6)
    assert found.dtype == np.float32 and found.shape == (50, 6)
    for place, index in ((0, 0), (7, 0), (49, 4), (13, 2)):
        angle = place / 10_000 ** (index / 6)
        assert found[place, index] == np.float32(np.sin(angle))
        assert found[place, index + 1] == np.float32(np.cos(angle))


def turned(x, positions):
    """x [batch, length, heads, depth] as complex numbers, multiplied by e^(i angle)."""
    half = x.shape[-1] // 2
    angles = np.asarray(positions)[..., None, None] * 10_000.0 ** (-2 * np.arange(half) / x.shape[-1])
    product = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([product.real, product.imag], -1)


def test_rotations_are_products_of_complex_numbers():
    x, positions = normal(BATCH, LENGTH, 3, DEPTH), np.array([[0, 1, 2, 3, 4], [0, 0, 7, 900, 2]])
    np.testing.assert_allclose(layers.rotate(tf.constant(x), positions), turned(x, positions), rtol=0, atol=1e-12)
    half = layers.rotate(tf.constant(x, tf.bfloat16), positions)
    assert half.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(half, tf.float64), turned(x, positions), rtol=0, atol=0.06)


def test_rotary_attention_depends_on_distances_alone():
    layer, x = layers.MultiHeadAttention(2, DEPTH, rotary=True, dtype="float64"), tf.constant(normal(BATCH, LENGTH, 4))
    plain = layer(x, x)
    shifted = layer(x, x, positions=tf.range(LENGTH)[tf.newaxis] + 11)
    np.testing.assert_allclose(shifted, plain, rtol=0, atol=1e-13)
    moved = layer(x, x, positions=tf.range(LENGTH)[tf.newaxis] + 11, key_positions=tf.range(LENGTH)[tf.newaxis])
    assert np.abs(moved - plain).max() > 1e-3


def test_rotary_attention_is_its_definition():
    layer, x = layers.MultiHeadAttention(2, DEPTH, rotary=True, dtype="float64"), normal(BATCH, LENGTH, 4)
    positions = np.array([[0, 1, 2, 3, 4], [5, 3, 3, 8, 0]])
    y = layer(tf.constant(x), tf.constant(x), positions=tf.constant(positions))
    for number, variable in enumerate(layer.variables):
        variable.assign(normal(*variable.shape, seed=number))
    y = layer(tf.constant(x), tf.constant(x), positions=tf.constant(positions))
    kernels = {v.name.split("/", 1)[1].replace(":0", ""): v.numpy() for v in layer.variables}

    def projected(name):
        return np.einsum("btw,whd->bthd", x, kernels[f"{name}/kernel"]) + kernels[f"{name}/bias"]

    query, key = (turned(projected(name), positions) for name in ("query", "key"))
    scores = np.exp(np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(DEPTH))
    mixed = np.einsum("bhts,bshd->bthd", scores / scores.sum(-1, keepdims=True), projected("value"))
    expected = np.einsum("bthd,hdw->btw", mixed, kernels["attention_output/kernel"])
    np.testing.assert_allclose(y, expected + kernels["attention_output/bias"], rtol=0, atol=1e-12)


def test_positions_count_tokens_and_not_padding():
    is_token = tf.constant([[True, True, False], [False, True, True], [False, False, False]])
    positions = layers.token_positions(is_token)
    np.testing.assert_array_equal(positions, [[0, 1, 2], [0, 0, 1], [0, 0, 0]])
    assert positions.dtype == tf.int32


@pytest.mark.parametrize("kind", [layers.SinusoidalPositions, layers.LearnedPositions])
def test_rows_of_the_table_are_added(kind):
    layer, x = kind(9, dtype="float64"), normal(BATCH, LENGTH, 4)
    layer(tf.constant(x))
    table = layer.table.numpy() if kind is layers.LearnedPositions else layers.sinusoidal(9, 4).astype(np.float64)
    np.testing.assert_array_equal(layer(tf.constant(x)), x + table[:LENGTH])
    positions = np.array([[8, 0, 3, 3, 1], [0, 0, 0, 1, 2]])
    np.testing.assert_array_equal(layer(tf.constant(x), tf.constant(positions)), x + table[positions])
    call = tf.function(layer, input_signature=[tf.TensorSpec([None, None, 4], tf.float64)])
    np.testing.assert_array_equal(call(tf.constant(x)), x + table[:LENGTH])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="a sequence has more tokens than max_length=9 of the model"
    ):
        call(tf.zeros([1, 10, 4], tf.float64))


def refused(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def test_what_is_refused():
    long = tf.zeros([1, 5, 4])
    layer = layers.SinusoidalPositions(4)
    assert "a sequence of length 5 has no position beyond max_length=4; raise it" in refused(lambda: layer(long))
    assert refused(lambda: layers.LearnedPositions(0)) == "max_length=0 must be at least 1"
    odd = refused(lambda: layers.MultiHeadAttention(2, 3, rotary=True))
    assert odd == "rotary=True rotates pairs, but key_dim=3 is odd"
    rotary = layers.MultiHeadAttention(2, 4, rotary=True)
    ragged = tf.RaggedTensor.from_tensor(long)
    assert "rotary=True takes no ragged tensors" in refused(lambda: rotary(ragged, ragged))
    wide = tf.zeros([1, 2, 3, 4])
    rotary = layers.MultiHeadAttention(2, 4, rotary=True)
    assert "rotary=True needs [batch, length, width], but projections have" in refused(lambda: rotary(wide, wide))

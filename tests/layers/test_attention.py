"""framework/layers/attention.py: tf_keras' attention, with our dropout at the place where it had its own."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths, rng
from framework.layers import Dropout, MultiHeadAttention

RATE, HEADS, DEPTH = 0.4, 2, 3


def made(dropout=RATE, dtype="float64"):
    layer = MultiHeadAttention(HEADS, DEPTH, dropout=dropout, dtype=dtype)
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 5, 4)), layer.variable_dtype)
    layer(x, x)
    for variable in layer.variables:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    return layer, x


def test_tf_keras_still_takes_its_dropout_from_where_we_put_ours():
    layer, _ = made()
    assert type(layer._dropout_layer) is Dropout and layer._dropout_layer.rate == RATE
    kinds = [type(part) for part in paths.objects(layer).values()]
    assert kinds.count(Dropout) == 1 and keras.layers.Dropout not in kinds


def test_probabilities_are_dropped_by_the_words_of_the_stream():
    layer, x = made()
    layer._dropout_layer.rng_stream = "attention/dropout"
    with rng.scope(rng.key(1), 7):
        found = layer(x, x, training=True)
    with rng.scope(rng.key(1), 7):
        halves = rng.halves("attention/dropout", 3, HEADS * 5 * 5).numpy().reshape(3, HEADS, 5, 5)
    keep = halves >= rng.threshold(RATE)
    weights = {v.name.split("/", 1)[1]: v.numpy() for v in layer.variables}

    def projected(name):
        return np.einsum("btw,whd->bthd", x, weights[f"{name}/kernel:0"]) + weights[f"{name}/bias:0"]

    scores = np.einsum("bthd,bshd->bhts", projected("query"), projected("key")) / np.sqrt(DEPTH)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = scores / scores.sum(-1, keepdims=True)
    values = np.einsum("bhts,bshd->bthd", probabilities * keep / (1 - rng.threshold(RATE) / 2**16), projected("value"))
    expected = np.einsum("bthd,hdw->btw", values, weights["attention_output/kernel:0"])
    np.testing.assert_allclose(found, expected + weights["attention_output/bias:0"], rtol=0, atol=1e-13)


def test_without_dropout_it_is_that_of_tf_keras_to_the_bit():
    layer, x = made(dropout=0.0)
    plain = keras.layers.MultiHeadAttention(HEADS, DEPTH, dtype="float64")
    plain(x, x)
    for variable, value in zip(plain.variables, layer.variables, strict=True):
        variable.assign(value)
    for training in (False, True):
        assert np.array_equal(layer(x, x, training=training), plain(x, x, training=training))


@pytest.mark.parametrize(("dtype", "computed"), [("float32", "float32"), ("mixed_bfloat16", "bfloat16")])
def test_dtype_is_that_of_the_layer(dtype, computed):
    layer, x = made(dtype=dtype)
    assert layer(x, x).dtype == layer._dropout_layer.compute_dtype == computed

"""framework/layers/attention.py: tf_keras' attention, by matrix products and with our dropout."""

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
        halves = rng.random_bits16("attention/dropout", 3, HEADS * 5 * 5).numpy().reshape(3, HEADS, 5, 5)
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


CALLS = {
    "of itself": ([(3, 5, 4)], {}, {}),
    "causal": ([(3, 5, 4)], {}, {"use_causal_mask": True}),
    "of a memory": ([(3, 5, 4), (3, 6, 7)], {"value_dim": 5, "output_shape": 2}, {}),
    "masked": ([(3, 5, 4), (3, 6, 4)], {"use_bias": False}, {"attention_mask": np.arange(6) < [[[2]], [[6]], [[1]]]}),
    "of many dimensions": ([(3, 5, 2, 4)], {"attention_axes": (1, 2)}, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_without_dropout_values_and_gradients_are_those_of_tf_keras(name):
    shapes, arguments, call = CALLS[name]
    given = [tf.constant(np.random.default_rng(0).normal(size=shape)) for shape in shapes]
    given = [given[0], given[-1]]
    pair = [
        kind(HEADS, DEPTH, dtype="float64", **arguments)
        for kind in (MultiHeadAttention, keras.layers.MultiHeadAttention)
    ]
    found = []
    for layer in pair:
        layer(*given)
        for number, variable in enumerate(layer.variables):
            variable.assign(np.random.default_rng(number).normal(size=variable.shape))
        with tf.GradientTape() as tape:
            tape.watch(given)
            y, scores = layer(*given, return_attention_scores=True, **call)
        found.append([y, scores, *tape.gradient(y, [*given, *layer.variables], tf.math.sin(y))])
    assert [v.name.split("/", 1)[1] for v in pair[0].variables] == [v.name.split("/", 1)[1] for v in pair[1].variables]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_batch_of_unknown_size():
    layer, x = made(dropout=0.0)
    call = tf.function(lambda x: layer(x, x), input_signature=[tf.TensorSpec([None, None, 4], tf.float64)])
    np.testing.assert_allclose(call(x), layer(x, x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "computed"), [("float32", "float32"), ("mixed_bfloat16", "bfloat16")])
def test_dtype_is_that_of_the_layer(dtype, computed):
    layer, x = made(dtype=dtype)
    assert layer(x, x).dtype == layer._dropout_layer.compute_dtype == computed

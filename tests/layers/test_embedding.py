"""framework/layers/embedding.py: both uses of the table, its gradient, its precision."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers

VOCABULARY, WIDTH = 7, 4
TOKENS = np.array([[1, 3, 3], [6, 0, 1]])


def made(dtype="float64"):
    layer = layers.TiedEmbedding(VOCABULARY, WIDTH, dtype=dtype)
    layer(TOKENS)
    layer.table.assign(np.random.default_rng(0).normal(size=[VOCABULARY, WIDTH]))
    return layer


def test_one_table_embeds_and_makes_logits():
    layer = made()
    table = layer.table.numpy()
    embedded = layer(TOKENS)
    np.testing.assert_allclose(embedded, table[TOKENS] * 2, rtol=0, atol=1e-15)
    x = np.random.default_rng(1).normal(size=(2, 3, WIDTH))
    np.testing.assert_allclose(layer.logits(tf.constant(x)), x @ table.T, rtol=0, atol=1e-14)
    assert [variable.shape for variable in layer.variables] == [(VOCABULARY, WIDTH)]


def test_the_gradient_is_the_sum_of_that_of_both_uses():
    layer = made()
    table = layer.table.numpy()

    def loss(table):
        embedded = table[TOKENS] * 2
        return np.sum(np.sin(np.tanh(embedded) @ table.T))

    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tf.sin(layer.logits(tf.tanh(layer(TOKENS)))))
    gradient = tf.convert_to_tensor(tape.gradient(value, layer.table)).numpy()
    np.testing.assert_allclose(value, loss(table), rtol=1e-12)
    for place in np.ndindex(VOCABULARY, WIDTH):
        step = np.zeros_like(table)
        step[place] = 1e-6
        assert abs((loss(table + step) - loss(table - step)) / 2e-6 - gradient[place]) < 1e-7


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_logits_are_in_full_precision(policy):
    layer = made(policy)
    assert layer(TOKENS).dtype == policy.removeprefix("mixed_") and layer.table.dtype == tf.float32
    x = np.random.default_rng(1).normal(size=(2, 3, WIDTH))
    logits = layer.logits(tf.constant(x, tf.float32))
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, x @ layer.table.numpy().T, rtol=0, atol=0.1)


def test_in_a_functional_model_of_unknown_lengths():
    layer = layers.TiedEmbedding(VOCABULARY, WIDTH)
    tokens = keras.Input([None], dtype="int32")
    model = keras.Model(tokens, layer.logits(layer(tokens)))
    assert model(TOKENS).shape == (2, 3, VOCABULARY) and model.output_shape == (None, None, VOCABULARY)
    assert len(model.trainable_variables) == 1


def test_initial_vectors_have_elements_of_variance_1():
    layer = layers.TiedEmbedding(1000, 64)
    assert abs(np.std(layer(np.arange(1000))) - 1) < 0.02
    again = layers.TiedEmbedding.from_config(layer.get_config())
    assert again.get_config() == layer.get_config() and abs(np.std(again(np.arange(1000))) - 1) < 0.02

"""framework/layers/masks.py by their definitions, and what they hide from attention: values, gradients, NaN."""

import numpy as np
import pytest
import tensorflow as tf

from framework import layers

IS_TOKEN = np.array([[True, True, True, False], [False, True, True, True], [False] * 4])  # padded right, left, all


def made(dtype="float64", **arguments):
    """Attention with random weights, and its inputs [3, 4, 6]."""
    layer = layers.MultiHeadAttention(2, 4, dtype=dtype, **arguments)
    x = np.random.default_rng(0).normal(size=(3, 4, 6))
    layer(tf.zeros([1, 4, 6], layer.variable_dtype), tf.zeros([1, 4, 6], layer.variable_dtype))
    for number, variable in enumerate(layer.variables):
        variable.assign(np.random.default_rng(number).normal(size=variable.shape))
    return layer, x


def test_masks_are_their_definitions():
    seen = layers.combined_mask(layers.padding_mask(tf.constant(IS_TOKEN)), None, layers.causal_mask(4))
    expected = [[[IS_TOKEN[row, key] and key <= query for key in range(4)] for query in range(4)] for row in range(3)]
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(layers.causal_mask(tf.constant(3)), [np.tril(np.ones([3, 3], bool))])
    assert layers.combined_mask(None, None) is None


@pytest.mark.parametrize("mask_value", [None, -30.0])
def test_what_a_mask_hides_changes_nothing_and_gets_no_gradient(mask_value):
    layer, x = made(mask_value=mask_value)
    layer.variables[-1].assign(0 * layer.variables[-1])  # the bias of the output
    mask = layers.padding_mask(tf.constant(IS_TOKEN))
    query = tf.constant(x[::-1].copy())

    def call(memory):
        memory = tf.constant(memory)
        with tf.GradientTape() as tape:
            tape.watch(memory)
            y, probabilities = layer(query, memory, attention_mask=mask, return_attention_scores=True)
        return y.numpy(), probabilities.numpy(), tape.gradient(y, memory, tf.sin(y)).numpy()

    other = np.where(IS_TOKEN[..., np.newaxis], x, 50.0)
    (y, probabilities, gradient), (same, _, _) = call(x), call(other)
    np.testing.assert_array_equal(y, same)
    assert np.all(gradient[~IS_TOKEN] == 0) and np.all(gradient[IS_TOKEN] != 0)
    assert np.all(np.moveaxis(probabilities, -1, 1)[:2][~IS_TOKEN[:2]] == 0)
    np.testing.assert_allclose(probabilities[:2].sum(-1), 1, rtol=0, atol=1e-9)
    assert np.all(y[2] == 0)


def test_no_token_sees_a_later_one():
    layer, x = made()
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, x, attention_mask=layers.causal_mask(4))
    derivatives = np.abs(tape.jacobian(y, x)).max((0, 2, 3, 5))  # [query, key]
    assert np.all(np.triu(derivatives, 1) == 0) and np.all(np.tril(derivatives) + np.triu(np.ones([4, 4]), 1) > 0)
    np.testing.assert_array_equal(y, layer(x, x, use_causal_mask=True))


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("mask_value", [None, -30.0])
def test_rows_that_see_no_key_are_zeros_and_finite_in_half_precision(dtype, mask_value):
    layer, x = made(dtype, mask_value=mask_value)
    for variable in layer.variables:
        variable.assign(4 * variable)  # scores of some hundreds: -65504 less such a score is no float16 any more
    layer.variables[-1].assign(0 * layer.variables[-1])
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, x, attention_mask=layers.padding_mask(tf.constant(IS_TOKEN)))
        loss = tf.reduce_sum(tf.cast(y, tf.float32))
    gradients = tape.gradient(loss, [x, *layer.variables])
    assert all(np.all(np.isfinite(tensor)) for tensor in (y, *gradients))
    assert np.all(y[2] == 0) and np.all(y[:2] != 0) and np.all(gradients[0][2] == 0)


def test_a_finite_mask_value_bounds_the_scores_and_is_saved():
    layer, x = made(mask_value=-30)
    assert layer.get_config()["mask_value"] == -30 and type(layer).from_config(layer.get_config()).mask_value == -30
    graph = (
        tf.function(lambda x: layer(x, x, use_causal_mask=True), autograph=False)
        .get_concrete_function(tf.constant(x))
        .graph
    )
    constants = [tf.make_ndarray(op.get_attr("value")) for op in graph.get_operations() if op.type == "Const"]
    floats = [value for value in constants if value.dtype.kind == "f" and value.size]
    assert min(value.min() for value in floats) == -30


@pytest.mark.parametrize("value", [0, 30.0, float("nan"), float("-inf")])
def test_a_mask_value_that_hides_nothing_or_is_infinite(value):
    with pytest.raises(ValueError) as error:
        layers.MultiHeadAttention(2, 4, mask_value=value)
    assert str(error.value) == (
        f"mask_value={value} must be finite, below 0, and below the scores of keys that are seen"
    )


def test_a_mask_value_that_half_precision_cannot_hold():
    layer, x = layers.MultiHeadAttention(2, 4, dtype="mixed_float16", mask_value=-1e9), tf.zeros([1, 4, 6])
    with pytest.raises(ValueError, match=r"mask_value=-1000000000.0 is -inf in float16; take e.g. -30"):
        layer(x, x, use_causal_mask=True)

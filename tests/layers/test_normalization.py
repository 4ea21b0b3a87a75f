"""framework/layers/normalization.py against tf_keras in float64, and its gradient's own derivatives."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, testing

X = np.random.default_rng(0).normal(1, 2, size=(3, 4, 5))


def made(kind=layers.LayerNormalization, dtype="float64", **arguments):
    layer = kind(dtype=dtype, **{"epsilon": 1e-6, **arguments})
    layer(tf.zeros(X.shape, layer.variable_dtype))
    for number, variable in enumerate(layer.variables):
        variable.assign(np.random.default_rng(number).normal(size=variable.shape))
    return layer


@pytest.mark.parametrize(
    "arguments", [{}, {"epsilon": 0.1}, {"center": False}, {"scale": False}, {"axis": 1}, {"axis": (1, 2)}]
)
def test_values_and_gradients_are_those_of_tf_keras(arguments):
    found = []
    for kind in (layers.LayerNormalization, keras.layers.LayerNormalization):
        layer, x = made(kind, **arguments), tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        found.append([y, *tape.gradient(y, [x, *layer.variables], tf.math.sin(y))])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_first_and_second_derivatives_and_compile_modes():
    layer = made()
    testing.check_gradients(layer, [X], layer, order=2, samples=2)
    testing.check_compiled(layer, [X], variables=layer)


@pytest.mark.parametrize("arguments", [{}, {"axis": 1, "groups": 3}, {"center": False}, {"scale": False}])
@pytest.mark.parametrize("is_masked", [False, True])
def test_groups_are_normalised_as_by_tf_keras(arguments, is_masked):
    picture = np.random.default_rng(1).normal(1, 2, size=(2, 3, 4, 6))
    mask = {"mask": tf.constant(picture[..., :1] > 0)} if is_masked else {}
    results = []
    for kind in (layers.GroupNormalization, keras.layers.GroupNormalization):
        layer, x = kind(**{"groups": 2, "dtype": "float64", **arguments}), tf.constant(picture)
        layer.build(picture.shape)
        for number, variable in enumerate(layer.variables):
            variable.assign(np.random.default_rng(number).normal(size=variable.shape))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **mask)
        results.append([y, *tape.gradient(y, [x, *layer.variables], tf.math.sin(y))])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_half_precision_is_normalized_in_full(dtype):
    x = tf.cast(tf.constant(X + 100), "bfloat16" if dtype == "mixed_bfloat16" else "float32")
    found = made(dtype=dtype)(x)
    assert found.dtype == x.dtype
    expected = made()(tf.cast(x, tf.float64))  # float32 computed it, so rounding to bfloat16 is all that is lost
    step = 2**-8 if dtype == "mixed_bfloat16" else 2e-5
    np.testing.assert_allclose(tf.cast(found, tf.float64), expected, rtol=step, atol=step / 10)


def test_config_round_trip():
    again = layers.LayerNormalization.from_config(layers.LayerNormalization(epsilon=0.25, name="mine").get_config())
    assert (again.epsilon, again.name, type(again)) == (0.25, "mine", layers.LayerNormalization)

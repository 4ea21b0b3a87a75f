"""`testing.check_layer` finds outputs that follow the input in jumps, whose gradient is 0 or passes the jumps over."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import testing
from framework.testing.built_layer import Subject
from framework.testing.layer_checks import Examined
from framework.testing.layer_jumps import check_jumps

X = np.random.default_rng(0).normal(size=(4, 5))

JUMPS = {
    "a cast to integers": lambda x: tf.cast(tf.cast(x, tf.int32), x.dtype),
    "round": tf.round,
    "floor": tf.floor,
    "sign": tf.sign,
    "a comparison": lambda x: tf.cast(x > 0.1, x.dtype),
    "argmax": lambda x: tf.one_hot(tf.argmax(x, 1), 5, dtype=x.dtype),
    "a fine staircase": lambda x: tf.round(x * 256) / 256,
    "a part that is rounded": lambda x: tf.concat([x, 0.01 * tf.round(x[:, :1])], 1),
    "a sum with what is rounded": lambda x: x**3 + 0.01 * tf.floor(x),
    "a straight-through estimator": lambda x: x + tf.stop_gradient(tf.round(x) - x),
    "half precision": lambda x: tf.cast(tf.cast(x, tf.float16), x.dtype),
}
CONTINUOUS = {
    "sine": tf.sin,
    "steep": lambda x: tf.tanh(1000 * x),
    "kinks": lambda x: tf.nn.relu(x) + tf.abs(x - 0.3),
    "largest": lambda x: tf.reduce_max(x, 1, keepdims=True),
    "root": lambda x: tf.sqrt(tf.abs(x)),
    "pole": lambda x: 1 / x,
    "not finite below 0": tf.math.log,
    "integers": lambda x: tf.cast(x, tf.int32),
    "large": lambda x: 1e9 * x**2,
}


class Layer(keras.layers.Layer):
    """A function of the input, times weights near 1."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def build(self, shape):
        self.scale = self.add_weight("scale", (), initializer="ones")

    def call(self, x, training=None):
        result = self.function(x)
        return result * self.scale if result.dtype.is_floating else result

    def get_config(self):
        return {**super().get_config(), "function": self.function}


def examined(function):
    subject = Subject(lambda: Layer(function), [tf.constant(X)], lambda layer, inputs, training: layer(*inputs))
    return Examined(subject, training_differs=False, thorough=False)


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_is_found(name):
    with pytest.raises(AssertionError, match=r"^output 0\[\d, \d\] jumps by "):
        check_jumps(examined(JUMPS[name]))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_is_continuous_passes(name):
    check_jumps(examined(CONTINUOUS[name]))


def test_the_height_of_a_jump_is_told():
    """Of sign it is 2, times the weight, which is between 1 and 1.4."""
    with pytest.raises(AssertionError) as caught:
        check_jumps(examined(tf.sign))
    height = float(str(caught.value).partition(" jumps by ")[2].partition(" ")[0])
    assert 2 * 0.5 < height < 2 * 1.4 * 1.5


def test_a_jump_in_a_weight_is_found():
    class Gate(keras.layers.Layer):
        def build(self, shape):
            self.gate = self.add_weight("gate", shape[1:], initializer="zeros")
            self.scale = self.add_weight("scale", shape[1:], initializer="ones")

        def call(self, x, training=None):
            return x * (self.scale + self.gate + tf.cast(self.gate > 0.05, x.dtype))

    with pytest.raises(AssertionError, match=r"^Gate fails the check 'jumps': output 0"):
        testing.check_layer(Gate, [X], thorough=False)


def test_check_layer_names_the_jump_and_takes_a_reason():
    rounds = lambda: Layer(JUMPS["a cast to integers"])  # noqa: E731
    told = (
        r"^Layer fails the check 'jumps': output 0\[\d, \d\] jumps by .* say why it is meant in exempt=\{'jumps': …\}$"
    )
    with pytest.raises(AssertionError, match=told):
        testing.check_layer(rounds, [X], thorough=False)
    testing.check_layer(rounds, [X], thorough=False, exempt={"jumps": "it quantises"})


def test_a_straight_through_estimator_passes_with_two_reasons():
    estimator = lambda: Layer(JUMPS["a straight-through estimator"])  # noqa: E731
    reasons = {"gradients": "its gradient is that of the identity", "jumps": "it rounds"}
    testing.check_layer(estimator, [X], thorough=False, exempt=reasons)
    for check, reason in reasons.items():
        with pytest.raises(AssertionError, match=f"^Layer fails the check '{({*reasons} - {check}).pop()}'"):
            testing.check_layer(estimator, [X], thorough=False, exempt={check: reason})

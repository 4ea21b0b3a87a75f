"""`testing.check_layer` finds what a layer keeps in Python from one call to the next."""

import collections
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, testing
from framework.testing.attributes import difference, kept, symbolic

X = np.random.default_rng(0).normal(size=(4, 5))


class Memory:
    """An object that is no layer."""

    last = 0.0


class Keeps(keras.layers.Layer):
    """Keeps something at each call, as a test says."""

    def __init__(self, keep=None, **kwargs):
        super().__init__(**kwargs)
        self.keep = keep
        self.seen, self.by_name = [], {}
        self.memory, self.newest = Memory(), collections.deque(maxlen=2)
        self.inner = [layers.Dropout(0.0)]
        self.calls, self.counts = 0, np.zeros(2)
        self.last = None

    def call(self, x, training=None):
        self.keep(self, x)
        return x

    def get_config(self):
        return {**super().get_config(), "keep": self.keep}


def _count(layer, x):
    layer.calls += 1


def _count_in_an_array(layer, x):
    layer.counts[0] += 1


def _cache(layer, x):
    if x.shape[0] not in layer.by_name:  # the classic: a constant that the first call makes
        layer.by_name[x.shape[0]] = tf.range(x.shape[0])


def _extend_a_deep_list(layer, x):
    layer.by_name["a"] = {"b": [*layer.by_name["a"]["b"], 1.0] if layer.by_name else [1.0]}


AGAIN = " after the same call again. Checkpoints and compiled steps see variables alone: keep what calls need in a"
WRONG = {
    "a list": (lambda layer, x: layer.seen.append(x), "attribute 'seen' was a list of 3, and is a list of 5" + AGAIN),
    "a dict": (
        lambda layer, x: layer.by_name.__setitem__(str(len(layer.by_name)), x),
        "attribute 'by_name' was a dict of 3, and is a dict of 5" + AGAIN,
    ),
    "an attribute": (
        lambda layer, x: setattr(layer, "last", x * 2),
        "attribute 'last' was a tensor of float64[4, 5], and is another one" + AGAIN,
    ),
    "a counter": (_count, "attribute 'calls' was 3, and is 5" + AGAIN),
    "an array": (_count_in_an_array, "attribute 'counts' was an array of float64[2], and is another one" + AGAIN),
    "another object": (
        lambda layer, x: setattr(layer.memory, "last", layer.memory.last + 1),
        "attribute 'memory.last' was 3.0, and is 5.0",
    ),
    "a deque that is full": (lambda layer, x: layer.newest.append(x + 1), "attribute 'newest[0]' was a tensor of "),
    "a sub-layer": (
        lambda layer, x: setattr(layer.inner[0], "last", x + 1),
        "attribute 'inner[0].last' was a tensor of float64[4, 5], and is another one" + AGAIN,
    ),
    "a deep list": (_extend_a_deep_list, """attribute 'by_name['a']['b']' was a list of 3, and is a list of 5"""),
    "a cache that the first call fills": (
        _cache,
        "attribute 'by_name[4]' is a tensor of a graph, left there by the trace. Checkpoints",
    ),
}
RIGHT = {
    "a cache of arrays": lambda layer, x: layer.by_name.__setitem__("range", np.arange(5)),
    "a cache of what tf.init_scope makes": lambda layer, x: _cached_outside(layer),
    "the shape": lambda layer, x: setattr(layer, "last", tuple(x.shape)),
    "a cache of one entry a shape": lambda layer, x: layer.by_name.__setitem__(str(x.shape), 1),
    "nothing": lambda layer, x: None,
}


def _cached_outside(layer):
    if "range" not in layer.by_name:
        with tf.init_scope():
            layer.by_name["range"] = tf.range(5)


@pytest.mark.parametrize("name", WRONG)
def test_what_a_call_keeps_is_named(name):
    keep, told = WRONG[name]
    with pytest.raises(AssertionError) as caught:
        testing.check_layer(lambda: Keeps(keep), [X], thorough=False)
    assert str(caught.value).startswith(f"Keeps fails the check 'attributes': {told}"), str(caught.value)


@pytest.mark.parametrize("name", RIGHT)
def test_what_calls_leave_alone_passes(name):
    others = dict.fromkeys(("graph", "gradients", "jumps", "xla", "replicas"), "not what this test is of")
    testing.check_layer(lambda: Keeps(RIGHT[name]), [X], thorough=False, exempt=others)


def test_what_classes_and_default_arguments_keep_is_named():
    class OfClass(keras.layers.Layer):
        seen: ClassVar = []

        def call(self, x, training=None):
            self.seen.append(x)
            return x

    class OfDefault(keras.layers.Layer):
        def call(self, x, training=None, cache={}):  # noqa: B006
            cache[len(cache)] = x
            return x

    for kind, told in (
        (OfClass, "attribute 'OfClass.seen' was a list of 3, and is a list of 5"),
        (OfDefault, "attribute 'OfDefault.call, a default argument' was a dict of 3, and is a dict of 5"),
    ):
        with pytest.raises(AssertionError) as caught:
            testing.check_layer(kind, [X], thorough=False)
        assert str(caught.value).startswith(f"{kind.__name__} fails the check 'attributes': {told}"), str(caught.value)


def test_a_layer_that_means_it_says_why():
    keep = WRONG["an attribute"][0]
    reason = {"attributes": "it keeps the last map for a picture"}
    testing.check_layer(lambda: Keeps(keep), [X], thorough=False, exempt=reason)


def test_variables_are_not_attributes_and_symbols_are_told_from_values():
    layer = Keeps(lambda layer, x: None)
    before = kept(layer)
    layer.state = tf.Variable(1.0)
    assert difference(before, kept(layer)) == ""
    layer.by_name["a"] = tf.constant(1.0)
    assert difference(before, kept(layer)) == "attribute 'by_name' was a dict of 0, and is a dict of 1"
    assert symbolic(kept(layer)) == []
    with tf.Graph().as_default():
        layer.seen.append(tf.constant(1.0))
    assert symbolic(kept(layer)) == ["seen[0]"]


def test_sequential_and_functional_models_are_walked():
    inner = Keeps(RIGHT["nothing"])
    symbol = keras.Input([5])
    for model in (keras.Sequential([inner]), keras.Model(symbol, inner(symbol))):
        inner.seen[:] = [0, 0]
        before = kept(model)
        inner.seen.append(1)
        assert difference(before, kept(model)).endswith("[0].seen' was a list of 2, and is a list of 3")

"""framework/paths.py: names of variables that depend on the model alone, never on what was built before it."""

import inspect

import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.utils.generic_utils import to_snake_case

from framework import paths


class Block(keras.layers.Layer):
    """A subclassed layer with an attribute, a list, a dict and a variable of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(2)
        self.towers = [keras.layers.Dense(2), keras.layers.Dense(2)]
        self.heads = {"left": keras.layers.Dense(2)}
        self.scale = self.add_weight(name="scale", shape=[2], initializer="ones")

    def call(self, inputs):
        x = self.first(inputs)
        return self.towers[0](x) + self.towers[1](x) + self.heads["left"](x) * self.scale


def sequential():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.ReLU(), keras.layers.Dense(2)])
    model.build([None, 4])
    return model


def functional():
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(2, 3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    inner_inputs = keras.Input([6, 6, 2])
    inner = keras.Model(inner_inputs, keras.layers.Conv2D(2, 1)(inner_inputs) + 1.0)
    x = keras.layers.Flatten()(inner(x))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def subclassed():
    model = keras.Sequential([Block(), Block(name="mine"), Block()])
    model.build([None, 2])
    return model


DENSE = ("bias", "kernel")
BLOCK = {f"{part}/{name}" for part in ("first", "towers/0", "towers/1", "heads/left") for name in DENSE} | {"scale"}
MODELS = {
    sequential: {"dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"},
    functional: {
        *("conv2d/kernel", "conv2d/bias", "model/conv2d/kernel", "model/conv2d/bias", "dense/kernel", "dense/bias"),
        *(f"batch_normalization/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
    },
    subclassed: {f"{block}/{name}" for block in ("block", "mine", "block_1") for name in BLOCK},
}


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_paths_are_complete_and_the_same_for_every_build_in_a_process(build):
    models = [build() for _ in range(3)]
    assert len({layer.name for model in models for layer in model.layers}) > len(models[0].layers)  # names do differ
    for model in models:
        found = paths.variables(model)
        assert set(found) == MODELS[build]
        assert {id(variable) for variable in found.values()} == {id(variable) for variable in model.variables}
    assert [list(paths.variables(model)) for model in models[1:]] == [list(paths.variables(models[0]))] * 2


LAYERS = [
    layer
    for _, layer in inspect.getmembers(keras.layers, inspect.isclass)
    if issubclass(layer, keras.layers.Layer) and layer is not keras.layers.InputLayer
]


@pytest.mark.parametrize("kind", [*(layer.__name__ for layer in LAYERS), "_Hidden", "MyHTTPNet", "Net2Wide", "V1"])
def test_a_name_that_keras_made_up_is_reduced_to_the_class(kind):
    layer = type(kind, (), {"name": f"{to_snake_case(kind)}_17"})()
    assert paths._layer_name(layer) == to_snake_case(kind)
    layer.name = "chosen_17"
    assert paths._layer_name(layer) == "chosen_17"


def test_trainable_is_in_the_models_own_order():
    model = functional()
    found = paths.trainable(model)
    assert [id(variable) for variable in found.values()] == [id(variable) for variable in model.trainable_variables]
    assert not any("moving" in path for path in found)
    model.layers[1].trainable = False
    assert "conv2d/kernel" not in paths.trainable(model)


def test_a_shared_layer_has_one_path():
    shared = keras.layers.Dense(2)
    model = keras.Sequential([shared, keras.layers.ReLU(), shared])
    model.build([None, 2])
    assert list(paths.variables(model)) == ["dense/kernel", "dense/bias"]


def test_names_with_a_slash_do_not_hide_one_another():
    inner = keras.Sequential([keras.layers.Dense(2, name="b")], name="a")
    model = keras.Sequential([keras.layers.Dense(2, name="a/b"), inner])
    model.build([None, 2])
    found = paths.variables(model)
    assert list(found) == ["a/b/kernel", "a/b/bias", "a/b_/kernel", "a/b_/bias"]
    assert {id(variable) for variable in found.values()} == {id(variable) for variable in model.variables}


def test_objects_starts_with_the_root_and_goes_breadth_first():
    root, child, leaf = tf.Module(), tf.Module(), tf.Variable(1.0)
    root.child, child.leaf, root.own = child, leaf, tf.Variable(2.0)
    found = paths.objects(root)
    assert list(found) == ["", "child", "own", "child/leaf"]
    assert found[""] is root
    assert found["child/leaf"] is leaf

"""framework/paths.py: names of variables that depend on the model alone, never on what was built before it."""

import inspect

import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.utils.generic_utils import to_snake_case

from framework import compat, layers, paths


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


def kernels(model):
    """{path: name of its layer} of the kernels."""
    return {path: layer.name for path, layer in paths.objects(model).items() if hasattr(layer, "kernel")}


def dense(name=None, **kwargs):
    return keras.layers.Dense(3, name=name, **kwargs)


def of(*layers):
    model = keras.Sequential(list(layers))
    model.build([None, 3])
    return model


def chain(*layers):
    x = inputs = keras.Input([3])
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


class Numbered(keras.layers.Dense):
    """Names itself, by a number that is not its place."""

    def __init__(self, number):
        super().__init__(3, name=f"numbered_{number}")


@pytest.mark.parametrize("build", [of, chain])
def test_own_names_are_kept_where_keras_might_have_made_them_up(build):
    model = build(dense("dense_2"), dense("dense_1", kernel_regularizer="l2"))
    assert list(kernels(model).items()) == [("dense_2", "dense_2"), ("dense_1", "dense_1")]
    assert paths.ambiguous(model) == ["dense_2", "dense_1"]
    assert list(kernels(build(Numbered(2), Numbered(1)))) == ["numbered_2", "numbered_1"]


@pytest.mark.parametrize("build", [of, chain])
def test_a_number_never_takes_an_own_name(build):
    for _ in range(5):
        dense()  # Keras numbers on
    model = build(dense(), dense("dense"), dense(), dense("dense_2"))
    own = {"dense": "dense", "dense_2": "dense_2"}
    assert list(kernels(model)) == ["dense_1", "dense", "dense_3", "dense_2"]
    assert {path: name for path, name in kernels(model).items() if path in own} == own
    assert paths.ambiguous(model) == ["dense", "dense_2"]


def test_own_names_of_sub_models_and_draws():
    model = of(
        keras.Sequential([dense("dense_1"), dense()], name="sequential_3"), layers.Dropout(0.5, name="dropout_1")
    )
    found = [path for path, child in paths.objects(model).items() if isinstance(child, keras.layers.Layer) and path]
    assert [path for path in found if "input" not in path] == [
        "sequential_3",
        "dropout_1",
        "sequential_3/dense_1",
        "sequential_3/dense",
    ]
    assert paths.ambiguous({"a": model}) == ["a/sequential_3", "a/dropout_1", "a/sequential_3/dense_1"]


def test_copies_keep_whose_name_it_is():
    model = of(dense("dense_4"), dense(), dense("mine"))
    for copy in (keras.models.clone_model(model), of(*(type(x).from_config(x.get_config()) for x in model.layers))):
        assert [*kernels(copy)] == ["dense_4", "dense", "mine"]
    read = keras.models.model_from_json(model.to_json())  # of a file, where nothing says whose a name is
    assert [*kernels(read)] == ["dense", "dense_1", "mine"]


def test_a_layer_that_was_renamed_has_an_own_name():
    renamed = dense()
    renamed._name = "dense_9"
    assert list(kernels(of(dense(), renamed))) == ["dense", "dense_9"]


def test_layers_that_were_made_before_the_import(monkeypatch):
    """Nothing was noted of them: the arguments of simple calls, and the names that Keras saw, decide."""
    for kind in (keras.layers.Layer, compat.Functional):
        monkeypatch.setattr(kind, "_init_set_name", kind._init_set_name.__wrapped__)
    model = of(dense("dense_2"), dense("dense_1", kernel_regularizer=keras.regularizers.L2(0.1)), dense())
    assert list(kernels(model)) == ["dense_2", "dense_1", "dense"]
    assert list(kernels(of(*(type(x).from_config(x.get_config()) for x in of(dense(), dense()).layers)))) == [
        "dense",
        "dense_1",
    ]

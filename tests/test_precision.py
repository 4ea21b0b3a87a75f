"""framework/precision.py: what is set, for how long, and what is built under it."""

import pytest
import tensorflow as tf
import tf_keras as keras

from framework import precision


def current():
    return keras.backend.floatx(), keras.mixed_precision.global_policy().name


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_scope_sets_policy_and_floatx_and_puts_them_back(name):
    with precision.scope(name):
        assert current() == (name, name)
    assert current() == ("float32", "float32")


def test_scopes_nest_and_an_exception_closes_them():
    with precision.scope("float64"):
        with pytest.raises(KeyError), precision.scope("float32"):
            assert current() == ("float32", "float32")
            raise KeyError
        assert current() == ("float64", "float64")
    assert current() == ("float32", "float32")


def test_a_policy_of_the_users_own_comes_back():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    with precision.scope("float64"):
        pass
    assert current() == ("float32", "mixed_bfloat16")


def test_an_unknown_precision_changes_nothing():
    with pytest.raises(ValueError), precision.scope("float33"):
        pass
    assert current() == ("float32", "float32")


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_model_built_in_the_scope_has_variables_and_results_of_its_dtype_afterwards_too(name):
    with precision.scope(name):
        layers = [keras.layers.Dense(3, kernel_regularizer="l2"), keras.layers.BatchNormalization()]
        model = keras.Sequential(layers)
        model.build([None, 2])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
    assert {variable.dtype.name for variable in model.variables} == {name}
    slots = [variable for variable in optimizer.variables if variable.shape.rank]
    assert len(slots) == 2 * len(model.trainable_variables)
    assert {variable.dtype.name for variable in slots} == {name}
    assert model(tf.zeros([1, 2], name)).dtype == name
    assert {loss.dtype.name for loss in model.losses} == {name}


def test_master_dtype():
    assert precision.master_dtype("float64") == tf.float64
    assert precision.master_dtype("float32") == tf.float32

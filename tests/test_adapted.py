"""Layers that were adapted to data compute with what the state holds, wherever it came from."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework.run import evaluation
from tests import small


def normalised(scale):
    """small's net on inputs that are normalised by the mean and variance of x * scale + scale."""

    def make_model(cfg):
        layer = keras.layers.Normalization(name="adapted")
        layer.adapt(small.examples({}).arrays["x"] * np.float32(scale) + np.float32(scale))
        return keras.Sequential([keras.Input([6]), layer, keras.layers.Dense(3, name="last")])

    return {"make_model": make_model}


def in_bins(scale):
    def make_model(cfg):
        layer = keras.layers.Discretization(num_bins=4, name="adapted")
        layer.adapt(small.examples({}).arrays["x"] * np.float32(scale))
        numbers = keras.layers.Lambda(lambda bins: tf.cast(bins, tf.float32))
        return keras.Sequential([keras.Input([6]), layer, numbers, keras.layers.Dense(3, name="last")])

    return {"make_model": make_model}


def begun(make, folder, **settings):
    """A run that has looked at its model before it is told where to start from."""
    built = small.build(folder, functions=make, **{"train.duration": "4 steps", **settings})
    before = evaluation.evaluate(built)
    built.open()
    built.write_header([])
    return built, before


@pytest.mark.parametrize("make", [normalised, pytest.param(in_bins, marks=pytest.mark.slow)])
def test_a_model_that_starts_from_another_computes_as_it_did(tmp_path, make):
    first, untrained = begun(make(1.0), tmp_path / "first")
    first.train_block(3)
    first.checkpoints.save(first.state, {}, first.facts())
    first.checkpoints.close()
    trained = evaluation.evaluate(first)
    assert trained != untrained

    resumed, _ = begun(make(1.0), tmp_path / "first")
    assert int(resumed.state.step) == 3 and evaluation.evaluate(resumed) == trained
    second, own = begun(make(2.0), tmp_path / "second", init_from=str(tmp_path / "first"))
    assert int(second.state.step) == 0 and evaluation.evaluate(second) == trained != own
    x = tf.ones([2, 6])
    np.testing.assert_array_equal(second.model(x), first.model(x))


def test_the_mean_that_is_used_is_the_stored_one(tmp_path):
    first, _ = begun(normalised(1.0), tmp_path / "first")
    first.checkpoints.save(first.state, {}, first.facts())
    first.checkpoints.close()
    second, _ = begun(normalised(2.0), tmp_path / "second", init_from=str(tmp_path / "first"))
    x = small.examples({}).arrays["x"].astype(np.float64)
    kernel, bias = (np.asarray(v, np.float64) for v in second.model.layers[-1].weights)
    wanted = (x - (x + 1).mean(0)) / x.std(0)  # adapted to x + 1
    np.testing.assert_allclose(second.model(x.astype(np.float32)), wanted @ kernel + bias, rtol=1e-4, atol=1e-5)

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import optim, paths, state
from framework.checkpoint.mean import restore_mean
from framework.checkpoint.snapshot import write_state
from framework.errors import UserError


def make(units=3):
    """A state of a model with statistics and an integer variable, and a moving average of its weights."""
    model = keras.Sequential([keras.layers.Dense(units, name="dense"), keras.layers.BatchNormalization(name="norm")])
    model.build((None, 4))
    model.seen = tf.Variable(0, trainable=False, dtype=tf.int64)
    ema = optim.ExponentialMovingAverage(0.9, paths.variables(model))
    return state.create(model, tf.Module(), state.new_counter(), ema=ema)


def fill(target, seed):
    """Sets all variables to draws and returns them by path."""
    draws = np.random.default_rng(seed)
    values = {}
    for path, variable in paths.variables(target).items():
        shape = variable.shape.as_list()
        value = draws.normal(size=shape) * 10.0 ** draws.integers(-3, 4) if variable.dtype.is_floating else seed + 1
        values[path] = np.asarray(value, variable.dtype.as_numpy_dtype)
        variable.assign(values[path])
    return values


@pytest.fixture
def saved(tmp_path):
    folders, values = [], []
    for seed in range(3):
        folders.append(tmp_path / f"step-{seed + 1:08d}")
        folders[-1].mkdir()
        source = make()
        values.append(fill(source, seed))
        write_state(source, {"seed": seed}, folders[-1])
    return folders, values


def test_weights_are_the_mean_and_all_else_is_of_the_newest(saved):
    folders, values = saved
    target = make()
    assert restore_mean(target, folders) == {"seed": 2}
    means = set()
    for path, variable in paths.variables(target).items():
        expected = values[-1][path]
        if path.startswith(("model/", "ema/")) and variable.dtype.is_floating:
            expected = np.mean([np.asarray(of_one[path], np.float64) for of_one in values], axis=0).astype(np.float32)
            means.add(path)
        np.testing.assert_array_equal(variable.numpy(), expected, err_msg=path)
    assert {"model/norm/moving_mean", "model/dense/kernel"} < means
    assert len(means) == 12  # kernel, bias, gamma, beta, two statistics, and the moving average of each
    assert int(target.model.seen) == 3
    assert int(target.step) == 3


def test_the_mean_is_computed_in_float64(tmp_path):
    """In float32 the small weights beside the large one would be lost."""
    folders = []
    for step, value in enumerate((2.0**25, 1.0, 1.0, -(2.0**25))):
        folders.append(tmp_path / f"step-{step:08d}")
        folders[-1].mkdir()
        source = make()
        fill(source, 0)
        source.step.assign(step)
        source.model.layers[0].kernel.assign(tf.fill([4, 3], value))
        write_state(source, {}, folders[-1])
    target = make()
    restore_mean(target, folders)
    np.testing.assert_array_equal(target.model.layers[0].kernel.numpy(), np.full([4, 3], 0.5, np.float32))


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(saved, tmp_path):
    folders, _ = saved
    other = make(units=5)
    other.step.assign(9)
    folder = tmp_path / "step-00000009"
    folder.mkdir()
    write_state(other, {}, folder)
    with pytest.raises(UserError, match=r"than the newest checkpoint: (ema|model)/.* is float32"):
        restore_mean(other, [folders[0], folder])
    (folders[1] / "arrays.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"a checkpoint to average is damaged: arrays.bin has 0 bytes"):
        restore_mean(make(), folders)

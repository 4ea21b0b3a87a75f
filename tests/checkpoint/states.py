"""A training state with values of a seed, saved and compared bit for bit."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import optim, paths, state


def make_state(units=3, seed=0):
    model = keras.Sequential([keras.layers.Dense(units, input_shape=(4,)), keras.layers.BatchNormalization()])
    created = state.create(
        model,
        optim.Optimizer([(keras.optimizers.Adam(1e-3, jit_compile=False), paths.trainable(model))]),
        state.new_counter(),
    )
    rng = np.random.default_rng(seed)
    for variable in paths.variables(created).values():
        value = rng.normal(size=variable.shape) * 100
        variable.assign(tf.cast(value, variable.dtype))
    return created


def snapshot(created):
    return {path: variable.numpy().tobytes() for path, variable in paths.variables(created).items()}


def save_at(checkpoints, created, step, is_best=False):
    """Saves and waits."""
    created.step.assign(step)
    if is_best:
        created.best.step.assign(step)
    folder = checkpoints.save(created, {"at": step})
    checkpoints.close()
    return folder

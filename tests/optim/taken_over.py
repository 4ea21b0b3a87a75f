"""Optimizers of tf_keras in our groups, beside themselves, for tests that compare the two."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import optim, paths
from framework.config import UserError, base_config, resolve

STEPS, PEAK = 6, 0.05


# Common options that are honoured; of each optimizer, all options of its own, none at its default.
COMMON = {"weight_decay": 0.1, "name": "own", "jit_compile": True}
OWN = {
    "Adadelta": {"rho": 0.9, "epsilon": 1e-3},
    "Adafactor": {
        "beta_2_decay": -0.7,
        "epsilon_1": 1e-6,
        "epsilon_2": 1e-2,
        "clip_threshold": 0.8,
        "relative_step": False,
    },
    "Adagrad": {"initial_accumulator_value": 0.3, "epsilon": 1e-3},
    "Adam": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "adaptive_epsilon": True, "amsgrad": True},
    "AdamW": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "amsgrad": True},
    "Adamax": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3},
    "Ftrl": {
        "learning_rate_power": -0.4,
        "initial_accumulator_value": 0.3,
        "l1_regularization_strength": 0.01,
        "l2_regularization_strength": 0.02,
        "l2_shrinkage_regularization_strength": 0.03,
        "beta": 0.1,
    },
    "Lion": {"beta_1": 0.8, "beta_2": 0.95},
    "RMSprop": {"rho": 0.8, "momentum": 0.5, "epsilon": 1e-3, "centered": True},
    "SGD": {"momentum": 0.8, "nesterov": True},
}
CLIPS = {"clipnorm": 0.5, "clipvalue": 0.2, "global_clipnorm": 0.7}
REFUSED = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7}


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return falling(step)


def falling(update):
    return PEAK * (1 - tf.cast(update, tf.float64) / STEPS)


def make_config(groups=(), weight_decay=0.0, **more):
    config = base_config()
    config.train.duration, config.train.precision = f"{STEPS} steps", "float64"
    config.optimizer.groups, config.optimizer.weight_decay = tuple(groups), weight_decay
    for key, value in more.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return resolve(config, steps_per_epoch=50)


def make_model(seed=1):
    model = keras.Sequential(
        [keras.layers.Dense(3, name="body", dtype="float64"), keras.layers.Dense(2, name="head", dtype="float64")]
    )
    model.build((None, 4))
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def built(make, config=None, model=None):
    updates = tf.Variable(0, dtype=tf.int64)
    model = model or make_model()
    return optim.build_optimizers(make, model, falling, updates, config or make_config()), updates


def gradients_of_steps(model):
    rng = np.random.default_rng(5)
    trainable = paths.trainable(model)
    return [{path: tf.constant(rng.normal(size=v.shape)) for path, v in trainable.items()} for _ in range(STEPS)]


def as_in_tf_keras(make, mode, exclude=()):
    """Trains the same model by the optimizer as it is and by a step; returns the largest relative difference."""
    ours, theirs = make_model(), make_model()

    def own(cfg, learning_rate):
        optimizer = make(learning_rate)
        if exclude:
            optimizer.exclude_from_weight_decay(var_names=list(exclude))
        return optimizer

    optimizer, updates = built(own, model=ours)
    apply = optimizer.apply if mode == "eager" else tf.function(optimizer.apply, autograph=False)
    if mode == "xla":
        apply = tf.function(optimizer.apply, autograph=False, jit_compile=True)
    plain, start = own(None, Falling()), [v.numpy() for v in theirs.trainable_variables]
    plain.jit_compile = False
    for count, gradients in enumerate(gradients_of_steps(ours)):
        updates.assign(count)
        apply(gradients)
        plain.apply_gradients([(gradients[path], v) for path, v in paths.trainable(theirs).items()])
    distances = []
    for mine, other, first in zip(ours.trainable_variables, theirs.trainable_variables, start, strict=True):
        assert np.abs(other.numpy() - first).max() > 1e-4  # it did train
        distances.append(np.abs(mine.numpy() - other.numpy()).max() / np.abs(other.numpy()).max())
    return max(distances)


def refused(make, config=None):
    with pytest.raises(UserError) as error:
        built(make, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def sgd(**options):
    return lambda cfg, learning_rate: keras.optimizers.SGD(learning_rate, **options)


GROUPED = make_config((".*/bias: lr=2",))

"""Models, configs and schedules of groups of parameters, for tests of how optimizers are built."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import precision
from framework.config import base_config, resolve

STEPS = 20
PEAK = 0.05
DECAY = 0.2


def make_config(name="adamw", groups=(), kind="float64", weight_decay=DECAY):
    config = base_config()
    config.train.duration = f"{STEPS} steps"
    config.train.precision = kind
    config.schedule.learning_rate = PEAK
    config.optimizer.name, config.optimizer.groups, config.optimizer.weight_decay = name, tuple(groups), weight_decay
    return resolve(config, steps_per_epoch=50)


def make_model(kind="float64", **layers):
    """One dense layer for each name and width."""
    with precision.scope(kind):
        parts = [keras.layers.Dense(width, name=name) for name, width in (layers or {"body": 3, "head": 2}).items()]
        model = keras.Sequential(parts)
        model.build((None, 4))
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def falling(update):
    return PEAK * (1 - tf.cast(update, tf.float64) / STEPS)


def rising(update):
    return PEAK * (1 + tf.cast(update, tf.float64))


def counter():
    return tf.Variable(0, trainable=False, dtype=tf.int64)


def make_models():
    return {"generator": make_model(body=2), "critic": make_model(body=3, head=1)}


def make_sgd(cfg, learning_rate):
    return keras.optimizers.SGD(learning_rate)

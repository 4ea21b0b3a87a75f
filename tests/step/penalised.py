"""Points, and a layer between a dense one and a loss, for tests of what layers add to a loss."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses
from framework.config import UserError
from framework.data.batches import make_batches
from framework.data.sources import Source
from tests.small import build

EXAMPLES, FEATURES, WIDTH, BATCH, UPDATES = 22, 4, 3, 8, 4
RATE, OF_KERNEL, L1, L2, OF_EXAMPLE, SCALES = 0.01, 0.05, 0.1, 0.2, 0.3, (1.0, 2.0)
SETTINGS = {
    "data.batch_size": BATCH,
    "eval.batch_size": BATCH,
    "data.remainder": "pad",
    "train.duration": f"{UPDATES} steps",
    "train.precision": "float64",
    "optimizer.name": "sgd",
    "schedule.name": "constant",
    "schedule.learning_rate": RATE,
    "schedule.warmup": "",
}
TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}


@functools.cache
def points():
    draw = np.random.default_rng(5)
    x = draw.normal(size=(EXAMPLES, FEATURES))
    return {"x": x, "y": x.sum(axis=1) + 1.0, "trust": draw.choice([0.5, 1.0, 2.5], EXAMPLES)}


def make_data(cfg, split, is_trusted=True):
    def transform(batch):
        return {**batch, "weight": batch["weight"] * tf.cast(batch["trust"], tf.float32)}

    source = Source(points(), origin="made up")
    return make_batches(source, cfg, training=split == "train", transform=transform if is_trusted else None)


def squares(outputs, batch):
    error = tf.square(tf.reduce_sum(outputs, axis=-1) - batch["y"]) * tf.cast(batch["weight"], outputs.dtype)
    return losses.Term(tf.reduce_sum(error), tf.reduce_sum(batch["weight"]))


class Kl(keras.layers.Layer):
    """A scalar, the mean over its rows, as the loss of a variational autoencoder is."""

    def call(self, x):
        self.add_loss(tf.reduce_mean(tf.square(x)))
        return x


def with_layer(make, is_trusted=False, calls=1):
    def loss(model, batch, training):
        outputs = [model(batch["x"], training=training) for _ in range(calls)]
        return {"squares": squares(outputs[0], batch)}, {}

    return {
        "make_data": lambda cfg, split: make_data(cfg, split, is_trusted),
        "make_model": lambda cfg: keras.Sequential([keras.layers.Dense(WIDTH, kernel_initializer="ones"), make()]),
        "make_loss": lambda cfg: loss,
    }


def outputs_of(x):
    return np.repeat(x.sum(axis=1)[:, None], WIDTH, axis=1)


CARRY = {**SETTINGS, "data.remainder": "wrap", "schedule.learning_rate": 0.0}


def refusal(functions, **settings):
    with pytest.raises(UserError) as caught:
        build(functions=functions, **{**CARRY, **settings})
    return str(caught.value)

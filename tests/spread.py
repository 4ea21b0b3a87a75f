"""tests/tiny.py in float64 with two terms of different masks and an infinite example, for tests of several workers.

All workers skip the steps that meet the infinite example, whichever worker reads it. With `model.moves`, the first
layer moves an average on each replica, as BatchNormalization does. This average is that of a weight, so on replicas it
is the same as on one device. The experiment has no LiteRT export, because LiteRT does not run float64.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from experiments import mnist_mlp
from framework import losses
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.export.saved_model import SavedModel
from tests import tiny
from tests.tiny import make_metrics, make_schedule  # noqa: F401

BAD = 77


def get_config(arg):
    config = tiny.get_config(arg)
    config.train.precision = "float64"
    config.train.on_nonfinite = "skip"
    config.model.moves = True
    return config


class Gain(keras.layers.BatchNormalization):
    """Multiplies by a weight; in evaluation by the moving average of the weight."""

    def build(self, shape):
        apart = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.MEAN}
        self.gain = self.add_weight(name="gain", shape=[], initializer="ones")
        self.slow = self.add_weight(name="slow", shape=[], initializer="zeros", trainable=False, **apart)

    def call(self, x, training=None):
        if training:
            self.slow.assign(0.9 * self.slow + 0.1 * self.gain)
            return x * self.gain
        return x * self.slow


def make_model(cfg):
    gain = [Gain(name="gain")] if cfg.model.moves else []
    return keras.Sequential([*gain, *tiny.make_model(cfg).layers])


def make_data(cfg, split):
    digits = tiny.digits(split)
    factor = np.full(len(digits), 1 / 255)
    if split == "train":
        factor[BAD] = np.inf
    source = Source({**digits.arrays, "factor": factor}, digits.origin)

    def scaled(batch):
        return {**batch, "image": tf.cast(batch["image"], tf.float64) * batch["factor"][:, tf.newaxis, tf.newaxis]}

    return make_batches(source, cfg, training=split == "train", transform=scaled)


def make_loss(cfg):
    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        small = tf.cast(batch["label"] < 3, logits.dtype) * tf.cast(batch["weight"], logits.dtype)
        squares = tf.reduce_mean(tf.square(logits), axis=1)
        return {
            "cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"]),
            "small": losses.Term(0.1 * tf.reduce_sum(squares * small), tf.reduce_sum(small)),
        }, {"logits": logits}

    return loss


def make_exports(cfg):
    return [hook for hook in mnist_mlp.make_exports(cfg) if isinstance(hook, SavedModel)]

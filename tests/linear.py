"""A linear regression under SGD: a small experiment, all numbers of which NumPy computes in a few lines."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import losses, optim
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.sources import Source


def get_config(arg):
    config = base_config()
    config.data.batch_size = config.eval.batch_size = 8
    config.data.shuffle = False
    config.train.duration = "5 steps"
    config.train.compile = "graph"
    config.optimizer.name = "sgd"
    config.schedule.learning_rate = 0.05
    config.eval.every = config.log.histograms_every = ""
    config.log.images = 0
    return config


def arrays():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    return x, x @ np.float32([1, -2, 3, 0.5]) + 1


def make_data(cfg, split):
    x, y = arrays()
    fields = {"x": x, "y": y}
    return make_batches(Source(fields, "made up"), cfg, training=split == "train")


def make_model(cfg):
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(1, kernel_initializer="zeros")])


def make_loss(cfg):
    def loss(model, batch, training):
        error = model(batch["x"], training=training)[:, 0] - batch["y"]
        total, weight = tf.reduce_sum(error**2 * batch["weight"]), tf.reduce_sum(batch["weight"])
        return {"mse": losses.Term(total, weight)}, {"error": error}

    return loss


def make_schedule(cfg, total_steps):
    return optim.make_schedule(cfg, total_steps)

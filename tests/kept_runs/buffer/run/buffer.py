"""Regression on what a walk leaves in a replay buffer, with a slow copy of the net in `make_state`."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import losses, optim, paths, rng
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.replay import Replay
from framework.data.sources import Source
from framework.export.base import SERVING, Signature
from framework.export.saved_model import SavedModel


class Walk(Replay):
    """Rows of a place in the plane and of the place after it."""

    def __init__(self, cfg):
        row = {name: tf.TensorSpec([2], tf.float32) for name in ("place", "following")}
        super().__init__(row, capacity=64, config=cfg)
        self.place = tf.Variable(tf.ones([4, 2]), trainable=False)

    def walk(self):
        following = 0.9 * self.place + 0.5 * (rng.uniform("walk", 4, 2) - 0.5)
        self.add({"place": self.place.read_value(), "following": following})
        self.place.assign(following)


class Slow(tf.Module):
    """The net as it was a while ago."""

    def __init__(self, model):
        super().__init__("slow")
        self.kernel = tf.Variable(paths.variables(model)["dense/kernel"], trainable=False)


def get_config(arg):
    config = base_config()
    config.data.batch_size = config.eval.batch_size = 16
    config.train.duration = "20 steps"
    config.train.compile = "graph"
    config.train.block_steps = 10
    config.schedule.learning_rate = 0.01
    config.eval.every = "10 steps"
    config.log.every = "5 steps"
    config.log.histograms_every = ""
    config.checkpoint.every = "10 steps"
    config.checkpoint.best_metric = ""
    config.export.examples = 64
    return config


def make_data(cfg, split):
    if split == "train":
        return Walk(cfg)
    place = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    rows = {"place": place, "following": np.float32(0.9) * place}
    return make_batches(Source(rows, "made-up places"), cfg, training=False)


def make_model(cfg):
    return keras.Sequential([keras.Input([2]), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)])


def make_state(cfg, model):
    return Slow(model)


def _error(model, part):
    guess = model(part["place"])
    values = tf.reduce_sum(tf.square(guess - part["following"]), axis=1)
    weight = part["weight"]
    return {"error": losses.Term(tf.reduce_sum(values * weight), tf.reduce_sum(weight))}, {"guess": guess}


def make_loss(cfg):
    return lambda model, batch, training: _error(model, batch)


def make_schedule(cfg, total_steps):
    return optim.make_schedule(cfg, total_steps)


def make_step(cfg, tools):
    def step(state, batch):
        found = tools.gradients(lambda part: _error(state.model, part), batch)
        tools.apply(found.gradients)
        state.data.walk()
        fast = paths.variables(state.model)["dense/kernel"]
        state.extra.kernel.assign(0.9 * state.extra.kernel + 0.1 * fast)
        return found.terms, found.metrics

    return step


def make_exports(cfg):
    signature = Signature(
        fn=lambda model, inputs: {"following": model(inputs["place"], training=False)},
        inputs={"place": tf.TensorSpec([None, 2], tf.float32)},
    )
    return [SavedModel({SERVING: signature})]

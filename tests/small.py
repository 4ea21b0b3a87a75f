"""An experiment of 160 examples and a net of a few hundred weights, in which chosen examples overflow at chosen steps.

The loss of an example is multiplied by exp(`heat`). The heat is 0 unless a test sets another one: 100 makes float32
overflow, 60 makes only float16 overflow.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, precision, testing
from framework.data.batches import make_batches
from framework.data.order import Order
from framework.data.sources import Source
from framework.testing import differing  # noqa: F401
from tests import tiny

BATCH, EXAMPLES = 16, 160

SETTINGS = {
    "data.batch_size": BATCH,
    "eval.batch_size": BATCH,
    "eval.every": "",
    "train.duration": "10 steps",
    "train.block_steps": 10,
    "train.compile": "graph",
    "log.every": "1 step",
    "log.histograms_every": "",
    "log.images": 0,
    "checkpoint.every": "",
    "checkpoint.best_metric": "",
    "schedule.learning_rate": 0.01,
    "schedule.warmup": "3 steps",
}

HOT, HOT_IN_HALF = 100.0, 60.0


def place_of(step, place, seed=0):
    """Returns the index of the example at a place of the batch of a step."""
    order = Order((EXAMPLES,), (1,), BATCH, seed, True, "wrap")
    return int(order.at(tf.constant([step], tf.int64))[1][0, place])


def examples(heat, seed=0):
    """Returns the source; `heat` is {(step, place in its batch): heat}."""
    rng = np.random.default_rng(3)
    heats = np.zeros(EXAMPLES, np.float32)
    for (step, place), value in heat.items():
        heats[place_of(step, place, seed)] = value
    x = rng.normal(size=(EXAMPLES, 6)).astype(np.float32)
    label = rng.integers(0, 3, EXAMPLES).astype(np.int32)
    return Source({"x": x, "label": label, "heat": heats}, origin="made-up points")


def make_model(cfg):
    """Returns a model with one layer of each kind that has a state or draws."""
    return keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            layers.Dropout(0.25, name="drop"),
            keras.layers.Dense(3, dtype=precision.full(cfg.train.precision), name="last"),
        ]
    )


def make_loss(cfg):
    """Returns the cross-entropy, of each example times exp(heat)."""

    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        weight = tf.cast(batch["weight"], values.dtype)
        hot = values * tf.exp(tf.cast(batch["heat"], values.dtype))
        return {"cross_entropy": losses.Term(tf.reduce_sum(hot * weight), tf.reduce_sum(weight))}, {}

    return loss


def build(workdir=None, heat=None, functions=None, **overrides):
    """Returns a run in which the examples at `heat` = {(step, place): heat} go bad."""

    def make_data(cfg, split):
        def to_float(batch):
            return {**batch, "x": tf.cast(batch["x"], precision.full(cfg.train.precision))}

        training = split == "train"
        source = examples(heat or {}, cfg.seed) if training else examples({})
        return make_batches(source, cfg, training=training, transform=to_float)

    made = {"get_config": tiny.get_config, "make_schedule": tiny.make_schedule, "make_data": make_data}
    made |= {"make_model": make_model, "make_loss": make_loss, **(functions or {})}
    return testing.build(made, {**SETTINGS, **overrides}, workdir)


def snapshot(built):
    """Returns {path: bytes} of the whole state of a run."""
    return testing.bits(built.state)

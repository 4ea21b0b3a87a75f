"""An experiment of 160 examples and a net of a few hundred weights, in which chosen examples go bad at chosen steps.

The loss of an example is multiplied by exp(`heat`), which is 0 but where a test says otherwise: 100 makes float32
overflow, 60 float16 alone.
"""

import dataclasses
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import config, layers, losses, paths, precision
from framework.config.overrides import override
from framework.data.batches import make_batches
from framework.data.order import Order
from framework.data.sources import Source
from framework.experiment import load
from framework.run import build as run

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
    """Which example stands at a place of a step's batch."""
    order = Order((EXAMPLES,), (1,), BATCH, seed, True, "wrap")
    return int(order.at(tf.constant([step], tf.int64))[1][0, place])


def examples(heat, seed=0):
    """The source; `heat` is {(step, place in its batch): heat}."""
    rng = np.random.default_rng(3)
    heats = np.zeros(EXAMPLES, np.float32)
    for (step, place), value in heat.items():
        heats[place_of(step, place, seed)] = value
    x = rng.normal(size=(EXAMPLES, 6)).astype(np.float32)
    label = rng.integers(0, 3, EXAMPLES).astype(np.int32)
    return Source({"x": x, "label": label, "heat": heats}, origin="made-up points")


def make_model(cfg):
    """Everything that has a state or draws."""
    return keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            layers.Dropout(0.25, name="drop"),
            keras.layers.Dense(3, dtype=precision.full(cfg.train.precision), name="last"),
        ]
    )


def make_loss(cfg):
    """Cross-entropy, each example's times exp(heat)."""

    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        weight = tf.cast(batch["weight"], values.dtype)
        hot = values * tf.exp(tf.cast(batch["heat"], values.dtype))
        return {"cross_entropy": losses.Term(tf.reduce_sum(hot * weight), tf.reduce_sum(weight))}, {}

    return loss


def build(workdir=None, heat=None, functions=None, **overrides):
    """A run whose examples `heat` = {(step, place): heat} go bad."""
    loaded = load.load("tests/tiny.py")
    settings = {**SETTINGS, **overrides}

    def make_data(cfg, split):
        def to_float(batch):
            return {**batch, "x": tf.cast(batch["x"], precision.full(cfg.train.precision))}

        training = split == "train"
        source = examples(heat or {}, cfg.seed) if training else examples({})
        return make_batches(source, cfg, training=training, transform=to_float)

    own = {"make_data": make_data, "make_model": make_model, "make_loss": make_loss, **(functions or {})}
    kept = {name: loaded.functions[name] for name in ("get_config", "make_schedule")}
    loaded = dataclasses.replace(loaded, functions={**kept, **own})
    final = config.finalize(override(loaded.get_config(), settings), loaded.own)
    return run.build_run(loaded, final, workdir, time.monotonic())


def snapshot(built):
    """{path: bytes} of the whole state."""
    return {path: variable.numpy().tobytes() for path, variable in paths.variables(built.state).items()}


def differing(left, right):
    """The paths whose bits differ between two snapshots."""
    assert left.keys() == right.keys()
    return {path for path in left if left[path] != right[path]}

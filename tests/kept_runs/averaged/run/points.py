"""A net with everything that has a state or draws, on made-up points. Presets: `averaged` (EMA), `half` (float16)."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, metrics, optim, precision
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.export.base import SERVING, Signature
from framework.export.lite import Lite
from framework.export.saved_model import SavedModel
from framework.overrides import apply_preset

PRESETS = {
    "averaged": {"ema.decay": 0.9, "eval.splits": ("test", "test@ema"), "export.weights": "ema"},
    "half": {"train.precision": "float16", "loss_scale.initial": 2.0**20, "loss_scale.patience": 50},
}


def get_config(arg):
    config = base_config()
    config.data.batch_size = config.eval.batch_size = 16
    config.train.duration = "20 steps"
    config.train.compile = "graph"
    config.train.block_steps = 10
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.01
    config.schedule.warmup = "4 steps"
    config.eval.every = "10 steps"
    config.log.every = "5 steps"
    config.log.histograms_every = ""
    config.log.images = 0
    config.checkpoint.every = "10 steps"
    config.checkpoint.best_metric = "test/accuracy"
    config.export.examples = 64
    return apply_preset(config, arg, PRESETS)


def make_data(cfg, split):
    rng = np.random.default_rng(0 if split == "train" else 1)
    x = rng.normal(size=(168, 6)).astype(np.float32)
    label = (x[:, 0] > x[:, 1]).astype(np.int32) + (x[:, 2] > 0)

    def cast(batch):
        return {**batch, "x": tf.cast(batch["x"], precision.full(cfg.train.precision))}

    source = Source({"x": x, "label": label}, "made-up points")
    return make_batches(source, cfg, training=split == "train", transform=cast)


def make_model(cfg):
    return keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            layers.Dropout(0.25),
            keras.layers.Dense(3, dtype=precision.full(cfg.train.precision)),
        ]
    )


def make_loss(cfg):
    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        terms = {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}
        return terms, {"logits": logits}

    return loss


def make_schedule(cfg, total_steps):
    return optim.make_schedule(cfg, total_steps)


def make_metrics(cfg):
    return {"accuracy": metrics.Accuracy()}


def make_exports(cfg):
    signature = Signature(
        fn=lambda model, inputs: {"logits": model(inputs["x"], training=False)},
        inputs={"x": tf.TensorSpec([None, 6], precision.full(cfg.train.precision))},
    )
    return [SavedModel({SERVING: signature}), Lite(signature)]

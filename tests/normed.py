"""A net of a few hundred weights with BatchNormalization, on made-up points, for tests of workers that are killed.

`model.bad_step` is a step, counted from 0; one example of its batch makes the loss infinite. -1 is no step.
"""

import numpy as np
import tf_keras as keras
from ml_collections import ConfigDict

from framework import losses, optim
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.sources import Source
from tests.small import EXAMPLES, place_of


def get_config(arg: str) -> ConfigDict:
    """Returns the config of 120 steps of a millisecond, with a checkpoint every 10."""
    config = base_config()
    config.data.batch_size = 16
    config.train.duration = "120 steps"
    config.train.compile = "graph"
    config.train.block_steps = 10
    config.schedule.learning_rate = 0.01
    config.eval.every = "30 steps"
    config.eval.batch_size = 16
    config.log.every = "5 steps"
    config.log.histograms_every = ""
    config.checkpoint.every = "10 steps"
    config.ema.decay = 0.9
    config.model.bad_step = -1
    return config


def make_data(cfg: ConfigDict, split: str):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(EXAMPLES, 6)).astype(np.float32)
    label = rng.integers(0, 3, EXAMPLES).astype(np.int32)
    if split == "train" and cfg.model.bad_step >= 0:
        x[place_of(cfg.model.bad_step, 15, cfg.seed)] = np.inf
    return make_batches(Source({"x": x, "label": label}, origin="made-up points"), cfg, training=split == "train")


def make_model(cfg: ConfigDict) -> keras.Model:
    return keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="last"),
        ]
    )


def make_loss(cfg: ConfigDict):
    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        return {"ce": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

    return loss


def make_schedule(cfg: ConfigDict, total_steps: int):
    return optim.make_schedule(cfg, total_steps)

"""An experiment with all that an exact resume has to keep: dropout, augmentation, micro-batches, EMA and a loss scale.

    python launch.py --config=tests/augmented.py --mode=verify_resume

The loss scale grows every four updates until float16 overflows, so that a step is skipped every now and then.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import layers, losses, metrics, optim, precision, rng
from framework.config import base_config
from framework.config.overrides import apply_preset
from framework.data.batches import make_batches
from framework.data.sources import Source

SIDE = 8
PRESETS = {"float32": {"train.precision": "float32", "loss_scale.growth_interval": 2000}}


def get_config(arg: str) -> ConfigDict:
    """Returns the config of 60 steps of a few milliseconds, over 7.5 epochs."""
    config = base_config()
    config.data.batch_size = 16
    config.train.duration = "60 steps"
    config.train.block_steps = 8
    config.train.micro_batches = 2
    config.train.precision = "float16"
    config.loss_scale.growth_interval = 4
    config.clip.name = "global_norm"
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.01
    config.schedule.warmup = "5 steps"
    config.ema.decay = 0.9
    config.eval.splits = ("test", "test@ema")
    config.eval.every = "20 steps"
    config.eval.batch_size = 40
    config.log.every = "1 step"
    config.log.histograms_every = ""
    config.log.images = 0
    config.checkpoint.every = "5 steps"
    config.checkpoint.best_metric = "test@ema/loss"
    return apply_preset(config, arg, PRESETS)


def make_data(cfg: ConfigDict, split: str):
    generator = np.random.default_rng(0 if split == "train" else 1)
    label = generator.integers(0, 4, 128 if split == "train" else 40).astype(np.int32)
    image = generator.normal(size=(len(label), SIDE, SIDE)) + label[:, None, None]
    source = Source({"image": image.astype(np.float32), "label": label}, origin="made-up pictures")
    training = split == "train"
    return make_batches(source, cfg, training=training, transform=augment if training else None)


def augment(batch):
    """Mirrors a random half of the pictures, and shifts each picture by up to two pixels along both axes."""
    words = rng.random_bits("augment", tf.shape(batch["image"])[0], 3)  # [batch, 3]
    mirrored = tf.where(words[:, :1, tf.newaxis] % 2 == 0, batch["image"], batch["image"][:, :, ::-1])
    for axis in (1, 2):
        shift = tf.cast(words[:, axis, tf.newaxis] % 5, tf.int32)
        place = (tf.range(SIDE) + shift) % SIDE  # [batch, side]
        mirrored = tf.gather(mirrored, place, axis=axis, batch_dims=1)
    return {**batch, "image": mirrored}


def make_model(cfg: ConfigDict) -> keras.Model:
    return keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(),
            layers.Dropout(0.25),
            keras.layers.Dense(4, dtype=precision.full(cfg.train.precision)),
        ]
    )


def make_loss(cfg: ConfigDict):
    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        return {"ce": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {"logits": logits}

    return loss


def make_schedule(cfg: ConfigDict, total_steps: int):
    return optim.make_schedule(cfg, total_steps)


def make_metrics(cfg: ConfigDict):
    return {"accuracy": metrics.Accuracy()}

"""The augmented experiment on pictures that are read from TFRecord or ArrayRecord shards, and decoded.

    python launch.py --config=tests/recorded.py --mode=verify_resume --config.data.folder=FOLDER

FOLDER has shards of the pictures of tests/data/files/made.py, at least 96 of them, all of which are in both splits.
"""

import tensorflow as tf
from ml_collections import ConfigDict

from framework import data
from tests import augmented
from tests.augmented import make_loss, make_metrics, make_model, make_schedule  # noqa: F401
from tests.data.files import made

FIELDS = data.Examples({"image": data.Image((made.SIDE, made.SIDE)), "label": data.Label(classes=3)})


def get_config(arg: str) -> ConfigDict:
    """Returns the config of augmented.py, in float32, streamed by several threads, with `data.folder`."""
    config = augmented.get_config("float32")
    config.data.folder = ""
    config.data.damaged = "stop"
    config.data.placement = "stream"
    config.data.parallel_calls = 3
    return config


def make_data(cfg: ConfigDict, split: str):
    open_records = data.array_records if cfg.data.folder.endswith("array_records") else data.tf_records
    source = open_records(cfg.data.folder, FIELDS, damaged=cfg.data.damaged)
    training = split == "train"
    return data.make_batches(source, cfg, training=training, transform=augment if training else to_float)


def to_float(batch):
    """Returns grey pictures, float32 [batch, 8, 8]."""
    grey = tf.reduce_mean(tf.cast(batch["image"], tf.float32) * (1 / 255), -1)
    return {**batch, "image": tf.pad(grey, [[0, 0], [1, 1], [1, 1]])}


def augment(batch):
    return augmented.augment(to_float(batch))

"""The augmented experiment on pictures that are read from TFRecord or ArrayRecord shards, and decoded.

    python launch.py --config=tests/recorded.py --mode=verify_resume --config.data.folder=FOLDER

FOLDER has shards of the pictures of tests/data/files/made.py, at least 96 of them, all of which are in both splits.
With --config.data.seen=FILES, each process writes the augmented pictures that it trains on to FILES-<process>.
"""

import hashlib
import os

import numpy as np
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
    config.data.seen = ""
    config.data.damaged = "stop"
    config.data.placement = "stream"
    config.data.parallel_calls = 3
    return config


def make_data(cfg: ConfigDict, split: str):
    open_records = data.array_records if cfg.data.folder.endswith("array_records") else data.tf_records
    source = open_records(cfg.data.folder, FIELDS, damaged=cfg.data.damaged)
    if split != "train":
        return data.make_batches(source, cfg, training=False, transform=to_float)
    return data.make_batches(source, cfg, training=True, transform=Seen(cfg.data.seen) if cfg.data.seen else augment)


def to_float(batch):
    """Returns grey pictures, float32 [batch, 8, 8]."""
    grey = tf.reduce_mean(tf.cast(batch["image"], tf.float32) * (1 / 255), -1)
    return {**batch, "image": tf.pad(grey, [[0, 0], [1, 1], [1, 1]])}


def augment(batch):
    return augmented.augment(to_float(batch))


class Seen:
    """Augments, and appends a line of epoch, number, label and hash for each picture to a file of this process."""

    needs = ("index", "epoch")

    def __init__(self, files):
        self.files = files

    def __call__(self, batch):
        batch = augment(batch)
        names = ("epoch", "index", "label", "image")
        image = tf.numpy_function(self.write, [batch[name] for name in names], tf.float32, stateful=False)
        return {**batch, "image": tf.ensure_shape(image, batch["image"].shape)}

    def write(self, epoch, index, label, image):
        with open(f"{self.files}-{os.getpid()}", "a", encoding="utf-8") as file:
            file.writelines(
                f"{row[0]} {row[1]} {row[2]} {hashlib.sha256(np.ascontiguousarray(row[3])).hexdigest()}\n"
                for row in zip(epoch, index, label, image, strict=True)
            )
        return image

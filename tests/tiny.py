"""The MNIST experiment on 2,560 made-up digits, which need no download; tests build, train and interrupt it."""

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from experiments import mnist_mlp
from experiments.mnist_mlp import make_exports, make_loss, make_metrics, make_model, make_schedule  # noqa: F401
from framework import precision
from framework.data.batches import make_batches
from framework.data.sources import Source

EXAMPLES = {"train": 2560, "train_eval": 2560, "test": 500}


def get_config(arg: str) -> ConfigDict:
    """Returns the config of two short epochs of 20 steps, in which every hook is due."""
    config = mnist_mlp.get_config(arg)
    config.data.name = "digits"
    config.train.duration = "40 steps"
    config.train.compile = "xla"
    config.train.block_steps = 8
    config.log.every = "5 steps"
    config.eval.batch_size = 128
    config.export.examples = 256
    config.export.process = "own"  # a fresh one imports TensorFlow; tests/export/test_processes.py has them
    return config


def make_data(cfg: ConfigDict, split: str):
    return make_batches(digits(split), cfg, training=split == "train", transform=to_float(cfg))


def to_float(cfg: ConfigDict):
    """Returns the transform that scales pixels to 0 … 1."""

    def transform(batch):
        return {**batch, "image": tf.cast(batch["image"], precision.full(cfg.train.precision)) * (1 / 255)}

    return transform


def digits(split: str) -> Source:
    """Returns ten fixed random pictures under noise, which a network learns in a few steps, but not in one."""
    rng = np.random.default_rng(0 if split.startswith("train") else 1)
    prototypes = np.random.default_rng(7).uniform(0, 255, (10, 28, 28))
    label = rng.integers(0, 10, EXAMPLES[split]).astype(np.int32)
    noisy = 0.25 * prototypes[label] + 0.75 * rng.uniform(0, 255, (len(label), 28, 28))
    return Source({"image": noisy.astype(np.uint8), "label": label}, origin="made-up digits")

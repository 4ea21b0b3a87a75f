"""The experiment of normed.py on a tf.data pipeline, which shuffles anew in each pass."""

import numpy as np
import tensorflow as tf

from framework.data import make_batches
from tests.normed import get_config, make_loss, make_model, make_schedule

__all__ = ["get_config", "make_data", "make_loss", "make_model", "make_schedule"]


def make_data(cfg, split):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(160, 6)).astype(np.float32)
    label = rng.integers(0, 3, 160).astype(np.int32)
    training = split == "train"
    dataset = tf.data.Dataset.from_tensor_slices({"x": x, "label": label})
    dataset = dataset.shuffle(100, seed=cfg.seed) if training else dataset
    size = cfg.data.batch_size if training else cfg.eval.batch_size
    return make_batches(dataset.batch(size), cfg, training=training)

"""Pictures for tests of augmentations, what is drawn for many of them, and statistics of it."""

import math

import numpy as np
import tensorflow as tf

from framework import rng

KEY = rng.key(7)
SIDE = 8
RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (6, SIDE, SIDE, 3)).astype(np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)
MANY = 2**15


def batch_of(images, **fields):
    count = len(images)
    order = {"index": tf.range(count, dtype=tf.int64), "epoch": tf.zeros(count, tf.int64)}
    return {"image": tf.constant(images), "label": tf.range(count), "weight": tf.ones(count), **order, **fields}


def drawn(augmentation, count=MANY, side=SIDE, step=0, **fields):
    """Returns what is drawn for `count` pictures, whose pixels are never made."""
    images = tf.broadcast_to(tf.zeros([], tf.uint8), [count, side, side, 3])
    with rng.scope(KEY, step):
        return [x.numpy() for x in augmentation.draw(batch_of(np.zeros([count, 1]), **fields) | {"image": images})]


def chi_square(counts, shares=None):
    """Returns the statistic's distance from its mean in standard deviations."""
    counts = np.asarray(counts, np.float64)
    expected = counts.sum() * (np.full(len(counts), 1 / len(counts)) if shares is None else np.asarray(shares))
    freedom = len(counts) - 1
    return (np.sum((counts - expected) ** 2 / expected) - freedom) / math.sqrt(2 * freedom)


def kolmogorov(values, cumulative):
    """Returns sqrt(n) times the largest distance of the empirical distribution; above 1.95 with probability 0.001."""
    values = np.sort(values)
    place = np.arange(1, len(values) + 1) / len(values)
    exact = cumulative(values)
    return math.sqrt(len(values)) * max(np.abs(place - exact).max(), np.abs(place - 1 / len(values) - exact).max())


def uniform(low, high):
    return lambda x: np.clip((x - low) / (high - low), 0, 1)

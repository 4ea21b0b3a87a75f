"""Sources of numbers, and orders and configs of batches of them, for tests of batches."""

import numpy as np
import tensorflow as tf

from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.order import Order
from framework.data.sources import Source


def make_order(sizes=(10,), batch_size=4, shares=(1,), seed=3, shuffle=True, remainder="wrap"):
    return Order(sizes, shares, batch_size, seed, shuffle, remainder)


def order_at(order, steps):
    return [column.numpy() for column in order.at(tf.constant(steps, tf.int64))]


def make_config(**values):
    config = base_config()
    config.seed = 5
    config.data.batch_size = 4
    config.eval.batch_size = 4
    for key, value in values.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


def make_source(size=10, offset=0, origin="numbers"):
    index = np.arange(offset, offset + size)
    return Source({"x": np.stack([index, index**2], 1).astype(np.float32), "label": index.astype(np.int32)}, origin)


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert np.array_equal(one[name], other[name]), name


def both(sources, transform=None, **values):
    return [
        make_batches(sources, make_config(**values, data__placement=place), training=True, transform=transform)
        for place in ("resident", "stream")
    ]

"""Ratings as products of embeddings: 6,041 users, 3,953 items, width 64, batch 1,024, Adam.

    python launch.py --config=tests/benchmarks/workloads/two_tower.py --workdir=runs/two_tower

A workload of `tests/benchmarks/compare.py`, on made-up examples.
"""

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import losses
from tests.benchmarks.workloads import common, models
from tests.benchmarks.workloads.common import make_schedule  # noqa: F401


def get_config(arg: str) -> ConfigDict:
    """As `common.config_of`."""
    return common.config_of("two_tower")


def make_data(cfg: ConfigDict, split: str):
    """1,000,000 ratings from 1 to 5."""
    return common.batches_of("two_tower", cfg, split)


def make_model(cfg: ConfigDict) -> keras.Model:
    """user, item [batch] -> rating [batch]."""
    return models.two_tower()


def make_loss(cfg: ConfigDict):
    """Mean squared error."""

    def loss(model, batch, training):
        rating = model(models.inputs("two_tower", batch), training=training)
        squares = tf.square(rating - batch["rating"])
        term = losses.Term(tf.reduce_sum(squares * batch["weight"]), tf.reduce_sum(batch["weight"]))
        return {"squared_error": term}, {"rating": rating}

    return loss

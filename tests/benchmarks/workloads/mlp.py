"""784-128-10 with dropout 0.2, batch 128, Adam.

    python launch.py --config=tests/benchmarks/workloads/mlp.py --workdir=runs/mlp

A workload of `tests/benchmarks/compare.py`, on made-up examples.
"""

import tf_keras as keras
from ml_collections import ConfigDict

from framework import layers, metrics
from tests.benchmarks.workloads import common, models
from tests.benchmarks.workloads.common import make_schedule  # noqa: F401


def get_config(arg: str) -> ConfigDict:
    """As `common.config_of`."""
    return common.config_of("mlp")


def make_data(cfg: ConfigDict, split: str):
    """60,000 pictures of 784 numbers in ten classes."""
    return common.batches_of("mlp", cfg, split)


def make_model(cfg: ConfigDict) -> keras.Model:
    """[batch, 784] -> logits [batch, 10]."""
    return models.mlp(layers.Dropout)


def make_loss(cfg: ConfigDict):
    """Mean cross-entropy of a batch."""
    return common.cross_entropy_of("mlp")


def make_metrics(cfg: ConfigDict):
    """Accuracy."""
    return {"accuracy": metrics.Accuracy()}

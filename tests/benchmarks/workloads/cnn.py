"""ResNet-20 of 32 x 32 pictures, batch 128, SGD with momentum.

    python launch.py --config=tests/benchmarks/workloads/cnn.py --workdir=runs/cnn

A workload of `tests/benchmarks/compare.py`, on made-up examples.
"""

import tf_keras as keras
from ml_collections import ConfigDict

from framework import metrics
from tests.benchmarks.workloads import common, models
from tests.benchmarks.workloads.common import make_schedule  # noqa: F401


def get_config(arg: str) -> ConfigDict:
    """As `common.config_of`."""
    return common.config_of("cnn")


def make_data(cfg: ConfigDict, split: str):
    """10,000 pictures of ten brightnesses."""
    return common.batches_of("cnn", cfg, split)


def make_model(cfg: ConfigDict) -> keras.Model:
    """[batch, 32, 32, 3] -> logits [batch, 10]."""
    return models.cnn()


def make_loss(cfg: ConfigDict):
    """Mean cross-entropy of a batch."""
    return common.cross_entropy_of("cnn")


def make_metrics(cfg: ConfigDict):
    """Accuracy."""
    return {"accuracy": metrics.Accuracy()}

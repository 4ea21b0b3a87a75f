"""Encoder-decoder Transformer, 2 + 2 layers of width 128, batch 64 x 32 + 32 tokens, Adam.

    python launch.py --config=tests/benchmarks/workloads/transformer.py --workdir=runs/transformer

A workload of `tests/benchmarks/compare.py`, on made-up examples.
"""

import functools

import tf_keras as keras
from ml_collections import ConfigDict

from framework import layers
from tests.benchmarks.workloads import arrays, common, models
from tests.benchmarks.workloads.common import make_schedule  # noqa: F401


def get_config(arg: str) -> ConfigDict:
    """As `common.config_of`."""
    return common.config_of("transformer")


def make_data(cfg: ConfigDict, split: str):
    """20,000 sequences of 32 tokens and the same reversed."""
    return common.batches_of("transformer", cfg, split)


def make_model(cfg: ConfigDict) -> keras.Model:
    """source, input [batch, 32] -> logits [batch, 32, 4000], with the layers of the framework."""
    sizes = (arrays.WIDTH, arrays.HEADS, arrays.FEED_FORWARD, arrays.DROPOUT)
    encoder, decoder = (functools.partial(kind, *sizes) for kind in (layers.EncoderLayer, layers.DecoderLayer))
    return models.transformer(layers.Dropout, encoder, decoder)


def make_loss(cfg: ConfigDict):
    """Mean cross-entropy of all tokens."""
    return common.cross_entropy_of("transformer")

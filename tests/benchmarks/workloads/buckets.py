"""The Transformer of `transformer.py` on sentences of many lengths, in buckets of a budget of tokens, with masks.

    python launch.py --config=tests/benchmarks/workloads/buckets.py --workdir=runs/buckets

A workload of `tests/benchmarks/beside_buckets.py`, on made-up sentences: target tokens are the source's, reversed.
"""

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from framework import data, layers, losses
from framework.config import base_config
from framework.data.sources import Source
from tests.benchmarks.workloads import arrays
from tests.benchmarks.workloads.common import make_schedule  # noqa: F401

PADDING, BEGIN, FIRST = 0, 1, 2  # tokens; the first of a sentence's own
LONGEST = 40
_SENTENCES, _EVALUATED, _MEDIAN, _SPREAD = 9_000, 256, 14.0, 0.3  # lengths are about those of captions of pictures


def get_config(arg: str) -> ConfigDict:
    """Two epochs of Adam at a constant rate, everything else as it is by default."""
    config = base_config()
    config.data.tokens, config.data.buckets = 4096, 12
    config.data.remainder = "drop"
    config.train.duration = "2 epochs"
    config.eval.splits = ("train_eval",)
    config.schedule.learning_rate = arrays.LEARNING_RATE["transformer"]
    for name, value in arrays.ADAM.items():
        config.optimizer[name] = value
    return config


def sentences(count: int) -> dict[str, np.ndarray]:
    """{'source', 'target': int32 [count, LONGEST], padded with 0; '<field>_length': int64 [count]}."""
    rng = np.random.default_rng(5)
    length = np.clip(np.round(_MEDIAN * np.exp(_SPREAD * rng.standard_normal(_SENTENCES))), 3, LONGEST).astype(int)
    tokens = rng.integers(FIRST, arrays.VOCABULARY, (_SENTENCES, LONGEST)).astype(np.int32)
    place = np.arange(LONGEST)
    source = np.where(place < length[:, np.newaxis], tokens, PADDING)
    behind = np.maximum(length[:, np.newaxis] - 1 - place, 0)
    target = np.where(source != PADDING, np.take_along_axis(source, behind, 1), PADDING)
    found = {"source": source, "target": target, "source_length": length, "target_length": length}
    return {name: array[:count] for name, array in found.items()}


def make_data(cfg: ConfigDict, split: str):
    """Batches [size of the bucket, length of the bucket]."""
    found = sentences(_SENTENCES if split == "train" else _EVALUATED)
    lengths = {field: found.pop(f"{field}_length") for field in ("source", "target")}
    buckets = data.Buckets.by_tokens(lengths, cfg.data.tokens, cfg.data.buckets)
    source = Source(found, origin="made up for 'buckets'")
    return data.make_batches(source, cfg, training=split == "train", transform=_weighted, buckets=buckets)


def _weighted(batch):
    is_token = tf.cast(batch["target"] != PADDING, batch["weight"].dtype)
    return {**batch, "token_weight": is_token * batch["weight"][:, tf.newaxis]}


def make_model(cfg: ConfigDict) -> layers.Transformer:
    """(source, target) -> logits [batch, length, 4000]; one table embeds both and makes the logits."""
    sizes = {"width": arrays.WIDTH, "heads": arrays.HEADS, "feed_forward": arrays.FEED_FORWARD}
    stack = {"layers": arrays.LAYERS, "dropout": arrays.DROPOUT, **sizes}
    return layers.Transformer(arrays.VOCABULARY, padding=PADDING, begin=BEGIN, **stack)


def make_loss(cfg: ConfigDict):
    """Mean cross-entropy of all tokens that are no padding."""

    def loss(model, batch, training):
        logits = model((batch["source"], batch["target"]), training=training)
        return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["target"], batch["token_weight"])}, {
            "logits": logits
        }

    return loss


def epoch(batches) -> list[dict[str, np.ndarray]]:
    """The batches of the first epoch, for peers: 'source', 'input', 'target' [size, length], 'weight' of each token."""
    found = []
    for step in range(int(batches.steps_per_epoch)):
        batch = {name: tensor.numpy() for name, tensor in batches.at(step).items()}
        begun = np.concatenate([np.full_like(batch["target"][:, :1], BEGIN), batch["target"][:, :-1]], axis=1)
        kept = {name: batch[name] for name in ("source", "target")}
        found.append({**kept, "input": begun, "weight": batch["token_weight"]})
    return found

"""What the experiment files of this folder share: config, batches of `arrays.py`, schedule, cross-entropy."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import losses, optim
from framework.config import base_config
from framework.data.batches import Batches, make_batches
from framework.data.sources import Source
from tests.benchmarks.workloads import arrays, models

_EVALUATED = 1024


def config_of(workload: str) -> ConfigDict:
    """Two epochs at a constant rate, everything else as it is by default."""
    config = base_config()
    config.data.batch_size = arrays.BATCH[workload]
    config.train.duration = "2 epochs"
    config.eval.splits = ("train_eval",)
    config.schedule.learning_rate = arrays.LEARNING_RATE[workload]
    if workload == "cnn":
        config.optimizer.name, config.optimizer.momentum = "sgd", arrays.MOMENTUM
    else:
        for name, value in arrays.ADAM.items():
            config.optimizer[name] = value
    return config


def batches_of(workload: str, cfg: ConfigDict, split: str) -> Batches:
    """All examples for training; the first of them to be evaluated on."""
    source = Source(arrays.arrays(workload), origin=f"made up for '{workload}'")
    if split != "train":
        source = Source(source.take(np.arange(_EVALUATED)), origin=source.origin)
    return make_batches(source, cfg, training=split == "train")


def make_schedule(cfg: ConfigDict, total_steps: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """As `config.schedule` says."""
    return optim.make_schedule(cfg, total_steps)


def cross_entropy_of(workload: str):
    """The loss of a classifier: mean cross-entropy over examples, or over all tokens of all examples."""

    def loss(model: keras.Model, batch: dict[str, tf.Tensor], training: bool):
        logits, target = model(models.inputs(workload, batch), training=training), batch[models.TARGET[workload]]
        weight = tf.reshape(batch["weight"], [-1, *[1] * (target.shape.rank - 1)]) * tf.ones(target.shape[1:])
        return {"cross_entropy": losses.sparse_cross_entropy(logits, target, weight)}, {"logits": logits}

    return loss

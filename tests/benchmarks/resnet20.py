"""ResNet-20 of 32 x 32 pictures (He et al., 2016, section 4.2) on 1,024 made-up ones: a CNN step to be timed.

    python tests/benchmarks/mirrored_overhead.py

Batch 128, SGD with momentum 0.9, float32, 269,722 weights; shortcuts without weights. It is built like any experiment.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import losses, metrics, optim
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.sources import Source

EXAMPLES = 1024


def get_config(arg: str) -> ConfigDict:
    """Blocks of 2 steps; nothing is logged, evaluated or saved."""
    config = base_config()
    config.data.batch_size = config.eval.batch_size = 128
    config.train.duration = "1000000 steps"
    config.train.block_steps = 2
    config.train.compile = "graph"
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.schedule.name, config.schedule.learning_rate = "constant", 0.01
    config.checkpoint.best_metric = ""
    return config


def make_data(cfg: ConfigDict, split: str):
    """Noise of ten brightnesses."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, EXAMPLES).astype(np.int32)
    image = (rng.normal(size=(EXAMPLES, 32, 32, 3)) + label[:, None, None, None] / 5 - 1).astype(np.float32)
    return make_batches(Source({"image": image, "label": label}, origin="noise"), cfg, training=split == "train")


def convolution(x, width: int, stride: int = 1):
    """3 x 3 and BatchNorm."""
    x = keras.layers.Conv2D(width, 3, stride, "same", use_bias=False, kernel_initializer="he_normal")(x)
    return keras.layers.BatchNormalization()(x)


def residual(x, width: int, stride: int):
    """Two convolutions beside a shortcut that is thinned out and padded with zeros."""
    inner = keras.layers.ReLU()(convolution(x, width, stride))
    inner = convolution(inner, width)
    if stride > 1:
        x = keras.layers.Lambda(lambda x: tf.pad(x[:, ::2, ::2], [[0, 0], [0, 0], [0, 0], [0, x.shape[-1]]]))(x)
    return keras.layers.ReLU()(inner + x)


def make_model(cfg: ConfigDict) -> keras.Model:
    """[batch, 32, 32, 3] -> logits [batch, 10]: 1 + 3 x 3 x 2 convolutions and a dense layer."""
    inputs = keras.Input([32, 32, 3])
    x = keras.layers.ReLU()(convolution(inputs, 16))
    for width in (16, 32, 64):
        for block in range(3):
            x = residual(x, width, 2 if width > 16 and block == 0 else 1)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def make_loss(cfg: ConfigDict):
    """Mean cross-entropy of a batch."""

    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        terms = {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}
        return terms, {"logits": logits}

    return loss


def make_schedule(cfg: ConfigDict, total_steps: int):
    """As `config.schedule` says."""
    return optim.make_schedule(cfg, total_steps)


def make_metrics(cfg: ConfigDict):
    """Accuracy."""
    return {"accuracy": metrics.Accuracy()}

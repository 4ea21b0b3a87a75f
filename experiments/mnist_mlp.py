"""MNIST with a small dense network (784-128-10): the smallest complete experiment.

    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist

About 15 seconds on two CPU cores; expect a test accuracy of 0.979 after 5 epochs (three seeds: experiments/README.md).
Presets: `constant` (Adam at 1e-3), `adamw`, `sgd` (momentum, piecewise), `fashion` (Fashion-MNIST).
"""

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import layers, losses, metrics, optim, precision
from framework.config import base_config, check_choice, check_range
from framework.config.overrides import apply_preset
from framework.data.batches import make_batches
from framework.data.sets.mnist import load_mnist
from framework.export.base import SERVING, Signature
from framework.export.lite import Lite
from framework.export.saved_model import SavedModel

PRESETS = {
    "constant": {"schedule.name": "constant", "schedule.learning_rate": 1e-3, "schedule.warmup": ""},
    "adamw": {"optimizer.name": "adamw", "optimizer.weight_decay": 0.01},
    "sgd": {
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.9,
        "schedule.name": "piecewise",
        "schedule.learning_rate": 0.1,
        "schedule.boundaries": ("60%", "85%"),
        "schedule.factors": (0.1, 0.01),
    },
    "fashion": {"data.name": "fashion_mnist"},
}


def get_config(arg: str) -> ConfigDict:
    """5 epochs of Adam under a cosine."""
    config = base_config()
    config.data.name = "mnist"
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 5e-3
    config.schedule.warmup = "5%"
    config.model.hidden = 128
    config.model.dropout = 0.2
    config.model.initializer = "glorot_uniform"  # or he_normal
    config.model.l2 = 0.0  # of the kernels; adds l2 * sum(w**2) to the loss
    config.checkpoint.best_metric = "test/accuracy"
    return apply_preset(config, arg, PRESETS)


def check_config(cfg: ConfigDict) -> None:
    """The rules of the keys above that are ours."""
    check_choice("data.name", cfg.data.name, ("mnist", "fashion_mnist"))
    check_choice("model.initializer", cfg.model.initializer, ("glorot_uniform", "he_normal"))
    check_range("model.hidden", cfg.model.hidden, 1, None)
    check_range("model.dropout", cfg.model.dropout, 0, 0.99)
    check_range("model.l2", cfg.model.l2, 0, None)


def make_data(cfg: ConfigDict, split: str):
    """uint8 pictures on the device, made floats of 0..1 in the step."""

    def to_float(batch):
        # A product: compilers make one of a quotient, or do not, and the pixels differ in the last bit.
        return {**batch, "image": tf.cast(batch["image"], precision.full(cfg.train.precision)) * (1 / 255)}

    return make_batches(
        load_mnist(cfg.data.name, split, cfg.data.dir), cfg, training=split == "train", transform=to_float
    )


def make_model(cfg: ConfigDict) -> keras.Model:
    """[batch, 28, 28] -> logits [batch, 10]."""

    def dense(units: int, **kwargs):
        regularizer = keras.regularizers.L2(cfg.model.l2) if cfg.model.l2 else None
        return keras.layers.Dense(
            units, kernel_initializer=cfg.model.initializer, kernel_regularizer=regularizer, **kwargs
        )

    return keras.Sequential(
        [
            keras.layers.Flatten(),
            dense(cfg.model.hidden, activation="relu"),
            layers.Dropout(cfg.model.dropout),
            dense(10, dtype=precision.full(cfg.train.precision)),
        ]
    )


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
    """Accuracy on each training step and each evaluation split."""
    return {"accuracy": metrics.Accuracy()}


def make_exports(cfg: ConfigDict):
    """For TensorFlow Serving and for LiteRT: pictures of 0..1 -> logits."""
    signature = Signature(
        fn=lambda model, inputs: {"logits": model(inputs["image"], training=False)},
        inputs={"image": tf.TensorSpec([None, 28, 28], precision.full(cfg.train.precision))},
    )
    return [SavedModel({SERVING: signature}), Lite(signature)]

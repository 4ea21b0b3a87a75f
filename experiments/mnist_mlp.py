"""MNIST with a small dense network (784-128-10): the smallest complete experiment.

    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist

About 15 seconds on two CPU cores; expect a test accuracy of 0.979 after 5 epochs (three seeds: experiments/README.md).
Presets: `constant` (Adam at 1e-3), `adamw`, `sgd` (momentum, piecewise), `fashion` (Fashion-MNIST).
"""

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import config, data, export, layers, losses, metrics, optim, precision

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
    """Returns the defaults with 5 epochs of Adam under a cosine schedule, and the preset `arg` on top."""
    cfg = config.base_config()
    cfg.data.name = "mnist"
    cfg.schedule.name = "cosine"
    cfg.schedule.learning_rate = 5e-3
    cfg.schedule.warmup = "5%"
    cfg.model.hidden = 128
    cfg.model.dropout = 0.2
    cfg.model.initializer = "glorot_uniform"  # or he_normal
    cfg.model.l2 = 0.0  # of the kernels; adds l2 * sum(w**2) to the loss
    cfg.checkpoint.best_metric = "test/accuracy"
    return config.apply_preset(cfg, arg, PRESETS)


def check_config(cfg: ConfigDict) -> None:
    """Refuses values of this file's own keys that the functions below cannot use."""
    config.check_choice("data.name", cfg.data.name, ("mnist", "fashion_mnist"))
    config.check_choice("model.initializer", cfg.model.initializer, ("glorot_uniform", "he_normal"))
    config.check_range("model.hidden", cfg.model.hidden, 1, None)
    config.check_range("model.dropout", cfg.model.dropout, 0, 0.99)
    config.check_range("model.l2", cfg.model.l2, 0, None)


def make_data(cfg: ConfigDict, split: str):
    """Returns the batches of a split: uint8 pictures that stay on the device and become floats of 0..1 in the step."""

    def to_float(batch):
        # Multiply: some compilers turn x / 255 into a product and some do not, and the last bits would differ.
        return {**batch, "image": tf.cast(batch["image"], precision.full(cfg.train.precision)) * (1 / 255)}

    source = data.load_mnist(cfg.data.name, split, cfg.data.dir)
    return data.make_batches(source, cfg, training=split == "train", transform=to_float)


def make_model(cfg: ConfigDict) -> keras.Model:
    """Returns the network: pictures [batch, 28, 28] -> logits [batch, 10]."""

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
    """Returns the loss: the mean cross-entropy of a batch."""

    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        terms = {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}
        return terms, {"logits": logits}

    return loss


def make_schedule(cfg: ConfigDict, total_steps: int):
    """Returns the learning rate of each update, as the `schedule` keys say."""
    return optim.make_schedule(cfg, total_steps)


def make_metrics(cfg: ConfigDict):
    """Returns what is measured beside the loss, in training and on each evaluation split."""
    return {"accuracy": metrics.Accuracy()}


def make_exports(cfg: ConfigDict):
    """Returns the exports, for TensorFlow Serving and for LiteRT: pictures of 0..1 -> logits."""
    signature = export.Signature(
        fn=lambda model, inputs: {"logits": model(inputs["image"], training=False)},
        inputs={"image": tf.TensorSpec([None, 28, 28], precision.full(cfg.train.precision))},
    )
    served = export.SavedModel({export.SERVING: signature}, serving=export.Serving("mnist"))
    return [served, export.Lite(signature)]


def sweep(trial):
    """Returns the overrides of a trial of --mode=sweep, which Optuna chooses."""
    return {
        "schedule.learning_rate": trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True),
        "model.hidden": trial.suggest_categorical("hidden", [64, 128, 256]),
        "model.dropout": trial.suggest_float("dropout", 0.0, 0.5),
    }

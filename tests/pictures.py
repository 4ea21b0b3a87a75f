"""An experiment on a few made-up pictures that are augmented in most of the ways of `data.augment`.

    python launch.py --config=tests/pictures.py --mode=verify_resume

The preset `few` has three of them, which trace and compile faster.
"""

import numpy as np
import tf_keras as keras
from ml_collections import ConfigDict

from framework import config, data, losses, optim, precision
from framework.data import augment

SIDE = 8
FIRST = (augment.PadAndCrop(2, fill="reflect"), augment.AlternatingFlip())
MORE = (
    augment.RandAugment(operations=1),
    augment.Affine(rotate=10, translate=0.1),
    augment.ColourJitter(0.2, 0.2, 0.2),
    augment.RandomErasing(),
    augment.OneOf(augment.MixUp(0.5), augment.CutMix(1.0)),
)
NORMALISE = augment.Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
PRESETS = {"few": {"data.few": True}}


def get_config(arg: str) -> ConfigDict:
    """Returns the config of 12 steps over five epochs."""
    cfg = config.base_config()
    cfg.seed = 5
    cfg.data.few = False
    cfg.data.batch_size = 4
    cfg.eval.batch_size = 4
    cfg.train.duration = "12 steps"
    cfg.train.compile = "graph"
    cfg.train.block_steps = 4
    cfg.schedule.learning_rate = 0.01
    cfg.log.every = "1 step"
    cfg.log.images = 0
    cfg.log.histograms_every = ""
    cfg.checkpoint.every = "3 steps"
    return config.apply_preset(cfg, arg, PRESETS)


def chain(few: bool) -> augment.Chain:
    """Returns the augmentation of the training pictures."""
    return augment.Chain(*FIRST, *([augment.MixUp(0.5)] if few else MORE), NORMALISE)


def source(count: int = 10, seed: int = 0, **fields) -> data.Source:
    """Returns pictures of noise."""
    pictures = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
    return data.Source({"image": pictures, "label": np.arange(count, dtype=np.int32) % 3, **fields}, origin="noise")


def make_data(cfg: ConfigDict, split: str):
    training = split == "train"
    return data.make_batches(source(), cfg, training=training, transform=chain(cfg.data.few) if training else NORMALISE)


def make_model(cfg: ConfigDict) -> keras.Model:
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3, dtype=precision.full(cfg.train.precision))])


def make_loss(cfg: ConfigDict):
    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        return {"cross_entropy": losses.mixed(losses.sparse_cross_entropy, logits, batch)}, {"logits": logits}

    return loss


def make_schedule(cfg: ConfigDict, total_steps: int):
    return optim.make_schedule(cfg, total_steps)

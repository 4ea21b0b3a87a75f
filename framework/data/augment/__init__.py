"""Augmentation: functions of a batch that change pictures at random, alike in every compile mode and on any replicas.

    augmentation = augment.Chain(augment.PadAndCrop(4), augment.Flip(), augment.Normalise(mean, std))
    return data.make_batches(source, cfg, training=True, transform=augmentation)

| function | what it does |
|---|---|
| `PadAndCrop` | shifts by whole pixels |
| `Flip`, `AlternatingFlip` | mirrors at random, or each example in every other epoch |
| `Affine` | rotation, translation, scale and shear, in one interpolation |
| `ColourJitter` | brightness, contrast, saturation, hue |
| `Cutout`, `RandomErasing` | erases a square or a rectangle |
| `MixUp`, `CutMix` | mixes two examples, with both labels |
| `RandAugment` | operations drawn from a list |
| `Normalise` | per channel; TensorBoard shows the pictures as they were before |
| `Chain`, `OneOf` | all in a row, or one of several for each example |

Pictures are [batch, height, width, channels], uint8 (0 to 255) or floating (0 to 1). All but `Normalise` keep the
dtype. Fields of the data order, `index` and `epoch`, come to a transform that has an attribute `needs`.
"""

from framework.data.augment.base import Augmentation, Chain, OneOf, recorded
from framework.data.augment.colour import ColourJitter, Normalise
from framework.data.augment.erasing import Cutout, RandomErasing
from framework.data.augment.geometry import Affine, AlternatingFlip, Flip, PadAndCrop
from framework.data.augment.mixing import CutMix, MixUp
from framework.data.augment.rand_augment import RandAugment

__all__ = [
    "Affine",
    "AlternatingFlip",
    "Augmentation",
    "Chain",
    "ColourJitter",
    "CutMix",
    "Cutout",
    "Flip",
    "MixUp",
    "Normalise",
    "OneOf",
    "PadAndCrop",
    "RandAugment",
    "RandomErasing",
    "recorded",
]

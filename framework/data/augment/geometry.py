"""Augmentations that move pixels: crops, flips, and rotation, translation, scale and shear in one.

Chain(PadAndCrop(4), Flip())                            # CIFAR-10 as in He et al., 2015
Affine(rotate=15, translate=0.1, scale=(0.9, 1.1))      # one interpolation for all of them
"""

import dataclasses
from typing import ClassVar

import numpy as np
import tensorflow as tf

from framework import rng
from framework.data.augment.base import Augmentation, choose
from framework.data.augment.draws import below, between, check_between, entry, grid, happens, span
from framework.data.augment.sampling import CROP_FILLS, FILLS, INTERPOLATIONS, affine, check_choice, crop
from framework.data.fields import Batch
from framework.errors import UserError


@dataclasses.dataclass(frozen=True)
class PadAndCrop(Augmentation):
    """Shifts each picture by up to `pixels` along both axes, all shifts alike: pads it and crops its size again.

    Attributes:
      pixels: width of the padding.
      fill: what the padding holds: zeros, edge, reflect or symmetric, as in np.pad.
    """

    pixels: int = 4
    fill: str = "zeros"

    def __post_init__(self) -> None:
        check_between("PadAndCrop: pixels", self.pixels, 0, 2**15)
        check_choice("PadAndCrop: fill", self.fill, CROP_FILLS)

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns the row and column of the first pixel, int32 [batch] each."""
        place = below(self.stream, batch[self.field], 2, 2 * self.pixels + 1) - self.pixels
        return place[:, 0], place[:, 1]

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        top, left = drawn
        if self.fill in ("zeros", "edge") and self.pixels >= min(images.shape[1:3]):
            raise UserError(
                f"augment.PadAndCrop: a shift by {self.pixels} pixels leaves nothing of pictures of {images.shape[1]} x"
                f" {images.shape[2]}. Give fewer pixels, or fill='reflect'."
            )
        return crop(images, top, left, images.shape[1], images.shape[2], self.fill)


@dataclasses.dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors each picture with probability `rate`.

    Attributes:
      rate: 0 to 1.
      vertical: top and bottom are exchanged, instead of left and right.
    """

    rate: float = 0.5
    vertical: bool = False

    def __post_init__(self) -> None:
        check_between("Flip: rate", self.rate, 0, 1)

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns whether each picture is mirrored, bool [batch]."""
        return (happens(self.stream, batch[self.field], self.rate),)

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        return choose(drawn[0], images[:, ::-1] if self.vertical else images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True)
class AlternatingFlip(Augmentation):
    """Mirrors a random half of the examples in even epochs, and the other half in odd epochs.

    In two epochs each example is seen once as it is and once mirrored. Source: Keller Jordan, 2024, "94% on CIFAR-10 in
    3.29 seconds on a single GPU".
    """

    needs: ClassVar[tuple[str, ...]] = ("index", "epoch")

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns whether each picture is mirrored, bool [batch]: a function of (seed, index, epoch)."""
        coin = rng.bits_of_index(self.stream, batch["index"]) & 1
        return (tf.cast(coin, tf.int64) != batch["epoch"] % 2,)

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        return choose(drawn[0], images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True)
class Affine(Augmentation):
    """Rotates, shears, scales (in this order, about the centre) and shifts each picture, with one interpolation.

    Each argument is a range (low, high), or a number that stands for -number to +number.

    Attributes:
      rotate: degrees, positive is clockwise; one of 4096 values.
      translate: shift right and down, each a fraction of the width or height.
      scale: (low, high) of the size; a number s stands for 1 - s to 1 + s.
      shear: degrees along x; one of 4096 values.
      fill: what lies beyond the picture: constant, nearest (its edge), symmetric (mirrored) or wrap.
      value: of the constant, in the unit of the pictures.
      interpolation: bilinear or nearest.
    """

    rotate: float | tuple[float, float] = 0.0
    translate: float | tuple[float, float] = 0.0
    scale: float | tuple[float, float] = 0.0
    shear: float | tuple[float, float] = 0.0
    fill: str = "constant"
    value: float = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        self._ranges()
        span("Affine: rotate", self.rotate)
        low, high = span("Affine: shear", self.shear)
        check_between("Affine: shear", max(abs(low), abs(high)), 0, 89)
        check_choice("Affine: fill", self.fill, FILLS)
        check_choice("Affine: interpolation", self.interpolation, INTERPOLATIONS)

    def _ranges(self) -> list[tuple[float, float]]:
        shift = span("Affine: translate", self.translate)
        return [shift, shift, span("Affine: scale", self.scale, middle=1.0, least=1e-3)]

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns the map from the new picture to the source, float32 [batch, 6], see `sampling.affine`."""
        images = batch[self.field]
        turn = entry(self.stream, images, _turns(*span("Affine: rotate", self.rotate)))
        shear = entry(self.stream, images, np.tan(np.radians(grid(*span("", self.shear)))).astype(np.float32))
        right, down, scale = between(self.stream, images, self._ranges())
        return (matrices(turn[:, 0], turn[:, 1], shear, scale, right, down, *images.shape[1:3]),)

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        return affine(images, drawn[0], self.fill, self.value, self.interpolation)


def _turns(low: float, high: float) -> np.ndarray:
    """Returns (cosine, sine) of the angles that can be drawn of a range of degrees, float32."""
    angles = np.radians(grid(low, high))
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def matrices(
    cosine: tf.Tensor,
    sine: tf.Tensor,
    shear: tf.Tensor,
    scale: tf.Tensor,
    right: tf.Tensor,
    down: tf.Tensor,
    height: int,
    width: int,
) -> tf.Tensor:
    """Returns the maps from new pictures to their sources, float32 [batch, 6]: the inverse of what is done.

    A point at (x, y) from the centre goes to scale * shear * turn (x, y) + shift.

    Args:
      cosine, sine: [batch], of the angle.
      shear: [batch], its tangent.
      scale: [batch].
      right, down: [batch], the shift as a fraction of width and height.
    """
    x_0, y_0 = (width - 1) / 2, (height - 1) / 2
    # The inverse of [[c, -s], [s, c]] after the shear [[1, t], [0, 1]]: turned back once the shear is taken off.
    a, b = cosine / scale, (sine - shear * cosine) / scale
    d, e = -sine / scale, (cosine + shear * sine) / scale
    x, y = x_0 + right * width, y_0 + down * height
    return tf.stack([a, b, x_0 - a * x - b * y, d, e, y_0 - d * x - e * y], axis=1)

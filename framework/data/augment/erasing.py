"""Augmentations that erase a rectangle of each picture.

Cutout(8)                   # DeVries and Taylor, 2017: a square around any pixel, so that a part may lie outside
RandomErasing(rate=0.5)     # Zhong et al., 2017: a rectangle of random area and shape, inside the picture
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from framework import rng
from framework.data.augment.base import Augmentation, count
from framework.data.augment.draws import below, check_between, entry, happens
from framework.data.augment.sampling import check_choice
from framework.data.fields import Batch
from framework.errors import UserError

_SHAPES = 64  # areas, and aspect ratios, of erased rectangles


def is_in_box(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Returns which pixels lie in a rectangle, bool [batch, rows, columns, 1]; it may reach beyond the picture."""
    y = tf.range(images.shape[1]) - top[:, tf.newaxis]  # [batch, rows]
    x = tf.range(images.shape[2]) - left[:, tf.newaxis]
    is_row, is_column = (y >= 0) & (y < height[:, tf.newaxis]), (x >= 0) & (x < width[:, tf.newaxis])
    return (is_row[:, :, tf.newaxis] & is_column[:, tf.newaxis])[..., tf.newaxis]


@dataclasses.dataclass(frozen=True)
class Cutout(Augmentation):
    """Sets a square of each picture to one value; its centre is any pixel, so a part of it may lie outside.

    Source: DeVries and Taylor, 2017, "Improved regularization of convolutional neural networks with Cutout".

    Attributes:
      size: side of the square in pixels.
      rate: the probability with which a picture has one.
      value: of erased pixels, in the unit of the pictures; after `Normalise`, 0 is the mean.
    """

    size: int
    rate: float = 1.0
    value: float = 0.0

    def __post_init__(self) -> None:
        check_between("Cutout: size", self.size, 0, 2**15)
        check_between("Cutout: rate", self.rate, 0, 1)

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns the square as (top, left, side), int32 [batch] each; the side is 0 if nothing is erased."""
        images = batch[self.field]
        first = below(self.stream, images, 2, images.shape[1:3]) - self.size // 2
        side = tf.where(happens(self.stream, images, self.rate), self.size, 0)
        return first[:, 0], first[:, 1], side

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        top, left, side = drawn
        return tf.where(is_in_box(images, top, left, side, side), tf.cast(self.value, images.dtype), images)


@dataclasses.dataclass(frozen=True)
class RandomErasing(Augmentation):
    """Erases a rectangle inside of each picture, of random area and shape.

    Source: Zhong et al., 2017, "Random erasing data augmentation". Area and the logarithm of the aspect ratio are drawn
    from a grid of 64 x 64 values, without those rectangles that do not fit.

    Attributes:
      rate: the probability with which a picture has one.
      area: (low, high) of the area, as a fraction of that of the picture.
      ratio: (low, high) of height / width.
      fill: 'value', or 'noise' for pixels that are drawn alike from black to white.
      value: of erased pixels, in the unit of the pictures.
    """

    rate: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: str = "value"
    value: float = 0.0

    def __post_init__(self) -> None:
        check_between("RandomErasing: rate", self.rate, 0, 1)
        check_choice("RandomErasing: fill", self.fill, ("value", "noise"))
        if not (0 <= self.area[0] <= self.area[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise UserError(f"augment.RandomErasing: area={self.area} and ratio={self.ratio} must be ranges above 0.")

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns the rectangle as (top, left, height, width), int32 [batch] each, and noise bytes if asked for."""
        images = batch[self.field]
        height, width = tf.unstack(entry(self.stream, images, self._sizes(*images.shape[1:3])), axis=1)
        room = tf.stack([images.shape[1] - height, images.shape[2] - width], axis=1) + 1
        first = below(self.stream, images, 2, room)
        height = tf.where(happens(self.stream, images, self.rate), height, 0)
        box = (first[:, 0], first[:, 1], height, width)
        if self.fill == "value":
            return box
        pixels = images.shape[1:].num_elements()
        words = rng.random_bits(self.stream, count(images), -(-pixels // 4))
        noise = tf.reshape(tf.bitcast(words, tf.uint8), [count(images), -1])[:, :pixels]
        return *box, tf.reshape(noise, [count(images), *images.shape[1:]])

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        box, noise = drawn[:4], drawn[4:]
        erased = tf.cast(self.value, images.dtype)
        if noise:
            erased = noise[0] if images.dtype == tf.uint8 else tf.cast(noise[0], images.dtype) * (1 / 255)
        return tf.where(is_in_box(images, *box), erased, images)

    def _sizes(self, height: int, width: int) -> np.ndarray:
        sizes = erased_sizes(height, width, self.area, self.ratio)
        if not len(sizes):
            raise UserError(
                f"augment.RandomErasing: no rectangle with area={self.area} and ratio={self.ratio} fits into pictures"
                f" of {height} x {width}."
            )
        return sizes


@functools.cache
def erased_sizes(height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]) -> np.ndarray:
    """Returns (height, width) of each rectangle of the grid that fits into a picture, int32 [rectangles, 2]."""
    middles = (np.arange(_SHAPES) + 0.5) / _SHAPES
    areas = (area[0] + (area[1] - area[0]) * middles)[:, np.newaxis] * height * width
    ratios = ratio[0] * (ratio[1] / ratio[0]) ** middles
    sizes = np.stack([np.sqrt(areas * ratios), np.sqrt(areas / ratios)], -1).round().astype(np.int32).reshape(-1, 2)
    return sizes[(sizes[:, 0] <= height) & (sizes[:, 1] <= width)]

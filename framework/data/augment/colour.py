"""Augmentations of colours, and the normalisation that comes last.

Chain(ColourJitter(brightness=0.4, contrast=0.4, hue=0.1), Normalise((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow as tf

from framework.data.augment.base import Augmentation, column, levels, of_levels, pictures_of
from framework.data.augment.draws import between, check_between, span
from framework.data.fields import Batch
from framework.errors import UserError

_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class ColourJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue of each picture, in this order, by factors drawn for it.

    Each of the first three is a range (low, high) of factors, or a number n that stands for max(0, 1 - n) to 1 + n;
    0 changes nothing. The value after each is clipped to black and white.

    Attributes:
      brightness: of the factor of all values.
      contrast: of the factor of the distance to the mean grey of the picture.
      saturation: of the factor of the distance to the grey of the same pixel.
      hue: (low, high) of the turn of the hue, in turns of the colour circle; n stands for -n to n, at most 0.5.
    """

    takes_levels: ClassVar[bool] = True
    brightness: float | tuple[float, float] = 0.0
    contrast: float | tuple[float, float] = 0.0
    saturation: float | tuple[float, float] = 0.0
    hue: float | tuple[float, float] = 0.0

    def __post_init__(self) -> None:
        self._ranges()
        low, high = span("ColourJitter: hue", self.hue)
        check_between("ColourJitter: hue", max(abs(low), abs(high)), 0, 0.5)

    def _ranges(self) -> list[tuple[float, float]]:
        names = ("brightness", "contrast", "saturation")
        factors = [span(f"ColourJitter: {name}", getattr(self, name), middle=1.0, least=0.0) for name in names]
        return [*factors, span("ColourJitter: hue", self.hue)]

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns the factors of brightness, contrast and saturation, and the turn of the hue, float32 [batch] each."""
        return tuple(between(self.stream, batch[self.field], self._ranges()))

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        values, white = levels(images)
        bright, contrasting, saturated, turn = (column(tf.cast(each, values.dtype), 4) for each in drawn)
        if self.brightness:
            values = tf.clip_by_value(values * bright, 0, white)
        if self.contrast:
            middle = tf.reduce_mean(grey(values), axis=[1, 2, 3], keepdims=True)
            values = tf.clip_by_value(blend(middle, values, contrasting), 0, white)
        if self.saturation:
            values = tf.clip_by_value(blend(grey(values), values, saturated), 0, white)
        if self.hue:
            values = turned(values / white, turn) * white
        return of_levels(values, images.dtype)


def grey(values: tf.Tensor) -> tf.Tensor:
    """Returns the luma of colours, [..., 3] -> [..., 1]; pictures of one channel are grey already."""
    if values.shape[-1] == 1:
        return values
    check_colours(values)
    red, green, blue = tf.unstack(values, axis=-1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[..., tf.newaxis]


def check_colours(values: tf.Tensor) -> None:
    """Raises UserError unless pictures have red, green and blue."""
    if values.shape[-1] != 3:
        raise UserError(
            f"augment: pictures with {values.shape[-1]} channels have no colours to change; those with 3, red, green"
            " and blue, have. Leave saturation, hue and contrast out."
        )


def blend(base: tf.Tensor, values: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns `base` at factor 0, `values` at factor 1, and what lies beyond them at others."""
    return base + factor * (values - base)


def turned(values: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Returns colours of 0 to 1 whose hue, of HSV, is turned by a part of the circle."""
    check_colours(values)
    hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(values), axis=-1)
    hue = hue + turn[..., 0]
    return tf.image.hsv_to_rgb(tf.stack([hue - tf.floor(hue), saturation, value], axis=-1))


@dataclasses.dataclass(frozen=True)
class Normalise(Augmentation):
    """Subtracts a mean and divides by a standard deviation, by channel; it draws nothing.

    Attributes:
      mean: of each channel, for pictures from 0 to 1; those of uint8 are first divided by 255.
      std: of each channel, above 0.
      dtype: of the result; by default float32 of uint8, and else that of the pictures.
    """

    takes_levels: ClassVar[bool] = True
    normalises: ClassVar[bool] = True
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: str | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise UserError(f"augment.Normalise: mean={self.mean} and std={self.std} need a number above 0 a channel.")

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        if images.shape[-1] != len(self.mean) and len(self.mean) > 1:
            raise UserError(
                f"augment.Normalise: '{self.field}' has {images.shape[-1]} channels, and mean={self.mean} has"
                f" {len(self.mean)} numbers. Give one a channel."
            )
        if images.dtype == tf.uint8 and max(self.mean) > 1:
            raise UserError(
                f"augment.Normalise: mean={self.mean} is of pixels from 0 to 255, but those of uint8 are first divided"
                " by 255. Divide mean and std by 255, too."
            )
        dtype = tf.as_dtype(self.dtype or (tf.float32 if images.dtype == tf.uint8 else images.dtype))
        wide = tf.float64 if dtype == tf.float64 else tf.float32
        white = 255 if images.dtype == tf.uint8 else 1
        mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        # One product and one sum: a quotient has other last bits in each compile mode.
        scale, shift = tf.constant(1 / (std * white), wide), tf.constant(-mean / std, wide)
        return tf.cast(tf.cast(images, wide) * scale + shift, dtype)

    def to_pictures(self, batch: Mapping[str, tf.Tensor]) -> Batch:
        """Returns the batch with pictures of 0 to 1, as they were before."""
        images = pictures_of(batch, self.field, self.name)
        mean, std = (tf.constant(np.array(values), tf.float32) for values in (self.mean, self.std))
        return {**batch, self.field: tf.clip_by_value(tf.cast(images, tf.float32) * std + mean, 0, 1)}

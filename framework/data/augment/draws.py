"""What augmentations draw: whole numbers, numbers of a range, and entries of a table.

    top = below("augment/PadAndCrop", images, 2, 9)                   # int32 [batch, 2], 0 to 8
    side = entry("augment/CutMix", images, sides)                     # a row of `sides` for each example

Roots, exponentials and sines of a draw have other last bits in each compile mode. Therefore they are computed once, by
NumPy, for all values that can be drawn, and looked up.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from framework import rng
from framework.data.augment.base import count
from framework.errors import UserError

GRID = 2**12  # values that a number of a table can have


def below(stream: str, images: tf.Tensor, per_example: int, limit: Any) -> tf.Tensor:
    """Draws int32 [batch, per_example], each value from 0 to `limit` - 1 alike; `limit` is broadcast."""
    words = rng.random_bits(stream, count(images), per_example)
    return tf.cast(words % tf.cast(limit, tf.uint32), tf.int32)


def happens(stream: str, images: tf.Tensor, rate: float) -> tf.Tensor:
    """Draws bool [batch], True with probability `rate`."""
    if rate >= 1:
        return tf.ones([count(images)], tf.bool)
    word = rng.random_bits(stream, count(images), 1)[:, 0]
    return word < tf.constant(round(rate * 2**32), tf.uint32)


def between(stream: str, images: tf.Tensor, ranges: list[tuple[float, float]]) -> list[tf.Tensor]:
    """Draws a float32 [batch] for each of some ranges (low, high)."""
    uniform = rng.uniform(stream, count(images), len(ranges))
    return [low + (high - low) * uniform[:, place] for place, (low, high) in enumerate(ranges)]


def entry(stream: str, images: tf.Tensor, table: np.ndarray) -> tf.Tensor:
    """Draws a row of a table [rows, ...] for each example, all rows alike."""
    return tf.gather(tf.constant(table), below(stream, images, 1, len(table))[:, 0])


def grid(low: float, high: float) -> np.ndarray:
    """Returns the middles of GRID equal parts of a range, float64."""
    return low + (high - low) * (np.arange(GRID) + 0.5) / GRID


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raises UserError unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(f"augment.{name}={value} must be from {low:g} to {high:g}.")


def span(name: str, value: Any, middle: float = 0.0, least: float | None = None) -> tuple[float, float]:
    """Returns the range (low, high) of an argument: two numbers, or one that stands for middle -/+ value.

    Args:
      name: augmentation and argument, for errors.
      least: the smallest low of the range that one number stands for.
    """
    if isinstance(value, int | float):
        low, high = middle - value, middle + value
        low = low if least is None else max(least, low)
    elif isinstance(value, tuple | list) and len(value) == 2:
        low, high = map(float, value)
    else:
        raise UserError(f"augment.{name}={value!r} must be a number, or (low, high).")
    if not (np.isfinite([low, high]).all() and low <= high and (least is None or low >= least)):
        raise UserError(f"augment.{name}={value} is the range {low:g} to {high:g}, which is empty or out of bounds.")
    return low, high

"""Augmentations that mix two examples: the loss weighs both labels.

    augmentation = Chain(PadAndCrop(4), Flip(), OneOf(MixUp(0.2), CutMix(1.0)), Normalise(mean, std))

    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        return {"cross_entropy": losses.mixed(losses.sparse_cross_entropy, logits, batch)}, {"logits": logits}

An example is mixed with its neighbour: places 0 and 1 of the global batch, 2 and 3, and so on. The order of the data is
shuffled anew in each epoch, so the neighbour is a random example, and a replica has both of each pair.
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from framework.data.augment.base import Augmentation, column, count, levels, of_levels, pictures_of, program
from framework.data.augment.draws import GRID, below, check_between, entry, happens
from framework.data.augment.erasing import is_in_box
from framework.data.fields import Batch
from framework.errors import UserError

_POINTS = 2**16  # of the integral of a beta distribution
_STEPS = 2**20  # quantiles are multiples of 1 / _STEPS, so that they are the same on every machine


@dataclasses.dataclass(frozen=True)
class _Mixing(Augmentation):
    """Mixes each example with its neighbour.

    The batch gets `label_2`, the label of the neighbour, and `mix` float32 [batch], the weight of `label`: that of
    `label_2` is 1 - mix. Each example has its own draw of the weight, from the distribution Beta(alpha, alpha).

    Attributes:
      alpha: of the distribution; 1 is uniform, and smaller numbers mix less.
      rate: the probability with which an example is mixed; the `mix` of others is 1.
      label: the field of the labels, of any shape and dtype.
    """

    alpha: float = 1.0
    rate: float = 1.0
    label: str = "label"

    def __post_init__(self) -> None:
        check_between(f"{self.name}: alpha", self.alpha, 0.01, 100)
        check_between(f"{self.name}: rate", self.rate, 0, 1)

    def __call__(self, batch: Batch) -> Batch:
        images = pictures_of(batch, self.field, self.name)
        if self.label not in batch:
            raise UserError(f"augment.{self.name}: the batch has no '{self.label}'. Name the labels: label='…'.")
        second = f"{self.label}_2"
        if "mix" in batch or second in batch:
            raise UserError(
                f"augment.{self.name}: the batch has '{second}' and 'mix' already. A loss takes two labels: write"
                " OneOf(MixUp(…), CutMix(…))."
            )
        mix, *drawn = self.draw(batch)
        mixed = program(self.change)(images, mix, *drawn)
        return {**batch, self.field: mixed, second: neighbours(batch[self.label], self.name), "mix": mix}


class MixUp(_Mixing):
    """Adds the neighbour's picture to each picture, with weights that sum to 1.

    Source: Zhang et al., 2017, "mixup: beyond empirical risk minimization".
    """

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns the weight of the example itself, float32 [batch]."""
        images = batch[self.field]
        share = entry(self.stream, images, beta_quantiles(self.alpha).astype(np.float32))
        return (tf.where(happens(self.stream, images, self.rate), share, 1.0),)

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        values, _ = levels(images)
        mix = column(tf.cast(drawn[0], values.dtype), 4)
        return of_levels(values * mix + neighbours(values, self.name) * (1 - mix), images.dtype)


class CutMix(_Mixing):
    """Replaces a rectangle of each picture by that of the neighbour's; `mix` is the area that is left.

    The sides of the rectangle are sqrt(1 - w) of those of the picture, with w from Beta(alpha, alpha), and its centre
    is any pixel, so that a part of it may lie outside. Source: Yun et al., 2019, "CutMix: regularization strategy to
    train strong classifiers with localizable features".
    """

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns `mix`, float32 [batch], and the rectangle as (top, left, height, width), int32 [batch] each."""
        images = batch[self.field]
        rows, columns = images.shape[1:3]
        sides = np.sqrt(1 - beta_quantiles(self.alpha))[:, np.newaxis] * [rows, columns]
        size = entry(self.stream, images, sides.astype(np.int32))
        size = tf.where(happens(self.stream, images, self.rate)[:, tf.newaxis], size, 0)
        centre = below(self.stream, images, 2, (rows, columns))
        first = tf.maximum(centre - size // 2, 0)
        size = tf.minimum(centre - size // 2 + size, (rows, columns)) - first
        # The table holds the quotients: compile modes divide with other last bits.
        left_of = tf.constant((1 - np.arange(rows * columns + 1) / (rows * columns)).astype(np.float32))
        return tf.gather(left_of, size[:, 0] * size[:, 1]), first[:, 0], first[:, 1], size[:, 0], size[:, 1]

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        return tf.where(is_in_box(images, *drawn[1:]), neighbours(images, self.name), images)


def neighbours(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """Returns for each place what stands at the other place of its pair: 0 and 1, 2 and 3, and so on.

    Args:
      tensor: [batch, ...], or a replica's shard of it.
      name: the augmentation, for errors.

    Raises:
      UserError: the number of examples is odd.
    """
    examples = count(tensor)
    if isinstance(examples, int) and examples % 2:
        raise UserError(
            f"augment.{name} mixes pairs of examples, but a batch, or the part of it that a replica has, is {examples}"
            f" examples. Choose --config.data.batch_size such that each replica has {examples - 1} or {examples + 1}."
        )
    pairs = tf.reshape(tensor, [-1, 2, *tensor.shape[1:]])
    return tf.reshape(tf.reverse(pairs, [1]), tf.shape(tensor) if tensor.shape[0] is None else tensor.shape)


@functools.cache
def beta_quantiles(alpha: float) -> np.ndarray:
    """Returns the quantiles of Beta(alpha, alpha) in the middles of GRID equal parts, float64."""
    # The integral of x**(alpha - 1) * (1 - x)**(alpha - 1) over v = x**power has no pole at 0.
    power = min(alpha, 1.0)
    v = np.linspace(0, 0.5**power, _POINTS)
    x = v ** (1 / power)
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    integral = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    at = (np.arange(GRID // 2) + 0.5) / (GRID // 2)
    lower = np.interp(at, integral / integral[-1], v) ** (1 / power)
    return np.asarray(np.round(np.concatenate([lower, 1 - lower[::-1]]) * _STEPS) / _STEPS)

"""Layers that change pictures at random in training, with the draws of `framework.rng`, and compiled by XLA.

    keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.05), keras.layers.Conv2D(32, 3)])

Arguments, values and inference are those of the layers of the same name in Keras, but for `seed`, which is the run's.
RandomCrop and RandomContrast draw for each picture, where Keras has one crop and one contrast for a whole batch. The
same augmentations as functions of a batch, for `make_data`, are in `framework/data/augment/`.
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import compat
from framework.data.augment import base, sampling
from framework.layers.draws import KeyedDraws


class _Augmenting(KeyedDraws):
    """Calls `changed` for pictures [batch, height, width, channels] in training, and Keras in inference."""

    def call(self, inputs: Any, training: Any = True) -> tf.Tensor:
        if not training:
            return self.unchanged(inputs)
        images = tf.cast(tf.convert_to_tensor(inputs), self.compute_dtype)  # type: ignore[attr-defined]
        if images.shape.rank != 4 or None in images.shape[1:]:
            raise ValueError(
                f"a {type(self).__name__} in training takes pictures [batch, height, width, channels] of one size, but"
                f" was given the shape {images.shape}"
            )
        return self.changed(images)

    def unchanged(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the pictures of an inference, as Keras does."""
        return super().call(inputs, training=False)  # type: ignore[misc]

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the pictures, changed at random."""
        raise NotImplementedError

    def drawn(self, images: tf.Tensor, low: float, high: float) -> tf.Tensor:
        """Draws numbers [batch] from low to high, in at least float32."""
        generator = compat.generator_of(self)
        drawn = generator.random_uniform([base.count(images)], low, high, dtype=base.levels(images)[0].dtype)
        return tf.convert_to_tensor(drawn)


class _Moving(_Augmenting):
    """Moves pixels by an affine map, with fill modes and interpolation of Keras."""

    fill_mode: str
    fill_value: float
    interpolation: str

    def moved(self, images: tf.Tensor, rows: list[Any]) -> tf.Tensor:
        """Returns the pictures under a map of `sampling.affine`, its six numbers each a scalar or [batch]."""
        zeros = tf.zeros([base.count(images)], base.levels(images)[0].dtype)
        matrices = tf.stack([row + zeros for row in rows], axis=1)
        fill = {"reflect": "symmetric"}.get(self.fill_mode, self.fill_mode)
        return base.program(sampling.affine)(images, matrices, fill, float(self.fill_value), self.interpolation)


class RandomFlip(_Augmenting, keras.layers.RandomFlip):
    """Mirrors each picture with probability 1/2, along the axes that `mode` names.

    Args:
      mode: horizontal, vertical or horizontal_and_vertical, whose two draws are independent.

    Call: x [batch, height, width, channels] -> same shape.
    """

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        for is_used, mirrored in ((self.horizontal, _to_left), (self.vertical, _upside_down)):
            if is_used:
                images = base.choose(self.drawn(images, 0.0, 1.0) < 0.5, mirrored(images), images)
        return images


def _to_left(images: tf.Tensor) -> tf.Tensor:
    return images[:, :, ::-1]


def _upside_down(images: tf.Tensor) -> tf.Tensor:
    return images[:, ::-1]


class RandomCrop(_Augmenting, keras.layers.RandomCrop):
    """Crops each picture to a size at a place drawn for it; pictures that are smaller are resized, as in inference.

    Call: x [batch, rows, columns, channels] -> [batch, height, width, channels].
    """

    def unchanged(self, inputs: tf.Tensor) -> tf.Tensor:
        # Keras traces its random crop too, in a branch of tf.cond: the graph of an export, without rng.scope, could not
        # be made. And it resizes in float32, whatever the dtype.
        wide = tf.cast(inputs, "float64" if self.compute_dtype == "float64" else "float32")
        middle = sampling.middle(wide, self.height, self.width)
        return tf.cast(sampling.resized(middle, self.height, self.width), self.compute_dtype)

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        room = np.array(images.shape[1:3]) - [self.height, self.width]
        if room.min() < 0:
            return self.unchanged(images)
        top, left = (tf.cast(tf.floor(self.drawn(images, 0.0, float(r + 1))), tf.int32) for r in room)
        top, left = tf.minimum(top, int(room[0])), tf.minimum(left, int(room[1]))
        return base.program(sampling.crop)(images, top, left, self.height, self.width, "edge")


class RandomTranslation(_Moving, keras.layers.RandomTranslation):
    """Shifts each picture by a fraction of its height and width.

    Call: x [batch, height, width, channels] -> same shape.
    """

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        down = self.drawn(images, self.height_lower, self.height_upper) * images.shape[1]
        right = self.drawn(images, self.width_lower, self.width_upper) * images.shape[2]
        return self.moved(images, [1.0, 0.0, -right, 0.0, 1.0, -down])


class RandomRotation(_Moving, keras.layers.RandomRotation):
    """Turns each picture about its centre, by a fraction of a whole turn.

    Call: x [batch, height, width, channels] -> same shape.
    """

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        angle = self.drawn(images, self.lower * 2 * np.pi, self.upper * 2 * np.pi)
        cosine, sine = tf.cos(angle), tf.sin(angle)
        y, x = images.shape[1] - 1, images.shape[2] - 1
        to_right, down = (x - (cosine * x - sine * y)) / 2, (y - (sine * x + cosine * y)) / 2
        return self.moved(images, [cosine, -sine, to_right, sine, cosine, down])


class RandomZoom(_Moving, keras.layers.RandomZoom):
    """Zooms each picture about its centre; positive factors zoom out.

    Call: x [batch, height, width, channels] -> same shape.
    """

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        vertical = self.drawn(images, 1 + self.height_lower, 1 + self.height_upper)
        horizontal = vertical
        if self.width_factor is not None:
            horizontal = self.drawn(images, 1 + self.width_lower, 1 + self.width_upper)
        y, x = (images.shape[1] - 1) / 2, (images.shape[2] - 1) / 2
        return self.moved(images, [horizontal, 0.0, x * (1 - horizontal), 0.0, vertical, y * (1 - vertical)])


class RandomContrast(_Augmenting, keras.layers.RandomContrast):
    """Multiplies the distance of each value to the mean of its channel by a factor drawn for the picture.

    The result is clipped to 0 … 255, as in Keras.

    Call: x [batch, height, width, channels] -> same shape.
    """

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        factor = base.column(self.drawn(images, 1.0 - self.lower, 1.0 + self.upper), 4)
        wide = tf.cast(images, factor.dtype)
        mean = tf.reduce_mean(wide, axis=[1, 2], keepdims=True)
        changed = (wide - mean) * factor + mean
        return tf.cast(tf.clip_by_value(changed, 0, 255), images.dtype)


class RandomBrightness(_Augmenting, keras.layers.RandomBrightness):
    """Adds a number drawn for each picture, and clips the result to `value_range`.

    Call: x [batch, height, width, channels] -> same shape.
    """

    def changed(self, images: tf.Tensor) -> tf.Tensor:
        low, high = compat.brightness_range(self)
        added = self.drawn(images, *compat.brightness_factor(self)) * (high - low)
        return tf.clip_by_value(images + base.column(tf.cast(added, images.dtype), 4), low, high)

"""Positions of tokens: vectors that are added to embeddings, fixed or learned, and rotations of queries and keys.

    x = layers.SinusoidalPositions()(embedded)                                       # [batch, length, width]
    x = layers.LearnedPositions(max_length=512)(embedded, layers.token_positions(is_token))
    table = layers.sinusoidal(length=32, width=128)                                  # float32 [32, 128]

Positions count from 0. They are given as int32 [batch or 1, length] where they are not 0, 1, 2, …: for sequences that
are padded on the left, and for the next token of a sequence that is decoded step by step.
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

_BASE = 10_000.0


def sinusoidal(length: int, width: int) -> np.ndarray:
    """Makes fixed vectors of positions: sines at even places of the width, cosines at odd ones.

    Returns:
      float32 [length, width], computed in float64.
    """
    place = np.arange(width)
    angle = np.arange(length)[:, np.newaxis] / 10_000 ** (place // 2 * 2 / width)
    return np.where(place % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def token_positions(is_token: tf.Tensor) -> tf.Tensor:
    """Returns how many tokens stand before each place of a sequence; padding on either side does not count.

    Args:
      is_token: bool [batch, length], False at padding.

    Returns:
      int32 [batch, length].
    """
    return tf.cumsum(tf.cast(is_token, tf.int32), axis=1, exclusive=True)


def rotate(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Rotates pairs of a vector by angles in proportion to its position.

    Pair i of a head holds the elements i and i + depth / 2. It turns by position / 10000**(2 i / depth), so that the
    product of a query and a key depends on the distance of their positions alone. Source: Su et al., 2021, "RoFormer:
    enhanced Transformer with rotary position embedding"; the paper pairs neighbours, which reorders the depth.

    Args:
      x: floating [batch, length, heads, depth], the depth even.
      positions: integer [batch or 1, length].

    Returns:
      The shape and dtype of x; angles are computed in at least float32.
    """
    half = x.shape[-1] // 2
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32
    frequencies = tf.constant(_BASE ** (-np.arange(half) / half), wide)
    angles = tf.cast(positions, wide)[:, :, tf.newaxis, tf.newaxis] * frequencies  # [batch, length, 1, half]
    cosine, sine = tf.cast(tf.cos(angles), x.dtype), tf.cast(tf.sin(angles), x.dtype)
    first, second = x[..., :half], x[..., half:]
    return tf.concat([first * cosine - second * sine, second * cosine + first * sine], -1)


class _AddedPositions(keras.layers.Layer):
    """Adds a row of a table, that of its position, to each vector of a sequence."""

    def __init__(self, max_length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"max_length={max_length} must be at least 1")
        self.max_length = max_length
        self.supports_masking = True

    def rows(self, width: int) -> tf.Tensor:
        """Returns the table, [max_length, width]."""
        raise NotImplementedError

    def call(self, x: tf.Tensor, positions: tf.Tensor | None = None) -> tf.Tensor:
        table = self.rows(x.shape[-1])
        if positions is not None:
            return x + tf.gather(table, positions)
        check_length(x.shape[1], self.max_length)
        if x.shape[1] is not None:
            return x + table[: x.shape[1]]
        length = tf.shape(x)[1]
        message = f"a sequence has more tokens than max_length={self.max_length} of the model's positions"
        with tf.control_dependencies([tf.debugging.Assert(length <= self.max_length, [message, length])]):
            return x + table[:length]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "max_length": self.max_length}


class SinusoidalPositions(_AddedPositions):
    """Adds the fixed vectors of `sinusoidal` to a sequence.

    Source: Vaswani et al., 2017, "Attention is all you need", section 3.5.

    Args:
      max_length: number of positions.

    Call: x, floating [batch, length, width] -> the same shape and dtype. `positions`, integer [batch or 1, length]: by
    default 0, 1, 2, …
    """

    def __init__(self, max_length: int = 1024, **kwargs: Any) -> None:
        super().__init__(max_length, **kwargs)

    def rows(self, width: int) -> tf.Tensor:
        """Returns the vectors of all positions, [max_length, width]."""
        return tf.constant(sinusoidal(self.max_length, width), self.compute_dtype)


class LearnedPositions(_AddedPositions):
    """Adds a trained vector of its position to each vector of a sequence.

    Source: Gehring et al., 2017, "Convolutional sequence to sequence learning".

    Args:
      max_length: number of positions.
      initializer: of the vectors.

    Call: x, floating [batch, length, width] -> the same shape and dtype. `positions`, integer [batch or 1, length]: by
    default 0, 1, 2, …
    """

    def __init__(self, max_length: int, initializer: Any = "uniform", **kwargs: Any) -> None:
        super().__init__(max_length, **kwargs)
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight("table", [self.max_length, input_shape[-1]], initializer=self.initializer)
        super().build(input_shape)

    def rows(self, width: int) -> tf.Tensor:
        """Returns the trained vectors, [max_length, width]."""
        return tf.cast(self.table, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "initializer": keras.initializers.serialize(self.initializer)}


def check_length(length: int | None, max_length: int) -> None:
    """Raises ValueError if a sequence, whose length may be unknown, has more tokens than there are positions."""
    if length is not None and length > max_length:
        raise ValueError(f"a sequence of length {length} has no position beyond max_length={max_length}; raise it")

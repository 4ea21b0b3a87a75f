"""Encoder and decoder layers of a Transformer with the normalisation before each sublayer.

    x = embedded * width**0.5 + layers.sinusoidal(length, width)             # [batch, length, width]
    x = layers.EncoderLayer(width, heads=4, feed_forward=4 * width, dropout=0.1)(x, is_token=source != PADDING)

A stack of them needs a `LayerNormalization` at its end, because nothing normalises the sum that a layer returns.
Sources: Vaswani et al., 2017, "Attention is all you need"; Xiong et al., 2020, "On layer normalization in the
Transformer architecture".
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework.layers.attention import MultiHeadAttention
from framework.layers.dropout import Dropout
from framework.layers.normalization import LayerNormalization

_EPSILON = 1e-6


def sinusoidal(length: int, width: int) -> np.ndarray:
    """Fixed positions: sines at even places of the width, cosines at odd ones.

    Returns:
      float32 [length, width], computed in float64.
    """
    place = np.arange(width)
    angle = np.arange(length)[:, np.newaxis] / 10_000 ** (place // 2 * 2 / width)
    return np.where(place % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


class _Layer(keras.layers.Layer):
    """What both kinds have: their sizes, and sublayers beside a sum."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        self._sizes = {"width": width, "heads": heads, "feed_forward": feed_forward, "dropout": dropout}
        self.attention_norm, self.attention, self.attention_dropout = self._attending()
        self.feed_forward_norm = LayerNormalization(epsilon=_EPSILON, dtype=self.dtype_policy)
        self.expand = keras.layers.Dense(feed_forward, activation="relu", dtype=self.dtype_policy)
        self.contract = keras.layers.Dense(width, dtype=self.dtype_policy)
        self.feed_forward_dropout = Dropout(dropout, dtype=self.dtype_policy)

    def _attending(self) -> tuple[keras.layers.Layer, keras.layers.Layer, keras.layers.Layer]:
        sizes = self._sizes
        return (
            LayerNormalization(epsilon=_EPSILON, dtype=self.dtype_policy),
            MultiHeadAttention(
                sizes["heads"], sizes["width"] // sizes["heads"], dropout=sizes["dropout"], dtype=self.dtype_policy
            ),
            Dropout(sizes["dropout"], dtype=self.dtype_policy),
        )

    def _fed_forward(self, x: tf.Tensor, training: bool | None) -> tf.Tensor:
        # Rows of one matrix: a product of three dimensions is reshaped at each step, and its bias added apart.
        rows = tf.reshape(self.feed_forward_norm(x), [-1, x.shape[-1]])
        y = tf.reshape(self.contract(self.expand(rows)), tf.shape(x))
        return x + self.feed_forward_dropout(tf.ensure_shape(y, x.shape), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._sizes}


class EncoderLayer(_Layer):
    """Self-attention and a feed-forward network of one hidden layer (ReLU), each beside a sum.

    Args:
      width: of the vectors; a multiple of `heads`.
      heads: of the attention, each `width / heads` wide.
      feed_forward: units of the hidden layer.
      dropout: on attention probabilities and on what each sublayer adds.

    Call: x, floating [batch, length, width] -> the same shape and dtype. `is_token`, bool [batch, length]: False at
    padding, to which nothing attends.
    """

    def call(self, x: tf.Tensor, is_token: tf.Tensor | None = None, training: bool | None = None) -> tf.Tensor:
        y = self.attention_norm(x)
        y = self.attention(y, y, attention_mask=_of_keys(is_token), training=training)
        x = x + self.attention_dropout(y, training=training)
        return self._fed_forward(x, training)


class DecoderLayer(_Layer):
    """Causal self-attention, attention to what an encoder made, and a feed-forward network, each beside a sum.

    Args:
      width, heads, feed_forward, dropout: as of `EncoderLayer`.

    Call: x, floating [batch, length, width], and memory, floating [batch, source length, width], the encoder's output
    -> the shape and dtype of x. `is_source_token`, bool [batch, source length]: False at padding of the source. Padding
    at the end of the target needs no mask: no token before it attends to it.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(width, heads, feed_forward, dropout, **kwargs)
        self.cross_norm, self.cross_attention, self.cross_dropout = self._attending()

    def call(
        self,
        x: tf.Tensor,
        memory: tf.Tensor,
        is_source_token: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        y = self.attention_norm(x)
        y = self.attention(y, y, use_causal_mask=True, training=training)
        x = x + self.attention_dropout(y, training=training)
        y = self.cross_attention(
            self.cross_norm(x), memory, attention_mask=_of_keys(is_source_token), training=training
        )
        x = x + self.cross_dropout(y, training=training)
        return self._fed_forward(x, training)


def _of_keys(is_token: tf.Tensor | None) -> tf.Tensor | None:
    """[batch, 1, keys]: the same for every query."""
    return None if is_token is None else is_token[:, tf.newaxis, :]

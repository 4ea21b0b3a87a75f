"""Encoder and decoder layers of a Transformer with the normalisation before each sublayer.

    x = embedded * width**0.5 + layers.sinusoidal(length, width)             # [batch, length, width]
    x = layers.EncoderLayer(width, heads=4, feed_forward=4 * width, dropout=0.1)(x, is_token=source != PADDING)

A stack of layers needs a `LayerNormalization` at its end, because a layer does not normalise the sum it returns.
Sources: Vaswani et al., 2017, "Attention is all you need"; Xiong et al., 2020, "On layer normalization in the
Transformer architecture".
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework.layers.attention import MultiHeadAttention
from framework.layers.dropout import Dropout
from framework.layers.normalization import LayerNormalization

_EPSILON = 1e-6


class _Layer(keras.layers.Layer):
    """Holds what an encoder and a decoder layer share: sizes, self-attention and the feed-forward network."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        self._sizes = {"width": width, "heads": heads, "feed_forward": feed_forward, "dropout": dropout}
        self.attention_norm, self.attention, self.attention_dropout = self._attention_sublayer()
        self.feed_forward_norm = LayerNormalization(epsilon=_EPSILON, dtype=self.dtype_policy)
        self.expand = keras.layers.Dense(feed_forward, activation="relu", dtype=self.dtype_policy)
        self.contract = keras.layers.Dense(width, dtype=self.dtype_policy)
        self.feed_forward_dropout = Dropout(dropout, dtype=self.dtype_policy)

    def _attention_sublayer(self) -> tuple[keras.layers.Layer, keras.layers.Layer, keras.layers.Layer]:
        sizes = self._sizes
        return (
            LayerNormalization(epsilon=_EPSILON, dtype=self.dtype_policy),
            MultiHeadAttention(
                sizes["heads"], sizes["width"] // sizes["heads"], dropout=sizes["dropout"], dtype=self.dtype_policy
            ),
            Dropout(sizes["dropout"], dtype=self.dtype_policy),
        )

    def _add_feed_forward(self, x: tf.Tensor, training: bool | None) -> tf.Tensor:
        # Rows of one matrix: a product of three dimensions is reshaped at each step, and its bias added apart.
        rows = tf.reshape(self.feed_forward_norm(x), [-1, x.shape[-1]])
        y = tf.reshape(self.contract(self.expand(rows)), tf.shape(x))
        return x + self.feed_forward_dropout(tf.ensure_shape(y, x.shape), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._sizes}


class EncoderLayer(_Layer):
    """Adds self-attention, then a feed-forward network of one hidden layer (ReLU), to its input.

    Args:
      width: size of the vectors; a multiple of `heads`.
      heads: number of attention heads, each `width / heads` wide.
      feed_forward: units of the hidden layer.
      dropout: rate for the attention probabilities and for what each sublayer adds.

    Call: x, floating [batch, length, width] -> the same shape and dtype. `is_token`, bool [batch, length]: False at
    padding, to which nothing attends.
    """

    def call(self, x: tf.Tensor, is_token: tf.Tensor | None = None, training: bool | None = None) -> tf.Tensor:
        y = self.attention_norm(x)
        y = self.attention(y, y, attention_mask=_key_mask(is_token), training=training)
        x = x + self.attention_dropout(y, training=training)
        return self._add_feed_forward(x, training)


class DecoderLayer(_Layer):
    """Adds causal self-attention, attention to an encoder's output, and a feed-forward network to its input.

    Args:
      width, heads, feed_forward, dropout: as in `EncoderLayer`.

    Call: x, floating [batch, length, width], and memory, floating [batch, source length, width], the encoder's output
    -> the shape and dtype of x. `is_source_token`, bool [batch, source length]: False at padding of the source. Padding
    at the end of the target needs no mask: no token before it attends to it.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(width, heads, feed_forward, dropout, **kwargs)
        self.cross_norm, self.cross_attention, self.cross_dropout = self._attention_sublayer()

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
            self.cross_norm(x), memory, attention_mask=_key_mask(is_source_token), training=training
        )
        x = x + self.cross_dropout(y, training=training)
        return self._add_feed_forward(x, training)


def _key_mask(is_token: tf.Tensor | None) -> tf.Tensor | None:
    """Returns a mask of keys, bool [batch, 1, keys]: the same for every query."""
    return None if is_token is None else is_token[:, tf.newaxis, :]

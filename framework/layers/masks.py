"""Masks of attention: bool tensors that are True where a query may see a key.

    mask = layers.combined_mask(layers.padding_mask(is_token), layers.causal_mask(length))
    y = layers.MultiHeadAttention(4, 32)(x, x, attention_mask=mask)

A query that sees no key gets zeros from `layers.MultiHeadAttention`.
"""

import tensorflow as tf


def padding_mask(is_token: tf.Tensor) -> tf.Tensor:
    """Returns a mask that hides padding from every query.

    Args:
      is_token: bool [batch, keys], False at padding.

    Returns:
      bool [batch, 1, keys].
    """
    return is_token[:, tf.newaxis, :]


def causal_mask(length: int | tf.Tensor) -> tf.Tensor:
    """Returns a mask that shows each query the keys up to its own position; bool [1, length, length]."""
    position = tf.range(length)
    return (position[:, tf.newaxis] >= position)[tf.newaxis]


def combined_mask(*masks: tf.Tensor | None) -> tf.Tensor | None:
    """Returns a mask that shows a query the keys that all masks show it.

    Args:
      masks: bool, of shapes that broadcast to [batch, queries, keys]; None hides nothing.

    Returns:
      bool, of the broadcast shape; None if every mask is None.
    """
    combined = None
    for mask in masks:
        if mask is not None:
            combined = mask if combined is None else combined & mask
    return combined

"""Attention whose dropout has the framework's guarantees.

attention = layers.MultiHeadAttention(num_heads=4, key_dim=32, dropout=0.1)
y = attention(x, x, use_causal_mask=True, training=True)       # [batch, length, width]
"""

import tf_keras as keras

from framework.layers.dropout import Dropout


class MultiHeadAttention(keras.layers.MultiHeadAttention):
    """`tf_keras.layers.MultiHeadAttention` with the framework's `Dropout` on the attention probabilities.

    Source: Vaswani et al., 2017, "Attention is all you need". Arguments and call are those of tf_keras.
    """

    def _build_attention(self, rank: int) -> None:
        # tf_keras has no public place for it; a test fails should this one go.
        super()._build_attention(rank)
        self._dropout_layer = Dropout(self._dropout, dtype=self._dtype_policy)

"""Attention whose dropout depends on (seed, layer, step, example) alone; that of many heads by plain matrix products.

attention = layers.MultiHeadAttention(num_heads=4, key_dim=32, dropout=0.1)
y = attention(x, x, use_causal_mask=True, training=True)       # [batch, length, width]
"""

import math
import re

import tensorflow as tf
import tf_keras as keras

from framework import compat
from framework.layers.draws import KeyedDraws
from framework.layers.dropout import Dropout


class Attention(KeyedDraws, keras.layers.Attention):
    """Mixes values by the products of queries and keys, as `keras.layers.Attention`.

    Source: Luong et al., 2015, "Effective approaches to attention-based neural machine translation".

    Call: [query, value] or [query, value, key], floating [batch, length, width] each -> the shape of the query.
    """


class AdditiveAttention(KeyedDraws, keras.layers.AdditiveAttention):
    """Mixes values by the tanh of sums of queries and keys, as `keras.layers.AdditiveAttention`.

    Source: Bahdanau et al., 2015, "Neural machine translation by jointly learning to align and translate".

    Call: [query, value] or [query, value, key], floating [batch, length, width] each -> the shape of the query.
    """


class MultiHeadAttention(compat.MultiHeadAttention):
    """Attends with several heads, as `keras.layers.MultiHeadAttention`, and drops probabilities by `Dropout`.

    Source: Vaswani et al., 2017, "Attention is all you need". Arguments, call and variables are those of Keras, and so
    are the values but for rounding: Keras computes einsums, this layer matrix products, whose kernels are faster.
    """

    def on_projections(self) -> None:
        """Makes the projections matrix products."""
        for layer in self.projections():
            layer.__class__ = _Projection

    def make_dropout(self, rate: float) -> Dropout:
        """Returns the framework's dropout."""
        return Dropout(rate, dtype=self.dtype_policy)

    def attend(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        attention_mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """query, key, value [batch, length, heads, depth] -> values mixed for each query, and probabilities."""
        if query.shape.rank != 4:  # attention over several dimensions
            return super().attend(query, key, value, attention_mask, training)
        query = query * (1 / math.sqrt(self.depth))
        query, key, value = (tf.transpose(tensor, [0, 2, 1, 3]) for tensor in (query, key, value))
        scores = tf.matmul(query, key, transpose_b=True)
        probabilities = self.masked_softmax(scores, attention_mask)
        mixed = tf.matmul(self.drop(probabilities, training), value)
        return tf.transpose(mixed, [0, 2, 1, 3]), probabilities


class _Projection(keras.layers.EinsumDense):
    """Computes an einsum over the last dimensions of the input and the first ones of the kernel as a matrix product."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        input_axes, kernel_axes, _ = re.split(",|->", self.equation)
        summed = len(set(input_axes) & set(kernel_axes))
        rows = tf.reshape(inputs, [-1, math.prod(self.kernel.shape[:summed])])
        product = tf.matmul(rows, tf.reshape(self.kernel, [rows.shape[1], -1]))
        if self.bias is not None:
            product = tf.nn.bias_add(product, tf.reshape(self.bias, [-1]))
        kept = inputs.shape[:-summed]
        kept = kept if kept.is_fully_defined() else tf.shape(inputs)[:-summed]
        return tf.reshape(product, tf.concat([kept, self.kernel.shape[summed:]], 0))

"""Attention by plain matrix products, whose dropout has the framework's guarantees.

attention = layers.MultiHeadAttention(num_heads=4, key_dim=32, dropout=0.1)
y = attention(x, x, use_causal_mask=True, training=True)       # [batch, length, width]
"""

import math
import re

import tensorflow as tf
import tf_keras as keras

from framework import compat
from framework.layers.dropout import Dropout


class MultiHeadAttention(compat.MultiHeadAttention):
    """`tf_keras.layers.MultiHeadAttention` with the framework's `Dropout` on the attention probabilities.

    Source: Vaswani et al., 2017, "Attention is all you need". Arguments, call and variables are those of tf_keras, and
    so are values but for rounding: where tf_keras has einsums, this has matrix products, whose kernels are faster.
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
        """query [batch, length, heads, depth], key and value -> the same of query, and probabilities."""
        if query.shape.rank != 4:  # attention over several dimensions
            return super().attend(query, key, value, attention_mask, training)
        query = query * (1 / math.sqrt(self.depth))
        query, key, value = (tf.transpose(part, [0, 2, 1, 3]) for part in (query, key, value))
        scores = tf.matmul(query, key, transpose_b=True)
        probabilities = self.masked_softmax(scores, attention_mask)
        found = tf.matmul(self.drop(probabilities, training), value)
        return tf.transpose(found, [0, 2, 1, 3]), probabilities


class _Projection(keras.layers.EinsumDense):
    """Of which the last dimensions of the input and the first ones of the kernel are summed over: a matrix product."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        of_input, of_kernel, _ = re.split(",|->", self.equation)
        summed = len(set(of_input) & set(of_kernel))
        rows = tf.reshape(inputs, [-1, math.prod(self.kernel.shape[:summed])])
        found = tf.matmul(rows, tf.reshape(self.kernel, [rows.shape[1], -1]))
        if self.bias is not None:
            found = tf.nn.bias_add(found, tf.reshape(self.bias, [-1]))
        kept = inputs.shape[:-summed]
        kept = kept if kept.is_fully_defined() else tf.shape(inputs)[:-summed]
        return tf.reshape(found, tf.concat([kept, self.kernel.shape[summed:]], 0))

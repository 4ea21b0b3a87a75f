"""Attention whose dropout depends on (seed, layer, step, example) alone; that of many heads by plain matrix products.

attention = layers.MultiHeadAttention(num_heads=4, key_dim=32, dropout=0.1)
y = attention(x, x, use_causal_mask=True, training=True)       # [batch, length, width]
with finite_masks(model):
    ...                                    # trace the model for int8, where one scale covers all scores
"""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat, paths
from framework.layers.draws import KeyedDraws
from framework.layers.dropout import Dropout
from framework.layers.positions import rotate

_HIDDEN = -1e9  # the score of a key that is not seen, as in Keras
_NEAR = -20.0  # one whose probability, e**-20 of that of a score of 0, is below the resolution of int8


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

    Source: Vaswani et al., 2017, "Attention is all you need". Variables are those of Keras, and so are the values but
    for rounding: Keras computes einsums, this layer matrix products, whose kernels are faster. A query that sees no key
    gets zeros, before the output projection, where Keras averages all values.

    Args:
      args, kwargs: those of Keras: num_heads, key_dim, value_dim, dropout, use_bias, ….
      rotary: rotate queries and keys by their positions (`rotate`); the `key_dim` is even.
      mask_value: score, below 0, of a key that a query does not see. By default it is that of Keras, some -1e9, and
        -20 in an int8 export by examples, whose scale covers all scores. The probability of such a key is 0 in either
        case.

    Call: as Keras. For `rotary`, positions of the queries and `key_positions`, integer [batch or 1, length]: by default
    0, 1, 2, … of both, and those of the queries for keys if only they are given.
    """

    def __init__(self, *args: Any, rotary: bool = False, mask_value: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if rotary and self.depth % 2:
            raise ValueError(f"rotary=True rotates pairs, but key_dim={self.depth} is odd")
        if mask_value is not None and not -math.inf < mask_value < 0:
            raise ValueError(
                f"mask_value={mask_value} must be finite, below 0, and below the scores of keys that are seen"
            )
        self.rotary = rotary
        self.mask_value = mask_value

    def on_projections(self) -> None:
        """Makes the projections matrix products."""
        for layer in self.projections():
            layer.__class__ = Projection

    def make_dropout(self, rate: float) -> Dropout:
        """Returns the framework's dropout."""
        return Dropout(rate, dtype=self.dtype_policy)

    def call(
        self,
        query: tf.Tensor,
        value: tf.Tensor,
        key: tf.Tensor | None = None,
        attention_mask: tf.Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        positions: tf.Tensor | None = None,
        key_positions: tf.Tensor | None = None,
    ) -> Any:
        if any(isinstance(tensor, tf.RaggedTensor) for tensor in (query, value, key)):
            if self.rotary:
                raise ValueError("rotary=True takes no ragged tensors; pad them, and give an attention_mask")
            return super().call(query, value, key, attention_mask, return_attention_scores, training, use_causal_mask)
        key = value if key is None else key
        self.build_projections(query, value, key)
        mask = self.merged_mask(query, value, key, attention_mask, use_causal_mask)
        queries = self.project_queries(query, positions)
        keys, values = self.project_keys(value, key, positions if key_positions is None else key_positions)
        output, probabilities = self.mix(queries, keys, values, mask, training)
        return (output, probabilities) if return_attention_scores else output

    def project_queries(self, query: tf.Tensor, positions: tf.Tensor | None = None) -> tf.Tensor:
        """Returns queries, [batch, length, heads, depth], rotated if the layer is rotary."""
        return self._rotated(self.projections()[0](query), positions)

    def project_keys(
        self, value: tf.Tensor, key: tf.Tensor | None = None, positions: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns keys, rotated if the layer is rotary, and values, [batch, length, heads, depth] each."""
        _, project_key, project_value, _ = self.projections()
        return self._rotated(project_key(value if key is None else key), positions), project_value(value)

    def mix(
        self,
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        attention_mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output of the layer, [batch, length, width], from projected tensors, and the probabilities."""
        mixed, probabilities = self.attend(queries, keys, values, attention_mask, training)
        return self.projections()[-1](mixed), probabilities

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
        if attention_mask is not None:
            sees_any = tf.reduce_any(self._is_seen(scores, attention_mask), -1, keepdims=True)
            mixed *= tf.cast(sees_any, mixed.dtype)
        return tf.transpose(mixed, [0, 2, 1, 3]), probabilities

    def masked_softmax(self, scores: tf.Tensor, attention_mask: tf.Tensor | None) -> tf.Tensor:
        """Returns the probabilities of scores [batch, heads, query, key], 0 where the mask is False.

        Those of a query that sees no key are all 0 if `mask_value` is given, else some that `attend` does not use.
        """
        if attention_mask is None:
            return super().masked_softmax(scores, None)
        is_seen = self._is_seen(scores, attention_mask)
        if self.mask_value is None:
            is_hidden = 1.0 - tf.cast(is_seen, scores.dtype)
            # Half of float16's lowest number: a sum with a negative score must not be infinite.
            lowest = scores.dtype.min / 2 if scores.dtype == tf.float16 else _HIDDEN
            return super().masked_softmax(scores + is_hidden * lowest, None)
        if self.mask_value < float(scores.dtype.min):
            raise ValueError(f"mask_value={self.mask_value} is -inf in {scores.dtype.name}; take e.g. -30")
        scores = tf.where(is_seen, scores, tf.constant(self.mask_value, scores.dtype))
        return super().masked_softmax(scores, None) * tf.cast(is_seen, scores.dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"rotary": self.rotary, "mask_value": self.mask_value}
        return {**super().get_config(), **{name: value for name, value in own.items() if value}}

    def _is_seen(self, scores: tf.Tensor, attention_mask: tf.Tensor) -> tf.Tensor:
        """Returns a mask as bool that broadcasts to scores."""
        return self.of_heads(tf.cast(attention_mask, tf.bool), scores.shape.rank)

    def _rotated(self, x: tf.Tensor, positions: tf.Tensor | None) -> tf.Tensor:
        if not self.rotary:
            return x
        if x.shape.rank != 4:
            raise ValueError(f"rotary=True needs [batch, length, width], but projections have shape {x.shape}")
        return rotate(x, tf.range(tf.shape(x)[1])[tf.newaxis] if positions is None else positions)


@contextlib.contextmanager
def finite_masks(model: Any) -> Iterator[None]:
    """While open, attention of a model without a `mask_value` of its own has one of -20, in what is traced meanwhile.

    In int8 a score of -1e9 would leave one number for all others.

    Args:
      model: a model, or a dict of them.
    """
    found = [layer for layer in paths.objects(model).values() if isinstance(layer, MultiHeadAttention)]
    found = [layer for layer in found if layer.mask_value is None]
    for layer in found:
        layer.mask_value = _NEAR
    try:
        yield
    finally:
        for layer in found:
            layer.mask_value = None


class Projection(keras.layers.EinsumDense):
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

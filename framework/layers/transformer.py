"""Encoder and decoder layers of a Transformer, with the normalisation before or after each sublayer.

    x = embedded * width**0.5 + layers.sinusoidal(length, width)             # [batch, length, width]
    x = layers.EncoderLayer(width, heads=4, feed_forward=4 * width, dropout=0.1)(x, is_token=source != PADDING)

A stack of pre-norm layers needs a `LayerNormalization` at its end, because such a layer does not normalise the sum it
returns; `layers.Encoder` and `layers.Decoder` have it.
Sources: Vaswani et al., 2017, "Attention is all you need" (post-norm); Xiong et al., 2020, "On layer normalization in
the Transformer architecture" (pre-norm); Hendrycks & Gimpel, 2016, "Gaussian error linear units"; Shazeer, 2020, "GLU
variants improve Transformer".
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework.errors import UserError
from framework.layers.attention import MultiHeadAttention
from framework.layers.dropout import Dropout
from framework.layers.masks import padding_mask
from framework.layers.normalization import LayerNormalization

NORMS = ("pre", "post")
ACTIVATIONS = ("relu", "gelu", "swiglu")

State = dict[str, tf.Tensor]

_EPSILON = 1e-6
_POSITIONS: contextvars.ContextVar[int] = contextvars.ContextVar("positions of a step", default=0)
_DEFAULTS: dict[str, Any] = {"norm": "pre", "activation": "relu", "rotary": False, "mask_value": None}


def make_norm(dtype: Any) -> LayerNormalization:
    """Returns a normalisation of the width, as all layers of a Transformer here have it."""
    return LayerNormalization(epsilon=_EPSILON, dtype=dtype)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless an argument is one of its choices."""
    if value not in choices:
        raise ValueError(f"{name}='{value}' is none of {', '.join(choices)}")


@contextlib.contextmanager
def stepping(positions: int) -> Iterator[None]:
    """While open, `step` of a decoder refuses a state that has no room for positions 0 to `positions` - 1."""
    token = _POSITIONS.set(positions)
    try:
        yield
    finally:
        _POSITIONS.reset(token)


class _Layer(keras.layers.Layer):
    """Holds what an encoder and a decoder layer share: sizes, self-attention and the feed-forward network."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        dropout: float = 0.0,
        norm: str = "pre",
        activation: str = "relu",
        rotary: bool = False,
        mask_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        check_choice("norm", norm, NORMS)
        check_choice("activation", activation, ACTIVATIONS)
        self._sizes = {"width": width, "heads": heads, "feed_forward": feed_forward, "dropout": dropout}
        self.norm = norm
        self.activation = activation
        self.rotary = rotary
        self.mask_value = mask_value
        self.attention_norm, self.attention, self.attention_dropout = self._attention_sublayer(rotary)
        self.feed_forward_norm = make_norm(self.dtype_policy)
        if activation == "swiglu":  # without biases, as in its paper
            self.gate = keras.layers.Dense(feed_forward, "swish", use_bias=False, dtype=self.dtype_policy)
            self.expand = keras.layers.Dense(feed_forward, use_bias=False, dtype=self.dtype_policy)
            self.contract = keras.layers.Dense(width, use_bias=False, dtype=self.dtype_policy)
        else:
            self.expand = keras.layers.Dense(feed_forward, activation, dtype=self.dtype_policy)
            self.contract = keras.layers.Dense(width, dtype=self.dtype_policy)
        self.feed_forward_dropout = Dropout(dropout, dtype=self.dtype_policy)

    def _attention_sublayer(self, rotary: bool) -> tuple[keras.layers.Layer, keras.layers.Layer, keras.layers.Layer]:
        heads, rate = self._sizes["heads"], self._sizes["dropout"]
        options = {"rotary": rotary, "mask_value": self.mask_value, "dtype": self.dtype_policy}
        return (
            make_norm(self.dtype_policy),
            MultiHeadAttention(heads, self._sizes["width"] // heads, dropout=rate, **options),
            Dropout(rate, dtype=self.dtype_policy),
        )

    def _sublayer_input(self, x: tf.Tensor, norm: keras.layers.Layer) -> tf.Tensor:
        return norm(x) if self.norm == "pre" else x

    def _added(self, x: tf.Tensor, y: tf.Tensor, norm: keras.layers.Layer) -> tf.Tensor:
        """Returns the sum of a sublayer's input and output, normalised in post-norm."""
        return x + y if self.norm == "pre" else norm(x + y)

    def _attend_to_self(self, x: tf.Tensor, training: bool | None, **call: Any) -> tf.Tensor:
        y = self._sublayer_input(x, self.attention_norm)
        y = self.attention(y, y, training=training, **call)
        return self._added(x, self.attention_dropout(y, training=training), self.attention_norm)

    def _room(self, rows: Any, length: int) -> State:
        """Returns room for the keys and values of the tokens of a sequence."""
        if not self.built:
            raise ValueError(f"this {type(self).__name__} has no weights before its first call; call it, then start()")
        heads = self._sizes["heads"]
        room = tf.zeros([rows, length, heads, self._sizes["width"] // heads], self.compute_dtype)
        return {"keys": room, "values": room}

    def _attend_to_cache(self, x: tf.Tensor, state: State, position: tf.Tensor) -> tuple[tf.Tensor, State]:
        """Returns what `_attend_to_self` returns for one token, and the keys and values up to it.

        Raises:
          UserError: `framework.decode` has more positions than the state has room for.
        """
        room = state["keys"].shape[1]
        if _POSITIONS.get() > room:  # keys of later positions would be lost, and no number would tell
            raise UserError(
                f"decode(length={_POSITIONS.get()}) has more positions than the state of the model, which was made by"
                f" start(…, length={room}). Type the same length."
            )
        x = tf.cast(x, self.compute_dtype)
        y = self._sublayer_input(x, self.attention_norm)
        here = tf.reshape(position, [1, 1])
        queries = self.attention.project_queries(y, here)
        keys, values = self.attention.project_keys(y, positions=here)
        places = tf.range(state["keys"].shape[1])
        is_here = tf.reshape(places == position, [1, -1, 1, 1])
        keys = tf.where(is_here, keys, state["keys"])
        values = tf.where(is_here, values, state["values"])
        y, _ = self.attention.mix(queries, keys, values, tf.reshape(places <= position, [1, 1, -1]), training=False)
        return self._added(x, y, self.attention_norm), {"keys": keys, "values": values}

    def _feed_forward(self, x: tf.Tensor, training: bool | None) -> tf.Tensor:
        # Rows of one matrix: a product of three dimensions is reshaped at each step, and its bias added apart.
        rows = tf.reshape(self._sublayer_input(x, self.feed_forward_norm), [-1, x.shape[-1]])
        hidden = self.expand(rows)
        if self.activation == "swiglu":
            hidden = self.gate(rows) * hidden
        y = tf.reshape(self.contract(hidden), tf.shape(x))
        y.set_shape(x.shape)  # not ensure_shape, which LiteRT lacks
        return self._added(x, self.feed_forward_dropout(y, training=training), self.feed_forward_norm)

    def get_config(self) -> dict[str, Any]:
        chosen = {name: getattr(self, name) for name, value in _DEFAULTS.items() if getattr(self, name) != value}
        return {**super().get_config(), **self._sizes, **chosen}


class EncoderLayer(_Layer):
    """Adds self-attention, then a feed-forward network of one hidden layer, to its input.

    Args:
      width: size of the vectors; a multiple of `heads`.
      heads: number of attention heads, each `width / heads` wide.
      feed_forward: units of the hidden layer.
      dropout: rate for the attention probabilities and for what each sublayer adds.
      norm: 'pre' normalises the input of each sublayer, 'post' the sum of its input and output.
      activation: 'relu', 'gelu' or, with a gate and without biases, 'swiglu'; it has half as many weights again.
      rotary: self-attention rotates queries and keys by their positions.
      mask_value: score of a key that is not seen, as in `MultiHeadAttention`.

    Call: x, floating [batch, length, width] -> the same shape and dtype. `is_token`, bool [batch, length]: False at
    padding, to which nothing attends. `positions`, integer [batch or 1, length], for `rotary`: by default 0, 1, 2, …
    `causal`: each token attends to those before it and itself alone.

    `start` and `step` decode token by token, with the outputs of a causal call on all tokens.
    """

    def call(
        self,
        x: tf.Tensor,
        is_token: tf.Tensor | None = None,
        training: bool | None = None,
        positions: tf.Tensor | None = None,
        causal: bool = False,
    ) -> tf.Tensor:
        mask = _padding_mask(is_token)
        x = self._attend_to_self(x, training, attention_mask=mask, use_causal_mask=causal, positions=positions)
        return self._feed_forward(x, training)

    def start(self, rows: Any, length: int) -> State:
        """Returns the state before the first token: room for keys and values.

        Args:
          rows: how many sequences, an int or an int32 scalar.
          length: the largest number of tokens to decode.
        """
        return self._room(rows, length)

    def step(self, x: tf.Tensor, state: State, position: tf.Tensor) -> tuple[tf.Tensor, State]:
        """Computes the output of one token, in inference; arguments and results as in `DecoderLayer.step`."""
        x, seen = self._attend_to_cache(x, state, position)
        return self._feed_forward(x, training=False), seen


class DecoderLayer(_Layer):
    """Adds causal self-attention, attention to an encoder's output, and a feed-forward network to its input.

    Args:
      width, heads, feed_forward, dropout, norm, activation, mask_value: as in `EncoderLayer`.
      rotary: self-attention rotates queries and keys by their positions; attention to the source does not.

    Call: x, floating [batch, length, width], and memory, floating [batch, source length, width], the encoder's output
    -> the shape and dtype of x. `is_source_token`, bool [batch, source length]: False at padding of the source.
    `is_token`, bool [batch, length]: False at padding of the target; padding at its end needs no mask, because no token
    before it attends to it. `positions`: as in `EncoderLayer`.

    `start` and `step` decode token by token: they keep the keys and values of the tokens before.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(width, heads, feed_forward, dropout, **kwargs)
        self.cross_norm, self.cross_attention, self.cross_dropout = self._attention_sublayer(rotary=False)

    def call(
        self,
        x: tf.Tensor,
        memory: tf.Tensor,
        is_source_token: tf.Tensor | None = None,
        training: bool | None = None,
        is_token: tf.Tensor | None = None,
        positions: tf.Tensor | None = None,
    ) -> tf.Tensor:
        mask = _padding_mask(is_token)
        x = self._attend_to_self(x, training, attention_mask=mask, use_causal_mask=True, positions=positions)
        y, _ = self._attend_to_source(x, memory, is_source_token, training)
        x = self._added(x, self.cross_dropout(y, training=training), self.cross_norm)
        return self._feed_forward(x, training)

    def source_attention(self, x: tf.Tensor, memory: tf.Tensor, is_source_token: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the probabilities with which a call attends to the source, in inference, without padding of x.

        Args:
          x, memory, is_source_token: as in a call.

        Returns:
          [batch, heads, length, source length].
        """
        x = self._attend_to_self(x, training=False, use_causal_mask=True)
        return self._attend_to_source(x, memory, is_source_token, training=False)[1]

    def _attend_to_source(
        self, x: tf.Tensor, memory: tf.Tensor, is_source_token: tf.Tensor | None, training: bool | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what attention to the source adds, and its probabilities."""
        y, mask = self._sublayer_input(x, self.cross_norm), _padding_mask(is_source_token)
        return self.cross_attention(y, memory, attention_mask=mask, return_attention_scores=True, training=training)

    def start(self, memory: tf.Tensor, length: int, is_source_token: tf.Tensor | None = None) -> State:
        """Returns the state before the first token: keys and values of the source, and room for those of the target.

        Args:
          memory: floating [rows, source length, width].
          length: the largest number of tokens to decode.
          is_source_token: bool [rows, source length], False at padding.

        Returns:
          Tensors whose first dimension is the rows, so that a gather picks rows of a state.
        """
        state = self._room(tf.shape(memory)[0], length)
        state["source_keys"], state["source_values"] = self.cross_attention.project_keys(memory)
        if is_source_token is None:
            is_source_token = tf.ones(tf.shape(memory)[:2], tf.bool)
        return {**state, "is_source_token": is_source_token}

    def step(self, x: tf.Tensor, state: State, position: tf.Tensor) -> tuple[tf.Tensor, State]:
        """Computes the output of one token, in inference, from that token and the state of the tokens before it.

        Args:
          x: floating [rows, 1, width].
          state: of `start`, or of the step of the token before.
          position: int32 scalar, how many tokens stand before.

        Returns:
          The output, [rows, 1, width], which a call with all tokens has at this position, and the next state.
        """
        x, seen = self._attend_to_cache(x, state, position)
        queries = self.cross_attention.project_queries(self._sublayer_input(x, self.cross_norm))
        source_mask = padding_mask(state["is_source_token"])
        y, _ = self.cross_attention.mix(
            queries, state["source_keys"], state["source_values"], source_mask, training=False
        )
        x = self._added(x, y, self.cross_norm)
        return self._feed_forward(x, training=False), {**state, **seen}


def _padding_mask(is_token: tf.Tensor | None) -> tf.Tensor | None:
    return None if is_token is None else padding_mask(is_token)

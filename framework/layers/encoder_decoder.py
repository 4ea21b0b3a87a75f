"""Encoder and decoder of a Transformer: positions, a stack of layers and, in pre-norm, the normalisation of its sum.

    embed = layers.TiedEmbedding(8000, 128)
    encoder = layers.Encoder(4, 128, heads=4, feed_forward=256, dropout=0.3)
    decoder = layers.Decoder(4, 128, heads=4, feed_forward=256, dropout=0.3)
    memory = encoder(embed(source), source != PADDING)          # [batch, source length, 128]
    logits = embed.logits(decoder(embed(target), memory, source != PADDING))

Source: Vaswani et al., 2017, "Attention is all you need".
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework.layers.dropout import Dropout
from framework.layers.positions import LearnedPositions, SinusoidalPositions, check_length
from framework.layers.transformer import DecoderLayer, EncoderLayer, State, check_choice, make_norm

POSITIONS = ("sinusoidal", "learned", "rotary", "none")


class _Stack(keras.layers.Layer):
    """Holds what an encoder and a decoder share; `layer` is the class of the layers in it."""

    layer: type[EncoderLayer] | type[DecoderLayer]

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        feed_forward: int,
        dropout: float = 0.0,
        norm: str = "pre",
        activation: str = "relu",
        positions: str = "sinusoidal",
        max_length: int = 1024,
        mask_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f"layers={layers} must be at least 1")
        check_choice("positions", positions, POSITIONS)
        sizes = {"width": width, "heads": heads, "feed_forward": feed_forward, "dropout": dropout}
        of_layers: dict[str, Any] = {**sizes, "norm": norm, "activation": activation, "mask_value": mask_value}
        self._arguments = {"layers": layers, **of_layers, "positions": positions, "max_length": max_length}
        self.max_length = max_length
        self.positions = self._make_positions(positions)
        self.dropout = Dropout(dropout, dtype=self.dtype_policy)
        of_layers |= {"rotary": positions == "rotary", "dtype": self.dtype_policy}
        self.layers: list[Any] = [self.layer(**of_layers) for _ in range(layers)]
        self.final_norm = make_norm(self.dtype_policy) if norm == "pre" else None

    def _make_positions(self, positions: str) -> keras.layers.Layer | None:
        """Returns the layer that adds positions; None if positions are rotations, or left out."""
        if positions == "sinusoidal":
            return SinusoidalPositions(self.max_length, dtype=self.dtype_policy)
        if positions == "learned":
            return LearnedPositions(self.max_length, dtype=self.dtype_policy)
        return None

    def _placed(self, x: tf.Tensor, positions: tf.Tensor | None) -> tf.Tensor:
        return x if self.positions is None else self.positions(x, positions)

    def _normed(self, x: tf.Tensor) -> tf.Tensor:
        return x if self.final_norm is None else self.final_norm(x)

    def step(self, x: tf.Tensor, state: dict[str, State], position: tf.Tensor) -> tuple[tf.Tensor, dict[str, State]]:
        """Computes the output of one token, in inference; arguments and results as in `DecoderLayer.step`."""
        x = self._placed(tf.cast(x, self.compute_dtype), tf.reshape(position, [1, 1]))
        after = {}
        for i, layer in enumerate(self.layers):
            x, after[f"layer_{i}"] = layer.step(x, state[f"layer_{i}"], position)
        return self._normed(x), after

    def _check_room(self, length: int) -> None:
        if self.positions is not None:
            check_length(length, self.max_length)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments}


class Encoder(_Stack):
    """Adds positions to embedded tokens, and computes a stack of `EncoderLayer`s.

    Args:
      layers: number of layers.
      width, heads, feed_forward, norm, activation, mask_value: as in `EncoderLayer`.
      dropout: as in `EncoderLayer`, and of what enters the first layer.
      positions: 'sinusoidal' or 'learned' are added to the input, 'rotary' rotates queries and keys in each layer, and
        'none' leaves them out.
      max_length: number of positions, if they are added.

    Call: x, floating [batch, length, width] -> the same shape and dtype. `is_token`, bool [batch, length]: False at
    padding. `positions`, integer [batch or 1, length]: by default 0, 1, 2, …; for padding on the left, those of
    `token_positions(is_token)`. `causal`: each token attends to those before it and itself alone.

    A causal encoder is a model of language; `start` and `step` decode token by token, as those of `Decoder`:

        state = encoder.start(rows, length)
        y, state = encoder.step(embed(tokens), state, position)         # tokens [rows, 1], position int32 scalar
    """

    layer = EncoderLayer

    def call(
        self,
        x: tf.Tensor,
        is_token: tf.Tensor | None = None,
        training: bool | None = None,
        positions: tf.Tensor | None = None,
        causal: bool = False,
    ) -> tf.Tensor:
        x = self.dropout(self._placed(x, positions), training=training)
        for layer in self.layers:
            x = layer(x, is_token, training=training, positions=positions, causal=causal)
        return self._normed(x)

    def start(self, rows: Any, length: int) -> dict[str, State]:
        """Returns the state before the first token, {layer: its state}; arguments as in `EncoderLayer.start`."""
        self._check_room(length)
        return {f"layer_{i}": layer.start(rows, length) for i, layer in enumerate(self.layers)}


class Decoder(_Stack):
    """Adds positions to embedded tokens, and computes a stack of `DecoderLayer`s.

    Args:
      as in `Encoder`.

    Call: x, floating [batch, length, width], and memory, floating [batch, source length, width], the output of the
    encoder -> the shape and dtype of x. `is_source_token`, `is_token` and `positions`: as in `DecoderLayer`.

    `start` and `step` decode token by token, with the outputs of a call on all tokens:

        state = decoder.start(memory, length, is_source_token)
        y, state = decoder.step(embed(tokens), state, position)         # tokens [rows, 1], position int32 scalar
    """

    layer = DecoderLayer

    def call(
        self,
        x: tf.Tensor,
        memory: tf.Tensor,
        is_source_token: tf.Tensor | None = None,
        training: bool | None = None,
        is_token: tf.Tensor | None = None,
        positions: tf.Tensor | None = None,
    ) -> tf.Tensor:
        x = self.dropout(self._placed(x, positions), training=training)
        for layer in self.layers:
            x = layer(x, memory, is_source_token, training=training, is_token=is_token, positions=positions)
        return self._normed(x)

    def source_attention(self, x: tf.Tensor, memory: tf.Tensor, is_source_token: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the probabilities with which the last layer of a call attends to the source, in inference.

        Args:
          x, memory, is_source_token: as in a call.

        Returns:
          [batch, heads, length, source length].
        """
        x = self._placed(x, None)
        *before, last = self.layers
        for layer in before:
            x = layer(x, memory, is_source_token, training=False)
        return last.source_attention(x, memory, is_source_token)

    def start(self, memory: tf.Tensor, length: int, is_source_token: tf.Tensor | None = None) -> dict[str, State]:
        """Returns the state before the first token, {layer: its state}; arguments as in `DecoderLayer.start`."""
        self._check_room(length)
        return {f"layer_{i}": layer.start(memory, length, is_source_token) for i, layer in enumerate(self.layers)}

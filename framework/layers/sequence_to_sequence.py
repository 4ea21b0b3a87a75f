"""An encoder-decoder Transformer with its embeddings: source tokens in, logits of target tokens out.

model = layers.Transformer(8000, layers=4, width=128, heads=4, feed_forward=256, dropout=0.3)
logits = model((source, target), training=True)             # int [batch, …] both -> [batch, length, 8000]
state = model.start(source, length=64)
decoded = framework.decode(model.step, state, begin=model.begin, end=3, length=64)
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework.layers.embedding import TiedEmbedding
from framework.layers.encoder_decoder import Decoder, Encoder
from framework.layers.transformer import State


class Transformer(keras.Model):
    """Predicts each token of a target from the source and from the target tokens before it.

    Source: Vaswani et al., 2017, "Attention is all you need"; Press & Wolf, 2017, for the tied tables.

    Args:
      vocabulary: number of tokens, of source and target; one table embeds both and makes the logits.
      target_vocabulary: number of target tokens, if source and target have different vocabularies. Then there are two
        tables, and that of the target makes the logits.
      padding: the token after the end of a sequence; nothing attends to it in the source.
      begin: the token before the first one of the target.
      stack: arguments of `Encoder` and `Decoder`: layers, width, heads, feed_forward, dropout, norm, activation,
        positions, max_length, mask_value.

    Call: (source, target), int [batch, source length] and int [batch, length] -> logits, [batch, length, target
    vocabulary], in the dtype of the variables. The logits of a place see the target tokens before it, so `target` is
    both what the decoder reads, moved by one place behind `begin`, and the labels. Padding stands at the end.
    """

    def __init__(
        self,
        vocabulary: int,
        target_vocabulary: int | None = None,
        padding: int = 0,
        begin: int = 2,
        name: str | None = None,
        dtype: Any = None,
        **stack: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        tables = {"vocabulary": vocabulary, "target_vocabulary": target_vocabulary}
        self._arguments = {**tables, "padding": padding, "begin": begin, **stack}
        self.padding = padding
        self.begin = begin
        if missing := [name for name in ("layers", "width", "heads", "feed_forward") if name not in stack]:
            raise TypeError(f"Transformer lacks the arguments {', '.join(missing)}")
        policy = self.dtype_policy
        self.embedding = TiedEmbedding(vocabulary, stack["width"], dtype=policy)
        self.target_embedding = (
            self.embedding
            if target_vocabulary is None
            else TiedEmbedding(target_vocabulary, stack["width"], dtype=policy)
        )
        self.encoder = Encoder(**stack, dtype=policy)
        self.decoder = Decoder(**stack, dtype=policy)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        source, target = inputs
        memory, is_source_token = self.encode(source, training)
        y = self.decoder(self._embedded_before(target), memory, is_source_token, training=training)
        return self.target_embedding.logits(y)

    def source_attention(self, source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Returns the probabilities with which the last layer of the decoder attends to the source, in inference.

        Row t belongs to the place whose logits predict token t of the target.

        Args:
          source, target: int [batch, source length] and [batch, length], as in a call.

        Returns:
          [batch, heads, length, source length].
        """
        memory, is_source_token = self.encode(source, training=False)
        return self.decoder.source_attention(self._embedded_before(target), memory, is_source_token)

    def _embedded_before(self, target: tf.Tensor) -> tf.Tensor:
        """Returns the embedded tokens that stand before those of the target: `begin`, then all but its last."""
        first = tf.fill([tf.shape(target)[0], 1], tf.cast(self.begin, target.dtype))
        before = tf.concat([first, target[:, :-1]], 1)
        before.set_shape(target.shape)  # not ensure_shape, which LiteRT lacks
        return self.target_embedding(before)

    def encode(self, source: tf.Tensor, training: bool | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the output of the encoder, [batch, length, width], and where the source has tokens, bool."""
        is_token = tf.not_equal(source, tf.cast(self.padding, source.dtype))
        return self.encoder(self.embedding(source), is_token, training=training), is_token

    def start(self, source: tf.Tensor, length: int) -> dict[str, State]:
        """Returns the state of `framework.decode` before the first token.

        Args:
          source: int [batch, source length].
          length: the largest number of tokens to decode.
        """
        memory, is_token = self.encode(source, training=False)
        return self.decoder.start(memory, length, is_token)

    def step(
        self, tokens: tf.Tensor, state: dict[str, State], position: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, State]]:
        """Computes the logits after one more token, in inference: the step of `framework.decode`.

        Args:
          tokens: int [rows], the token before this position.
          state: of `start`, or of the step before.
          position: int32 scalar.

        Returns:
          Logits, [rows, target vocabulary], as a call with all tokens has them at this position, and the next state.
        """
        y, state = self.decoder.step(self.target_embedding(tokens[:, tf.newaxis]), state, position)
        return self.target_embedding.logits(y)[:, 0], state

    def get_config(self) -> dict[str, Any]:
        config = keras.layers.Layer.get_config(self)  # a keras.Model has none of its own
        return {**{name: config[name] for name in ("name", "dtype")}, **self._arguments}

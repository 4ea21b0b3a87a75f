"""An embedding whose table also makes the logits.

embed = layers.TiedEmbedding(vocabulary=8000, width=128)
x = embed(tokens)                                           # [batch, length] -> [batch, length, 128]
logits = embed.logits(decoder(x, memory))                   # [batch, length, 8000], float32
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras


class TiedEmbedding(keras.layers.Layer):
    """Embeds tokens by a table, times the root of its width, and makes logits by products with the same table.

    Call it on source and target tokens, and all three share one table. Sources: Press & Wolf, 2017, "Using the output
    embedding to improve language models"; Vaswani et al., 2017, "Attention is all you need", section 3.4.

    Args:
      vocabulary: number of tokens.
      width: size of the vectors.
      initializer: of the table; by default normal numbers of standard deviation width**-0.5, so that what the layer
        returns has elements of variance 1.

    Call: tokens, integer [batch, ...] -> floating [batch, ..., width].
    """

    def __init__(self, vocabulary: int, width: int, initializer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary = vocabulary
        self.width = width
        self.initializer = keras.initializers.get(initializer or keras.initializers.RandomNormal(stddev=width**-0.5))

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight("table", [self.vocabulary, self.width], initializer=self.initializer)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, to_logits: bool = False) -> tf.Tensor:
        table = tf.cast(self.table, self.compute_dtype)
        if not to_logits:
            return tf.gather(table, inputs) * self.width**0.5
        product = tf.matmul(tf.reshape(inputs, [-1, self.width]), table, transpose_b=True)
        shape = tf.concat([tf.shape(inputs)[:-1], [self.vocabulary]], 0)
        logits = tf.cast(tf.reshape(product, shape), self.variable_dtype)
        logits.set_shape([*inputs.shape[:-1], self.vocabulary])  # not ensure_shape, which LiteRT lacks
        return logits

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the product of each vector with all rows of the table.

        Args:
          x: floating [batch, ..., width].

        Returns:
          [batch, ..., vocabulary], in the dtype of the variables: float32 under half precision.
        """
        return self(x, to_logits=True)

    def get_config(self) -> dict[str, Any]:
        sizes = {"vocabulary": self.vocabulary, "width": self.width}
        return {**super().get_config(), **sizes, "initializer": keras.initializers.serialize(self.initializer)}

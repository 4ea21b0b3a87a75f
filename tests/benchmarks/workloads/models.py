"""The models of the workloads in tf_keras alone, for every peer that trains with it.

    model = models.mlp(keras.layers.Dropout)          # a factory of dropout layers: each peer has its own
    model = models.make('transformer', dropout)

Nothing here imports the framework: the peers run without it.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tests.benchmarks.workloads import arrays

# rate -> layer
Dropout = Callable[[float], keras.layers.Layer]


def make(workload: str, dropout: Dropout) -> keras.Model:
    """The model of a workload; its inputs are those of `inputs`."""
    if workload == "mlp":
        return mlp(dropout)
    if workload == "transformer":
        return transformer(dropout)
    return {"cnn": cnn, "two_tower": two_tower}[workload]()


# What a model takes, and what its output is compared with.
INPUTS = {"mlp": ("image",), "cnn": ("image",), "transformer": ("source", "input"), "two_tower": ("user", "item")}
TARGET = {"mlp": "label", "cnn": "label", "transformer": "target", "two_tower": "rating"}


def inputs(workload: str, batch: dict[str, tf.Tensor]) -> tf.Tensor | dict[str, tf.Tensor]:
    """What the model takes of a batch."""
    names = INPUTS[workload]
    return batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}


def loss(workload: str, output: tf.Tensor, batch: dict[str, tf.Tensor]) -> tf.Tensor:
    """Mean over examples or tokens, float32 scalar."""
    target = batch[TARGET[workload]]
    if workload == "two_tower":
        return tf.reduce_mean(tf.square(output - target))
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, output))


def make_optimizer(workload: str) -> keras.optimizers.Optimizer:
    """At its constant rate."""
    rate = arrays.LEARNING_RATE[workload]
    if workload == "cnn":
        return keras.optimizers.SGD(rate, momentum=arrays.MOMENTUM, jit_compile=False)
    return keras.optimizers.Adam(rate, **arrays.ADAM, jit_compile=False)


def mlp(dropout: Dropout) -> keras.Model:
    """[batch, 784] -> logits [batch, 10]."""
    x = pixels = keras.Input([784])
    x = keras.layers.Dense(128, activation="relu")(x)
    return keras.Model(pixels, _logits(dropout(arrays.MLP_DROPOUT)(x), 10))


def cnn() -> keras.Model:
    """ResNet-20 (He et al., 2016, section 4.2): [batch, 32, 32, 3] -> logits [batch, 10]; 269,722 weights."""
    pixels = keras.Input([32, 32, 3])
    x = keras.layers.ReLU()(_convolution(pixels, 16))
    for width in (16, 32, 64):
        for block in range(3):
            x = _residual(x, width, 2 if width > 16 and block == 0 else 1)
    return keras.Model(pixels, _logits(keras.layers.GlobalAveragePooling2D()(x), 10))


def _convolution(x: tf.Tensor, width: int, stride: int = 1) -> tf.Tensor:
    """3 x 3 and BatchNorm."""
    x = keras.layers.Conv2D(width, 3, stride, "same", use_bias=False, kernel_initializer="he_normal")(x)
    return keras.layers.BatchNormalization()(x)


def _residual(x: tf.Tensor, width: int, stride: int) -> tf.Tensor:
    """Two convolutions beside a shortcut that is thinned out and padded with zeros."""
    inner = keras.layers.ReLU()(_convolution(x, width, stride))
    inner = _convolution(inner, width)
    if stride > 1:
        x = keras.layers.Lambda(_thinned)(x)
    return keras.layers.ReLU()(inner + x)


def _thinned(x: tf.Tensor) -> tf.Tensor:
    """x[:, ::2, ::2] and as many channels of zeros; pooling of single pixels has faster kernels than a slice."""
    return tf.pad(tf.nn.avg_pool2d(x, 1, 2, "VALID"), [[0, 0], [0, 0], [0, 0], [0, x.shape[-1]]])


def _logits(x: tf.Tensor, classes: int) -> tf.Tensor:
    """The product in the dtype of the model, the logits in full precision."""
    return keras.layers.Activation("linear", dtype=keras.backend.floatx())(keras.layers.Dense(classes)(x))


def two_tower() -> keras.Model:
    """user, item [batch] -> rating [batch]."""
    user, item = keras.Input([], dtype="int32", name="user"), keras.Input([], dtype="int32", name="item")
    near = tf.reduce_sum(_table(arrays.USERS)(user) * _table(arrays.ITEMS)(item), axis=-1)
    return keras.Model({"user": user, "item": item}, arrays.MEAN_RATING + near)


def _table(rows: int) -> keras.layers.Layer:
    return keras.layers.Embedding(rows, arrays.TOWER_WIDTH, keras.initializers.RandomNormal(stddev=0.1))


Layer = Callable[..., keras.layers.Layer]


def transformer(
    dropout: Dropout, encoder_layer: Layer | None = None, decoder_layer: Layer | None = None
) -> keras.Model:
    """source, input [batch, length] -> logits [batch, length, vocabulary].

    Args:
      encoder_layer, decoder_layer: () -> one of its layers; those of this file unless given.
    """
    encoder_layer = encoder_layer or (lambda: Encoder(dropout))
    decoder_layer = decoder_layer or (lambda: Decoder(dropout))
    source = keras.Input([arrays.LENGTH], dtype="int32", name="source")
    begun = keras.Input([arrays.LENGTH], dtype="int32", name="input")
    memory = _embedded(source, dropout)
    for _ in range(arrays.LAYERS):
        memory = encoder_layer()(memory)
    memory = _norm()(memory)
    x = _embedded(begun, dropout)
    for _ in range(arrays.LAYERS):
        x = decoder_layer()(x, memory)
    return keras.Model({"source": source, "input": begun}, _logits(_norm()(x), arrays.VOCABULARY))


def _embedded(tokens: tf.Tensor, dropout: Dropout) -> tf.Tensor:
    spread = keras.initializers.RandomNormal(stddev=arrays.WIDTH**-0.5)
    x = keras.layers.Embedding(arrays.VOCABULARY, arrays.WIDTH, spread)(tokens)
    place = np.arange(arrays.WIDTH)
    angle = np.arange(arrays.LENGTH)[:, np.newaxis] / 10_000 ** (place // 2 * 2 / arrays.WIDTH)
    positions = np.where(place % 2 == 0, np.sin(angle), np.cos(angle))  # [length, width]
    x = x * arrays.WIDTH**0.5 + tf.constant(positions, x.dtype)
    return dropout(arrays.DROPOUT)(x)


def _norm() -> keras.layers.Layer:
    return keras.layers.LayerNormalization(epsilon=1e-6)


class Attention(keras.layers.MultiHeadAttention):
    """With any dropout on the attention probabilities."""

    def __init__(self, dropout: Dropout) -> None:
        super().__init__(arrays.HEADS, arrays.WIDTH // arrays.HEADS)
        self._make_dropout = dropout

    def _build_attention(self, rank: int) -> None:
        super()._build_attention(rank)
        self._dropout_layer = self._make_dropout(arrays.DROPOUT)


class Encoder(keras.layers.Layer):
    """Self-attention and feed-forward network, each normalised before and added after."""

    def __init__(self, dropout: Dropout) -> None:
        super().__init__()
        self.norm, self.attention = _norm(), Attention(dropout)
        self.dropout = dropout(arrays.DROPOUT)
        hidden = keras.layers.Dense(arrays.FEED_FORWARD, activation="relu")
        dense = [_norm(), hidden, keras.layers.Dense(arrays.WIDTH)]
        self.feed_forward = keras.Sequential([*dense, dropout(arrays.DROPOUT)])

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        y = self.norm(x)
        x = x + self.dropout(self.attention(y, y, training=training), training=training)
        return x + self.feed_forward(x, training=training)


class Decoder(Encoder):
    """The same with causal self-attention, and attention to the encoder between."""

    def __init__(self, dropout: Dropout) -> None:
        super().__init__(dropout)
        self.cross_norm, self.cross_attention = _norm(), Attention(dropout)
        self.cross_dropout = dropout(arrays.DROPOUT)

    def call(self, x: tf.Tensor, memory: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        y = self.norm(x)
        x = x + self.dropout(self.attention(y, y, use_causal_mask=True, training=training), training=training)
        y = self.cross_attention(self.cross_norm(x), memory, training=training)
        x = x + self.cross_dropout(y, training=training)
        return x + self.feed_forward(x, training=training)

"""The four models in Keras 3, on whichever backend is set.

    model, loss = make_model("cnn")      # uncompiled; `fit` takes batches of (inputs, labels)

The data type policy is the global one: `keras.config.set_dtype_policy("mixed_bfloat16")`.
"""

import keras
import numpy as np
from keras import layers, ops

from tests.benchmarks.workloads import arrays


def make_model(workload: str) -> tuple[keras.Model, keras.losses.Loss]:
    """A model and its loss: the mean over all labels, in float32."""
    made = {"mlp": _mlp, "cnn": _resnet20, "transformer": _transformer, "two_tower": _two_tower}[workload]()
    if workload == "two_tower":
        return made, keras.losses.MeanSquaredError()
    return made, keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _mlp() -> keras.Model:
    inputs = keras.Input([784])
    x = layers.Dense(128, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(10)(layers.Dropout(arrays.MLP_DROPOUT)(x)))


def _resnet20() -> keras.Model:
    inputs = keras.Input([32, 32, 3])
    x = layers.ReLU()(_convolution(inputs, 16))
    for width in (16, 32, 64):
        for block in range(3):
            x = _residual(x, width, 2 if width > 16 and block == 0 else 1)
    return keras.Model(inputs, _float32(layers.Dense(10)(layers.GlobalAveragePooling2D()(x))))


def _convolution(x: keras.KerasTensor, width: int, stride: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(width, 3, stride, "same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(x)


def _residual(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    inner = _convolution(layers.ReLU()(_convolution(x, width, stride)), width)
    if stride > 1:
        # TensorFlow has faster kernels for pooling of single pixels than for a slice.
        x = layers.AveragePooling2D(1, 2)(x) if keras.config.backend() == "tensorflow" else x[:, ::2, ::2]
        x = ops.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])])
    return layers.ReLU()(layers.Add()([inner, x]))


def _float32(logits: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Activation("linear", dtype="float32")(logits)


def _transformer() -> keras.Model:
    source, begun = (keras.Input([arrays.LENGTH], dtype="int32", name=name) for name in ("source", "input"))
    memory = _embed(source)
    for _ in range(arrays.LAYERS):
        memory = _feed_forward(_attend(memory))
    memory = _norm(memory)
    x = _embed(begun)
    for _ in range(arrays.LAYERS):
        x = _feed_forward(_attend(_attend(x, causal=True), memory))
    return keras.Model({"source": source, "input": begun}, _float32(layers.Dense(arrays.VOCABULARY)(_norm(x))))


def _norm(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.LayerNormalization(epsilon=1e-6)(x)


def _embed(tokens: keras.KerasTensor) -> keras.KerasTensor:
    initial = keras.initializers.RandomNormal(stddev=arrays.WIDTH**-0.5)
    x = layers.Embedding(arrays.VOCABULARY, arrays.WIDTH, embeddings_initializer=initial)(tokens)
    positions = ops.cast(sinusoids(arrays.LENGTH, arrays.WIDTH), x.dtype)
    return layers.Dropout(arrays.DROPOUT)(x * arrays.WIDTH**0.5 + positions)


def _attend(x: keras.KerasTensor, memory: keras.KerasTensor | None = None, causal: bool = False) -> keras.KerasTensor:
    query = _norm(x)
    attention = layers.MultiHeadAttention(arrays.HEADS, arrays.WIDTH // arrays.HEADS, dropout=arrays.DROPOUT)
    mixed = attention(query, query if memory is None else memory, use_causal_mask=causal)
    return x + layers.Dropout(arrays.DROPOUT)(mixed)


def _feed_forward(x: keras.KerasTensor) -> keras.KerasTensor:
    inner = layers.Dense(arrays.FEED_FORWARD, activation="relu")(_norm(x))
    return x + layers.Dropout(arrays.DROPOUT)(layers.Dense(arrays.WIDTH)(inner))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Fixed positions [length, width] (Vaswani et al., 2017, section 3.5)."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def _two_tower() -> keras.Model:
    user, item = (keras.Input([], dtype="int32", name=name) for name in ("user", "item"))
    initial = keras.initializers.RandomNormal(stddev=0.1)
    towers = [
        layers.Embedding(rows, arrays.TOWER_WIDTH, embeddings_initializer=initial)(inputs)
        for rows, inputs in ((arrays.USERS, user), (arrays.ITEMS, item))
    ]
    return keras.Model({"user": user, "item": item}, arrays.MEAN_RATING + ops.sum(towers[0] * towers[1], -1))

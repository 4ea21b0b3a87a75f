"""The four models in Flax; `apply` returns the mean loss of a batch.

    model = make_model("mlp", "float32")
    variables = model.init({"params": key, "dropout": key}, batch)
    loss, changed = model.apply(variables, batch, rngs={"dropout": key}, mutable=["batch_stats"])

Weights are float32; with 'bfloat16' layers compute in it, and norms, softmax and loss in float32.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.benchmarks.workloads import arrays

Batch = dict[str, jax.Array]


def make_model(workload: str, precision: str) -> nn.Module:
    """The model of a workload, in training mode."""
    dtype = jnp.dtype(precision)
    return {
        "mlp": Mlp,
        "cnn": lambda: ResNet20(dtype),
        "transformer": lambda: Transformer(dtype),
        "two_tower": TwoTower,
    }[workload]()


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over all labels, in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


class Mlp(nn.Module):
    """784 - 128 - 10."""

    @nn.compact
    def __call__(self, batch: Batch) -> jax.Array:
        x = nn.relu(nn.Dense(128)(batch["image"]))
        x = nn.Dropout(arrays.MLP_DROPOUT, deterministic=False)(x)
        return cross_entropy(nn.Dense(10)(x), batch["label"])


class ResNet20(nn.Module):
    """Residual blocks of 16, 32 and 64 channels; shortcuts without weights."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, batch: Batch) -> jax.Array:
        x = nn.relu(self._convolution(batch["image"].astype(self.dtype), 16))
        for width in (16, 32, 64):
            for block in range(3):
                x = self._residual(x, width, 2 if width > 16 and block == 0 else 1)
        return cross_entropy(nn.Dense(10, dtype=self.dtype)(x.mean((1, 2))), batch["label"])

    def _convolution(self, x: jax.Array, width: int, stride: int = 1) -> jax.Array:
        initial = nn.initializers.he_normal()
        x = nn.Conv(width, (3, 3), stride, use_bias=False, dtype=self.dtype, kernel_init=initial)(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.99, epsilon=1e-3, dtype=self.dtype)(x)

    def _residual(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        inner = self._convolution(nn.relu(self._convolution(x, width, stride)), width)
        if stride > 1:
            x = jnp.pad(x[:, ::2, ::2], [(0, 0)] * 3 + [(0, width - x.shape[-1])])
        return nn.relu(inner + x)


class Attention(nn.Module):
    """Multi-head attention with dropout on the probabilities; projections of the same tensor are one product."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, causal: bool = False, bias: jax.Array | None = None
    ) -> jax.Array:
        heads, width = arrays.HEADS, arrays.WIDTH // arrays.HEADS
        if memory is None:
            query, key, value = jnp.split(self._project(x, 3), 3, -1)
        else:
            query = self._project(x, 1)
            key, value = jnp.split(self._project(memory, 2), 2, -1)
        query, key, value = (t.reshape(*t.shape[:2], heads, width) for t in (query, key, value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * width**-0.5, key).astype(jnp.float32)
        if causal:
            scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -1e9)
        if bias is not None:
            scores = scores + bias
        probabilities = nn.softmax(scores).astype(self.dtype)
        probabilities = nn.Dropout(arrays.DROPOUT, deterministic=False)(probabilities)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", probabilities, value)
        return nn.Dense(arrays.WIDTH, dtype=self.dtype)(mixed.reshape(x.shape))

    def _project(self, x: jax.Array, times: int) -> jax.Array:
        return nn.Dense(times * arrays.WIDTH, dtype=self.dtype)(x)


class Layer(nn.Module):
    """A pre-LN layer of the encoder, or of the decoder if there is a memory; `bias` is of the source's scores."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array | None = None, bias: jax.Array | None = None) -> jax.Array:
        if memory is None:
            x = x + self._dropout(Attention(self.dtype)(self._norm(x), bias=bias))
        else:
            x = x + self._dropout(Attention(self.dtype)(self._norm(x), causal=True))
            x = x + self._dropout(Attention(self.dtype)(self._norm(x), memory, bias=bias))
        inner = nn.relu(nn.Dense(arrays.FEED_FORWARD, dtype=self.dtype)(self._norm(x)))
        return x + self._dropout(nn.Dense(arrays.WIDTH, dtype=self.dtype)(inner))

    def _norm(self, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)

    def _dropout(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(arrays.DROPOUT, deterministic=False)(x)


class Transformer(nn.Module):
    """Encoder and decoder; the loss is the mean over all target tokens."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, batch: Batch) -> jax.Array:
        memory, x = self._embed(batch["source"]), self._embed(batch["input"])
        for _ in range(arrays.LAYERS):
            memory = Layer(self.dtype)(memory)
        memory = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(memory)
        for _ in range(arrays.LAYERS):
            x = Layer(self.dtype)(x, memory)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        return cross_entropy(nn.Dense(arrays.VOCABULARY, dtype=self.dtype)(x), batch["target"])

    def _embed(self, tokens: jax.Array) -> jax.Array:
        initial = nn.initializers.normal(arrays.WIDTH**-0.5)
        x = nn.Embed(arrays.VOCABULARY, arrays.WIDTH, dtype=self.dtype, embedding_init=initial)(tokens)
        x = x * math.sqrt(arrays.WIDTH) + jnp.asarray(sinusoids(arrays.LENGTH, arrays.WIDTH), self.dtype)
        return nn.Dropout(arrays.DROPOUT, deterministic=False)(x)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Fixed positions [length, width] (Vaswani et al., 2017, section 3.5)."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)


class TwoTower(nn.Module):
    """A mean rating and the product of two embeddings; the loss is the mean squared error."""

    @nn.compact
    def __call__(self, batch: Batch) -> jax.Array:
        user = self._embed(arrays.USERS, batch["user"])
        item = self._embed(arrays.ITEMS, batch["item"])
        return jnp.square(arrays.MEAN_RATING + (user * item).sum(-1) - batch["rating"]).mean()

    def _embed(self, rows: int, indices: jax.Array) -> jax.Array:
        return nn.Embed(rows, arrays.TOWER_WIDTH, embedding_init=nn.initializers.normal(0.1))(indices)

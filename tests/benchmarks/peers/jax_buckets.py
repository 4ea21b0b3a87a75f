"""JAX on batches of many shapes: resident batches, donated state, a compiled step for each shape.

    .venv-peers/bin/python -m tests.benchmarks.peers.jax_buckets --workload buckets --option epoch.npz

The model is that of `jax_models.py` with the masks of padding and one table, as `workloads/buckets.py` has it.
"""

import importlib.metadata
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tests.benchmarks.peers import epochs, jax_flax, jax_models, protocol
from tests.benchmarks.workloads import arrays


class Translator(nn.Module):
    """Encoder and decoder with one table; the loss is the mean over all target tokens that are no padding."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, batch: jax_models.Batch) -> jax.Array:
        initial = nn.initializers.normal(arrays.WIDTH**-0.5)
        table = nn.Embed(arrays.VOCABULARY, arrays.WIDTH, dtype=self.dtype, embedding_init=initial)
        padded = jnp.where(batch["source"] == 0, -1e9, 0.0)[:, None, None]  # [batch, 1, 1, time]
        memory, x = self._embed(table, batch["source"]), self._embed(table, batch["input"])
        for _ in range(arrays.LAYERS):
            memory = jax_models.Layer(self.dtype)(memory, bias=padded)
        memory = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(memory)
        for _ in range(arrays.LAYERS):
            x = jax_models.Layer(self.dtype)(x, memory, padded)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(x)
        logits = table.attend(x).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
        return (losses * batch["weight"]).sum() / batch["weight"].sum()

    def _embed(self, table: nn.Embed, tokens: jax.Array) -> jax.Array:
        positions = jax_models.sinusoids(tokens.shape[1], arrays.WIDTH)
        x = table(tokens) * math.sqrt(arrays.WIDTH) + jnp.asarray(positions, self.dtype)
        return nn.Dropout(arrays.DROPOUT, deterministic=False)(x)


def prepare(workload: str, precision: str, option: str) -> protocol.Peer:
    """Trains step by step; the shapes of two steps that follow each other differ.

    Args:
      option: the file of the epoch.
    """
    protocol.keep_pages()
    batches = [jax.device_put(batch) for batch in epochs.read(option)]
    model, optimizer = Translator(jnp.dtype(precision)), jax_flax.make_optimizer("transformer")
    key = jax.random.key(0, impl=jax_flax.WHOLE)
    weights = jax.jit(model.init)({"params": key, "dropout": key}, batches[0])["params"]
    state = {"step": jnp.zeros((), jnp.int32), "key": key, "weights": weights, "optimizer": optimizer.init(weights)}
    turns, last = epochs.Turns(len(batches)), []

    def step(state: dict[str, Any], batch: jax_models.Batch) -> tuple[dict[str, Any], jax.Array]:
        dropout_key = jax.random.fold_in(state["key"], state["step"])

        def loss_of(weights: Any) -> jax.Array:
            return model.apply({"params": weights}, batch, rngs={"dropout": dropout_key})

        loss, gradients = jax.value_and_grad(loss_of)(state["weights"])
        updates, slots = optimizer.update(gradients, state["optimizer"], state["weights"])
        weights = optax.apply_updates(state["weights"], updates)
        return {**state, "step": state["step"] + 1, "weights": weights, "optimizer": slots}, loss

    compiled = jax.jit(step, donate_argnums=0)

    def steps(count: int) -> None:
        nonlocal state
        for number in turns.take(count):
            state, loss = compiled(state, batches[number])
        last[:] = [loss.block_until_ready()]

    steps(len(batches))  # compiles each shape
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return protocol.Peer(steps, versions, lambda: float(last[0]))


if __name__ == "__main__":
    protocol.serve(prepare)

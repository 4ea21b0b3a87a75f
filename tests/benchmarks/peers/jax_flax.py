"""JAX with Flax and Optax: resident data, donated state; a scan of several steps in a call, or a call for each step.

    .venv-peers/bin/python -m tests.benchmarks.peers.jax_flax --workload mlp

Tried at the start: both loops, and for `transformer` the batch shared by as many CPU devices as there are cores.
"""

import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.benchmarks.peers import jax_models, protocol
from tests.benchmarks.peers.order import Order
from tests.benchmarks.workloads import arrays

CHUNK = {"mlp": 100, "cnn": 1, "transformer": 4, "two_tower": 100}
# The fastest generator of dropout's bits on one device, and the one whose bits the devices can make a part each of.
WHOLE, SHARED = "unsafe_rbg", "threefry2x32"


def prepare(workload: str, precision: str, option: str) -> protocol.Peer:
    """Trains in the fastest of the ways that suit the workload."""
    protocol.keep_pages()
    cores = os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores)
    data = arrays.arrays(workload)
    whole = Training(workload, precision, data, 1, WHOLE)
    ways = {"step by step": whole.loop}
    if workload != "cnn":  # in a loop XLA runs convolutions another way on CPUs: 17 s a step, not 0.57
        ways["scan"] = whole.scan
    if workload == "transformer":  # `mlp` and `cnn` were slower so, and `two_tower` got stuck in a collective
        ways[f"scan, {cores} devices"] = Training(workload, precision, data, cores, SHARED).scan
    last: list[jax.Array] = []

    def waited_for(way: Callable[[int], jax.Array]) -> Callable[[int], None]:
        def steps(count: int) -> None:
            last[:] = [way(count).block_until_ready()]

        return steps

    ways = {name: waited_for(way) for name, way in ways.items()}
    variant, variants = protocol.fastest(ways)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return protocol.Peer(ways[variant], versions, lambda: float(last[0]), variant, variants)


class Training:
    """State of a training and its two compiled loops.

    Devices share each batch; the compiler sees to the sums over it, so that the steps are those of one device.

    Attributes:
      state: step int32 [], key, variables, optimizer's state.
    """

    def __init__(self, workload: str, precision: str, data: dict[str, np.ndarray], devices: int, generator: str):
        mesh = jax.make_mesh((devices,), ("batch",), (AxisType.Auto,), devices=jax.devices()[:devices])
        everywhere, self.shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
        self.data, self.chunk = jax.device_put(data, everywhere), CHUNK[workload]
        self.batch = arrays.BATCH[workload]
        self.order = Order(len(next(iter(data.values()))), self.batch)
        self.model = jax_models.make_model(workload, precision)
        self.optimizer = make_optimizer(workload)
        self.state = jax.device_put(self._initial(jax.random.key(0, impl=generator)), everywhere)
        self.one = jax.jit(self._step, donate_argnums=0)
        self.many = jax.jit(self._scan, donate_argnums=0)

    def scan(self, count: int) -> jax.Array:
        """Makes whole chunks in one call each, and the rest step by step; returns the last loss."""
        for _ in range(count // self.chunk):
            self.state, loss = self.many(self.state, self.data, self._take(self.chunk))
            self._settle(loss)
        return self.loop(count % self.chunk) if count % self.chunk else loss.block_until_ready()

    def loop(self, count: int) -> jax.Array:
        """Makes one step a call; returns the last loss."""
        for indices in self._take(count):
            self.state, loss = self.one(self.state, self.data, indices)
            self._settle(loss)
        return loss.block_until_ready()

    def _take(self, count: int) -> np.ndarray:
        return self.order.take(count).astype(np.int32)

    def _settle(self, loss: jax.Array) -> None:
        if len(self.shared.device_set) > 1:  # two calls at once can wait for each other's devices
            loss.block_until_ready()

    def _initial(self, key: jax.Array) -> dict[str, Any]:
        batch = {name: array[: self.batch] for name, array in self.data.items()}
        variables = self.model.init({"params": key, "dropout": key}, batch)
        optimizer = self.optimizer.init(variables["params"])
        return {"step": jnp.zeros((), jnp.int32), "key": key, "variables": variables, "optimizer": optimizer}

    def _scan(self, state: dict[str, Any], data: jax_models.Batch, rows: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        state, losses = jax.lax.scan(lambda state, indices: self._step(state, data, indices), state, rows)
        return state, losses[-1]

    def _step(
        self, state: dict[str, Any], data: jax_models.Batch, indices: jax.Array
    ) -> tuple[dict[str, Any], jax.Array]:
        indices = jax.lax.with_sharding_constraint(indices, self.shared)
        dropout_key = jax.random.fold_in(state["key"], state["step"])
        batch = {name: array[indices] for name, array in data.items()}
        rest = {name: value for name, value in state["variables"].items() if name != "params"}

        def loss_of(weights: Any) -> tuple[jax.Array, Any]:
            variables = {"params": weights, **rest}
            return self.model.apply(variables, batch, rngs={"dropout": dropout_key}, mutable=["batch_stats"])

        weights = state["variables"]["params"]
        (loss, changed), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
        updates, optimizer = self.optimizer.update(gradients, state["optimizer"], weights)
        variables = {"params": optax.apply_updates(weights, updates), **changed}
        return {**state, "step": state["step"] + 1, "variables": variables, "optimizer": optimizer}, loss


def make_optimizer(workload: str) -> optax.GradientTransformation:
    """At its constant rate."""
    if workload == "cnn":
        return optax.sgd(arrays.LEARNING_RATE[workload], arrays.MOMENTUM)
    beta_1, beta_2, epsilon = arrays.ADAM.values()
    return optax.adam(arrays.LEARNING_RATE[workload], beta_1, beta_2, epsilon)


if __name__ == "__main__":
    protocol.serve(prepare)

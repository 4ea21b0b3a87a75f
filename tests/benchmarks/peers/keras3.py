"""Keras 3: `compile` and `fit`, on TensorFlow or on JAX.

    .venv-peers/bin/python -m tests.benchmarks.peers.keras3 --workload mlp --option tensorflow

Tried at the start: jit_compile and steps_per_execution. A call of `steps` is one call of `fit`, and its loss
the mean of the call's steps, which is what `fit` reports.
"""

import importlib.metadata
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.benchmarks.peers import protocol
from tests.benchmarks.workloads import arrays

Steps = Callable[[int], float]
LABELS = {"mlp": "label", "cnn": "label", "transformer": "target", "two_tower": "rating"}
# (jit_compile, steps_per_execution). On JAX a jit_compile=False is no compilation at all.
WAYS = {
    "tensorflow": {
        "mlp": [(True, 1), (True, 50), (False, 50)],
        "cnn": [(False, 1), (False, 4), (True, 1)],
        "transformer": [(False, 1), (False, 4), (True, 1)],
        "two_tower": [(True, 1), (True, 50), (False, 50)],
    },
    "jax": {
        "mlp": [(True, 1), (True, 50)],
        "cnn": [(True, 1), (True, 4)],
        "transformer": [(True, 1), (True, 4)],
        "two_tower": [(True, 1), (True, 50)],
    },
}


def prepare(workload: str, precision: str, option: str) -> protocol.Peer:
    """Trains in the fastest of the ways that suit the workload."""
    if option not in WAYS:
        raise SystemExit(f"--option={option} is neither tensorflow nor jax")
    protocol.keep_pages()
    os.environ["KERAS_BACKEND"] = option
    import keras  # reads the backend when it is imported

    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    data = arrays.arrays(workload)
    ways = {}
    for jit_compile, together in WAYS[option][workload]:
        name = f"jit_compile={jit_compile}, steps_per_execution={together}"
        ways[name] = _training(workload, data, option, jit_compile, together)
    variant, variants = protocol.fastest(ways)
    last = []

    def steps(count: int) -> None:
        last[:] = [ways[variant](count)]

    versions = {name: importlib.metadata.version(name) for name in ("keras", option)}
    return protocol.Peer(steps, versions, lambda: last[0], variant, variants)


def _training(workload: str, data: dict[str, np.ndarray], option: str, jit_compile: bool, together: int) -> Steps:
    """Returns a function that makes n steps by `fit` and gives their mean loss."""
    import keras

    from tests.benchmarks.peers import keras3_models

    model, loss = keras3_models.make_model(workload)
    rate = arrays.LEARNING_RATE[workload]
    if workload == "cnn":
        optimizer = keras.optimizers.SGD(rate, arrays.MOMENTUM)
    else:
        optimizer = keras.optimizers.Adam(rate, **arrays.ADAM)
    model.compile(optimizer, loss, jit_compile=jit_compile, steps_per_execution=together)
    batches = (_dataset if option == "tensorflow" else _generator)(workload, data)

    def steps(count: int) -> float:
        history = model.fit(batches(count), steps_per_epoch=count, verbose=0)
        return history.history["loss"][-1]

    return steps


def _split(workload: str, batch: dict[str, Any]) -> tuple[Any, Any]:
    """(inputs, labels), as `fit` wants them."""
    label = batch[LABELS[workload]]
    inputs = {name: array for name, array in batch.items() if name != LABELS[workload]}
    return (inputs if len(inputs) > 1 else inputs["image"]), label


def _dataset(workload: str, data: dict[str, np.ndarray]) -> Callable[[int], Any]:
    """Batches gathered from resident tensors, as Keras itself does it with arrays, but without an end."""
    import tensorflow as tf

    resident = {name: tf.constant(array) for name, array in data.items()}
    examples, batch = len(next(iter(data.values()))), arrays.BATCH[workload]
    rows = examples // batch

    def epoch(_: tf.Tensor) -> tf.data.Dataset:
        shuffled = tf.random.shuffle(tf.range(examples))[: rows * batch]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(shuffled, [rows, batch]))

    def gather(indices: tf.Tensor) -> tuple[Any, Any]:
        return _split(workload, {name: tf.gather(tensor, indices) for name, tensor in resident.items()})

    batches = tf.data.Dataset.counter().flat_map(epoch).map(gather, num_parallel_calls=tf.data.AUTOTUNE)
    return lambda count: batches.take(count).prefetch(tf.data.AUTOTUNE)


def _generator(workload: str, data: dict[str, np.ndarray]) -> Callable[[int], Iterator[tuple[Any, Any]]]:
    """Batches gathered by NumPy, which is what Keras does with arrays on JAX, but without an end."""
    rng = np.random.default_rng(0)
    examples, batch = len(next(iter(data.values()))), arrays.BATCH[workload]

    def forever() -> Iterator[tuple[Any, Any]]:
        while True:
            shuffled = rng.permutation(examples)[: examples // batch * batch]
            for indices in shuffled.reshape(-1, batch):
                yield _split(workload, {name: array[indices] for name, array in data.items()})

    batches = forever()
    return lambda count: (batch for batch in itertools.islice(batches, count))  # `fit` knows generators alone


if __name__ == "__main__":
    protocol.serve(prepare)

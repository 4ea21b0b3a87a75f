"""Keras 3: `compile` and `fit`, on TensorFlow or on JAX.

    .venv-peers/bin/python -m tests.benchmarks.peers.keras3 --workload mlp --option tensorflow

Tried at the start: jit_compile and steps_per_execution. `fit` goes on from turn to turn: what its start takes, which a
long training does not see, is not measured. Of endless data it takes whole executions alone, so a turn has the nearest
number of those; its loss is the mean of its steps, which is what `fit` reports.
"""

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.benchmarks.peers import gate, protocol
from tests.benchmarks.workloads import arrays

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
    fits = {}
    for jit_compile, together in WAYS[option][workload]:
        name = f"jit_compile={jit_compile}, steps_per_execution={together}"
        fits[name] = _Fit(workload, data, option, jit_compile, together)
    variant, variants = protocol.fastest({name: fit.steps for name, fit in fits.items()})
    for other in fits.keys() - {variant}:
        fits[other].gate.close()
    versions = {name: importlib.metadata.version(name) for name in ("keras", option)}
    return protocol.Peer(fits[variant].steps, versions, lambda: fits[variant].loss, variant, variants)


class _Fit:
    """`fit` by one way of compiling, n steps at a time; loss: mean of the last ones."""

    def __init__(
        self, workload: str, data: dict[str, np.ndarray], option: str, jit_compile: bool, together: int
    ) -> None:
        self._workload, self._jit_compile, self._together = workload, jit_compile, together
        self._batches = (_dataset if option == "tensorflow" else _generator)(workload, data)
        self.loss = float("nan")
        self.gate = gate.Gate(self._train)

    def steps(self, count: int) -> int:
        """Makes about `count` steps; returns how many."""
        whole = max(1, round(count / self._together)) * self._together
        self.gate.steps(whole)
        return whole

    def _train(self, opened: gate.Gate) -> None:
        import keras

        from tests.benchmarks.peers import keras3_models

        model, loss = keras3_models.make_model(self._workload)
        rate = arrays.LEARNING_RATE[self._workload]
        if self._workload == "cnn":
            optimizer = keras.optimizers.SGD(rate, arrays.MOMENTUM)
        else:
            optimizer = keras.optimizers.Adam(rate, **arrays.ADAM)
        model.compile(optimizer, loss, jit_compile=self._jit_compile, steps_per_execution=self._together)

        def pause(epoch: int, logs: dict[str, float]) -> None:
            self.loss = logs["loss"]
            opened.made(length)
            model.stop_training = opened.allowed() != length  # another length is another call of `fit`

        while length := opened.allowed():
            paused = keras.callbacks.LambdaCallback(on_epoch_end=pause)
            model.fit(self._batches(), steps_per_epoch=length, epochs=10**9, verbose=0, callbacks=[paused])


def _split(workload: str, batch: dict[str, Any]) -> tuple[Any, Any]:
    """(inputs, labels), as `fit` wants them."""
    label = batch[LABELS[workload]]
    inputs = {name: array for name, array in batch.items() if name != LABELS[workload]}
    return (inputs if len(inputs) > 1 else inputs["image"]), label


def _dataset(workload: str, data: dict[str, np.ndarray]) -> Callable[[], Any]:
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
    return lambda: batches.prefetch(tf.data.AUTOTUNE)


def _generator(workload: str, data: dict[str, np.ndarray]) -> Callable[[], Iterator[tuple[Any, Any]]]:
    """Batches gathered by NumPy, which is what Keras does with arrays on JAX, but without an end."""
    rng = np.random.default_rng(0)
    examples, batch = len(next(iter(data.values()))), arrays.BATCH[workload]

    def forever() -> Iterator[tuple[Any, Any]]:
        while True:
            shuffled = rng.permutation(examples)[: examples // batch * batch]
            for indices in shuffled.reshape(-1, batch):
                yield _split(workload, {name: array[indices] for name, array in data.items()})

    return forever


if __name__ == "__main__":
    protocol.serve(prepare)

"""The limit: the same tf_keras model in a loop written by hand for it, with nothing but what the training needs.

    python tests/benchmarks/peers/bare.py --workload=mlp

No norms, no finite check, no metric but the loss, nothing logged, no determinism. Examples lie on the device; the order
of an epoch is a permutation made on the host, of which each call gets its part; K steps are one call. Of the ways to
compile them the fastest is taken: graph, XLA for the step inside a graph's loop, XLA for the whole block; where
embeddings are looked up, each with their gradients as rows or dense. Stateless dropout, as a run that resumes needs.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np
import tensorflow as tf
import tf_keras as keras
from protocol import Peer, fastest, serve

from tests.benchmarks.workloads import arrays, models

# Steps of one call.
BLOCK = {"mlp": 100, "cnn": 4, "transformer": 4, "two_tower": 100}


class Dropout(keras.layers.Layer):
    """Keyed by its number in the model and the step that is traced."""

    made = 0
    step: tf.Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.number = rate, Dropout.made
        Dropout.made += 1

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training:
            return x
        return tf.nn.experimental.stateless_dropout(x, self.rate, [self.number, Dropout.step], rng_alg="philox")


def indices(examples: int, batch: int, block: int) -> Iterator[np.ndarray]:
    """int32 [block, batch], without end: permutations of the examples one after the other."""
    rng, left = np.random.default_rng(0), np.zeros(0, np.int32)
    while True:
        while len(left) < block * batch:
            left = np.concatenate([left, rng.permutation(examples).astype(np.int32)])
        yield left[: block * batch].reshape(block, batch)
        left = left[block * batch :]


class Trainer:
    """Blocks of steps by one way of compiling them, on variables that all ways share."""

    def __init__(self, workload: str, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        self.workload, self.model, self.optimizer = workload, model, optimizer
        optimizer.build(model.trainable_variables)
        self.examples = {name: tf.constant(array) for name, array in arrays.arrays(workload).items()}
        self.block, count = BLOCK[workload], len(next(iter(self.examples.values())))
        self.order = indices(count, arrays.BATCH[workload], self.block)
        self.loss = 0.0

    def way(self, step_mode: bool, block_mode: bool, rows: bool) -> Callable[[int], None]:
        """A function that makes n steps.

        Args:
          step_mode, block_mode: whether XLA compiles the step, or the whole block.
          rows: gradients of embeddings stay rows.
        """

        def step(number: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            Dropout.step = number
            batch = {name: tf.gather(array, index) for name, array in self.examples.items()}
            with tf.GradientTape() as tape:
                output = self.model(models.inputs(self.workload, batch), training=True)
                loss = models.loss(self.workload, output, batch)
            gradients = tape.gradient(loss, self.model.trainable_variables)
            gradients = gradients if rows else [tf.convert_to_tensor(gradient) for gradient in gradients]
            self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
            return loss

        inner = tf.function(step, jit_compile=True, autograph=False) if step_mode else step

        def block(k: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
            first = tf.cast(self.optimizer.iterations, tf.int32)

            def body(i: tf.Tensor, loss: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                return i + 1, inner(first + i, tf.gather(order, i))

            start = (tf.constant(0), tf.constant(0.0))
            return tf.while_loop(lambda i, loss: i < k, body, start, parallel_iterations=1)[1]

        compiled = tf.function(block, jit_compile=block_mode or None, autograph=False)

        def steps(count: int) -> None:
            while count:
                k = min(count, self.block)
                loss = compiled(tf.constant(k), next(self.order))
                count -= k
            self.loss = float(loss)

        return steps


def prepare(workload: str, precision: str, option: str) -> Peer:
    """The fastest way, or that of `option`."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    trainer = Trainer(workload, models.make(workload, Dropout), models.make_optimizer(workload))
    compiled = {"graph": (False, False), "xla step": (True, False), "xla block": (False, True)}
    ways = {name: trainer.way(*modes, rows=False) for name, modes in compiled.items()}
    if workload in ("transformer", "two_tower"):
        ways |= {f"{name}, rows": trainer.way(*modes, rows=True) for name, modes in compiled.items()}
    name, times = fastest({name: steps for name, steps in ways.items() if option in ("", name)})
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "tf-keras")}
    return Peer(ways[name], versions, lambda: trainer.loss, name, times)


if __name__ == "__main__":
    serve(prepare)

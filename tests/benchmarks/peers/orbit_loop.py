"""Orbit, the loop of the TensorFlow models: a `StandardTrainer` under a `Controller`, graph or XLA.

    .venv-peers/bin/python tests/benchmarks/peers/orbit_loop.py --workload=mlp

Its inner loop, `steps_per_loop` steps in one call, is a `tf.while_loop`. No checkpoints, no summaries.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

import orbit
import tensorflow as tf
import tf_keras as keras
from pipeline import batches
from protocol import Peer, fastest, serve

from tests.benchmarks.workloads import models

STEPS_PER_LOOP = {"mlp": 500, "cnn": 6, "transformer": 6, "two_tower": 500}


class Trainer(orbit.StandardTrainer):
    """One model, whose step is compiled by XLA or is a part of the loop's graph."""

    def __init__(self, workload: str, jit_compile: bool) -> None:
        super().__init__(batches(workload))
        self.workload, self.model = workload, models.make(workload, keras.layers.Dropout)
        self.optimizer = models.make_optimizer(workload)
        self.optimizer.build(self.model.trainable_variables)
        self.loss = keras.metrics.Mean("loss")
        self._update = tf.function(self._updated, jit_compile=True) if jit_compile else self._updated

    def train_loop_begin(self) -> None:
        """The loss reported is that of a loop."""
        self.loss.reset_states()

    def train_step(self, iterator: Iterator[dict[str, tf.Tensor]]) -> None:
        """One batch, one update."""
        self.loss.update_state(self._update(next(iterator)))

    def train_loop_end(self) -> dict[str, Any]:
        """What the controller logs."""
        return {"loss": self.loss.result()}

    def _updated(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            output = self.model(models.inputs(self.workload, batch), training=True)
            loss = models.loss(self.workload, output, batch)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))
        return loss


def steps_of(trainer: Trainer) -> Callable[[int], None]:
    """A function that makes n steps."""
    controller = orbit.Controller(
        global_step=trainer.optimizer.iterations, trainer=trainer, steps_per_loop=STEPS_PER_LOOP[trainer.workload]
    )

    def steps(count: int) -> None:
        controller.train(int(trainer.optimizer.iterations) + count, checkpoint_at_completion=False)

    return steps


def prepare(workload: str, precision: str, option: str) -> Peer:
    """The fastest way."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    trainers = {name: Trainer(workload, jit_compile=name == "xla") for name in ("graph", "xla")}
    steps = {name: steps_of(trainer) for name, trainer in trainers.items()}
    name, times = fastest(steps)
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "tf-keras", "tf-models-official")}
    return Peer(steps[name], versions, lambda: float(trainers[name].loss.result()), name, times)


if __name__ == "__main__":
    serve(prepare)

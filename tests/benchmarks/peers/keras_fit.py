"""tf_keras: `compile` and `fit`, the fastest of XLA or not and several steps an execution.

    python tests/benchmarks/peers/keras_fit.py --workload=mlp

No metric but the loss, no callback but the one that pauses, no progress bar. `fit` goes on from turn to turn: what its
start takes, which a long training does not see, is not measured either.
"""

import functools
import importlib.metadata
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

import tensorflow as tf
import tf_keras as keras
from gate import Gate
from pipeline import batches
from protocol import Peer, fastest, serve

from tests.benchmarks.workloads import models

EXECUTIONS = {"mlp": (1, 10, 100), "cnn": (1, 4), "transformer": (1, 4), "two_tower": (1, 10, 100)}


class Pause(keras.callbacks.Callback):
    """Ends an epoch's turn; ends `fit` where the next turn has another length."""

    def __init__(self, gate: Gate, length: int) -> None:
        super().__init__()
        self._gate, self._length = gate, length
        self.loss = float("nan")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.loss = (logs or {})["loss"]
        self._gate.made(self._length)
        self.model.stop_training = self._gate.allowed() != self._length


class Fit:
    """`fit` by one way of compiling, n steps at a time."""

    def __init__(self, workload: str, jit_compile: bool, execution: int) -> None:
        self._workload, self._jit_compile, self._execution = workload, jit_compile, execution
        self.loss = float("nan")
        self.gate = Gate(self._train)

    def _train(self, gate: Gate) -> None:
        model = models.make(self._workload, keras.layers.Dropout)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(
            models.make_optimizer(self._workload),
            (lambda rating, found: tf.square(found - rating)) if self._workload == "two_tower" else loss,
            jit_compile=self._jit_compile,
            steps_per_execution=self._execution,
        )
        inputs, target = functools.partial(models.inputs, self._workload), models.TARGET[self._workload]
        data = batches(self._workload, lambda batch: (inputs(batch), batch[target]))
        while length := gate.allowed():
            self.pause = Pause(gate, length)
            model.fit(data, steps_per_epoch=length, epochs=10**9, verbose=0, callbacks=[self.pause])


def prepare(workload: str, precision: str, option: str) -> Peer:
    """The fastest way."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if precision == "bfloat16" else precision)
    fits = {
        f"{'xla' if jit_compile else 'graph'}, steps_per_execution={execution}": Fit(workload, jit_compile, execution)
        for jit_compile in (False, True)
        for execution in EXECUTIONS[workload]
    }
    name, times = fastest({name: fit.gate.steps for name, fit in fits.items()})
    for other in fits.keys() - {name}:
        fits[other].gate.close()
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "tf-keras")}
    return Peer(fits[name].gate.steps, versions, lambda: fits[name].pause.loss, name, times)


if __name__ == "__main__":
    serve(prepare)

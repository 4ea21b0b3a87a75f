"""TensorFlow Recommenders: a Retrieval task trained by `fit`, and evaluated by FactorizedTopK.

    TF_USE_LEGACY_KERAS=1 python tests/benchmarks/peers/tfrs.py --workload=two_tower --option=ratings.npz:id:graph

Ways: `graph` and `xla` train; `streaming` and `brute_force` train and then evaluate, with the films as a data set, as
in its tutorials, or as an index that each evaluation makes anew. They leave the vectors in ratings.npz.id.tfrs.npz.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras
from gate import Gate
from keras_fit import Pause
from protocol import Peer, serve

from tests.benchmarks.workloads import recommender_towers as towers


class Retrieval(tfrs.Model):
    """The towers under the loss of the task."""

    def __init__(self, path: str, features: str) -> None:
        super().__init__()
        self.shares = tf.constant(towers.constant(path, "share"))
        users = len(towers.constant(path, "seen")) + 1
        self.towers = towers.Towers(features, users, len(self.shares))
        mean = keras.losses.CategoricalCrossentropy(
            from_logits=True, reduction=keras.losses.Reduction.SUM_OVER_BATCH_SIZE
        )
        self.task = tfrs.tasks.Retrieval(loss=mean, remove_accidental_hits=True)

    def compute_loss(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns the mean cross-entropy of the film among those of the batch."""
        users, items = self.towers(inputs)
        share = tf.gather(self.shares, inputs["film"])
        return self.task(
            users,
            items,
            candidate_sampling_probability=share,
            candidate_ids=inputs["film"],
            compute_metrics=not training,
        )


def batches(arrays: dict[str, np.ndarray]) -> tf.data.Dataset:
    """Shuffled without end; whole batches are gathered, which costs less than to shuffle examples one by one."""
    examples = {name: tf.constant(array) for name, array in arrays.items()}
    size = len(arrays["film"])

    def epoch(_: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.shuffle(tf.range(size, dtype=tf.int32))[: size // towers.BATCH * towers.BATCH]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order, [-1, towers.BATCH]))

    def gathered(index: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(array, index) for name, array in examples.items()}

    orders = tf.data.Dataset.counter().flat_map(epoch)
    return orders.map(gathered, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def prepare(workload: str, precision: str, option: str) -> Peer:
    """The way that the option names."""
    path, features, way = option.rsplit(":", 2)
    keras.utils.set_random_seed(0)
    model = Retrieval(path, features)
    model.compile(keras.optimizers.Adam(towers.LEARNING_RATE), jit_compile=way == "xla")
    train = towers.load(path, "train", features)
    steps = len(train["film"]) // towers.BATCH
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "tf-keras")}
    versions["tensorflow-recommenders"] = importlib.metadata.version("tensorflow-recommenders")
    if way in ("graph", "xla"):
        fit = Fit(model, batches(train))
        fit.gate.steps(steps)
        return Peer(fit.gate.steps, versions, lambda: fit.pause.loss, way)
    model.fit(batches(train), steps_per_epoch=steps, epochs=towers.EPOCHS, verbose=0)
    test = towers.load(path, "test", features)
    inputs = {name: tf.constant(array) for name, array in test.items()}
    items = model.towers.items(tf.range(len(model.shares)))
    np.savez(f"{path}.{features}.tfrs.npz", users=model.towers.users(inputs).numpy(), items=items.numpy())
    return Peer(evaluations(model, test, way), versions, lambda: 0.0, way)


class Fit:
    """`fit` that goes on from turn to turn."""

    def __init__(self, model: keras.Model, data: tf.data.Dataset) -> None:
        self._model, self._data = model, data
        self.gate = Gate(self._train)

    def _train(self, gate: Gate) -> None:
        while length := gate.allowed():
            self.pause = Pause(gate, length)
            self._model.fit(self._data, steps_per_epoch=length, epochs=10**9, verbose=0, callbacks=[self.pause])


def evaluations(model: Retrieval, test: dict[str, np.ndarray], way: str) -> Callable[[int], None]:
    """Returns a function that makes so many evaluations of all users; the first one, which traces, is made here."""
    data = tf.data.Dataset.from_tensor_slices(test).batch(towers.BATCH).cache()
    films = tf.data.Dataset.range(1, len(model.shares)).batch(towers.BATCH)
    if way == "streaming":
        candidates = films.map(model.towers.items)
    else:
        candidates = tfrs.layers.factorized_top_k.BruteForce(k=max(towers.KS))
        candidates.index(model.towers.items(tf.range(1, len(model.shares))))
    model.task.factorized_metrics = tfrs.metrics.FactorizedTopK(candidates, ks=towers.KS)
    model.compile(model.optimizer)

    def run(count: int) -> None:
        for _ in range(count):
            if way == "brute_force":
                candidates.index(model.towers.items(tf.range(1, len(model.shares))))
            model.evaluate(data, verbose=0)

    run(1)
    return run


if __name__ == "__main__":
    serve(prepare)

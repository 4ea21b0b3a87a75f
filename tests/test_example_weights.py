"""A run over examples that have weights, against the sums written out in NumPy: training, evaluation, resumed."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, metrics
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.run import evaluation, loop
from framework.run.replay import replay_step
from tests import small

SIZE, BATCH, RATE, STEPS = 40, 16, 0.05, 5
SETTINGS = {
    "optimizer.name": "sgd",
    "schedule.name": "constant",
    "schedule.learning_rate": RATE,
    "schedule.warmup": "",
    "train.duration": f"{STEPS} steps",
    "data.shuffle": False,
}


class AbsoluteError(metrics.Mean):
    """Of whole numbers, so that weights must not become whole too."""

    mode = "min"

    def values(self, outputs, batch):
        return tf.cast(tf.round(tf.abs(outputs["error"])), tf.int32), batch["weight"]


def examples():
    rng = np.random.default_rng(11)
    x = rng.normal(size=(SIZE, 4)).astype(np.float32)
    weight = rng.choice([0.0, 0.25, 0.5, 1.0, 3.0], SIZE).astype(np.float32)
    return {"weight": weight, "x": x, "y": (3 * x.sum(1) + rng.normal(size=SIZE)).astype(np.float32)}


def build(workdir=None, **settings):
    def make_data(cfg, split):
        return make_batches(Source(examples(), "weighted"), cfg, training=split == "train")

    def make_model(cfg):
        return keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])

    def make_loss(cfg):
        def loss(model, batch, training):
            error = model(batch["x"], training=training)[:, 0] - batch["y"]
            values = tf.square(error) * batch["weight"]
            return {"mse": losses.Term(tf.reduce_sum(values), tf.reduce_sum(batch["weight"]))}, {"error": error}

        return loss

    functions = {"make_data": make_data, "make_model": make_model, "make_loss": make_loss}
    functions["make_metrics"] = lambda cfg: {"error": AbsoluteError()}
    return small.build(workdir, functions=functions, **{**SETTINGS, **settings})


def reference(remainder="wrap"):
    """(kernel, {loss, error} of evaluation, loss of each step) of gradient descent over examples in file order."""
    data = {name: array.astype(np.float64) for name, array in examples().items()}
    kernel, seen = np.zeros(4), []
    for step in range(STEPS):
        rows = np.arange(step * BATCH, (step + 1) * BATCH) % SIZE
        if remainder == "pad":
            rows = np.arange(step % 3 * BATCH, min(step % 3 * BATCH + BATCH, SIZE))
        x, y, weight = (data[name][rows] for name in ("x", "y", "weight"))
        seen.append((weight * (x @ kernel - y) ** 2).sum() / weight.sum())
        kernel = kernel - RATE * 2 * ((x @ kernel - y) * weight) @ x / weight.sum()
    error, weight = data["x"] @ kernel - data["y"], data["weight"]
    means = {"loss": error**2, "error": np.round(np.abs(error))}
    return kernel, {name: (values * weight).sum() / weight.sum() for name, values in means.items()}, seen


CASES = {
    "eager": {"train.compile": "eager"},
    "xla, micro-batches": {"train.compile": "xla", "train.micro_batches": 4},
    "graph, streamed, micro-batches": {"data.placement": "stream", "train.micro_batches": 2},
    "xla, streamed, padded": {"train.compile": "xla", "data.placement": "stream", "data.remainder": "pad"},
    "replicas": {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "data.remainder": "pad"},
    "replicas, streamed": {
        "runtime.strategy": "mirrored",
        "runtime.virtual_devices": 2,
        "data.placement": "stream",
        "train.micro_batches": 2,
    },
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if "padded" in case else case for case in CASES]
)
def test_each_example_counts_by_its_weight(case):
    run = build(**CASES[case])
    kernel, means, seen = reference(CASES[case].get("data.remainder", "wrap"))
    block = run.train_block(STEPS)
    np.testing.assert_allclose([block.row(i)["loss"] for i in range(STEPS)], seen, rtol=1e-5)
    np.testing.assert_allclose(run.model.get_weights()[0][:, 0], kernel, rtol=1e-5)
    assert evaluation.evaluate(run) == pytest.approx({f"test/{name}": value for name, value in means.items()}, rel=1e-5)


def test_a_resumed_run_and_a_replayed_step_have_the_same_weights(tmp_path):
    whole = build(tmp_path / "whole", **{"data.placement": "stream"})
    loop.train(whole)
    parts = build(tmp_path / "run", **{"data.placement": "stream", "checkpoint.every": "2 steps"})
    parts.open()
    parts.write_header(())
    parts.train_block(2)
    with parts.checkpoints:
        parts.checkpoints.save(parts.state, {})
    resumed = build(tmp_path / "run", **{"data.placement": "stream", "checkpoint.every": "2 steps"})
    resumed.open()
    assert int(resumed.state.step) == 2
    resumed.train_block(STEPS - 2)
    assert resumed.model.get_weights()[0].tobytes() == whole.model.get_weights()[0].tobytes()
    shown = replay_step(whole, 2)
    assert (
        shown.differing == [] and shown.indices["weight"].tolist() == examples()["weight"][BATCH : 2 * BATCH].tolist()
    )

"""tests/benchmarks/workloads: what peers of tf_keras train is what the framework trains."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import framework
from framework import config, optim, paths, precision
from framework.experiment import load
from tests.benchmarks.turns import ROOT
from tests.benchmarks.workloads import arrays, models

PARAMETERS = {
    "mlp": 784 * 128 + 128 + 128 * 10 + 10,
    "cnn": 269_722,
    "two_tower": (6_041 + 3_953) * 64,
    # Tables; 2 + 4 attentions, 4 networks, 4 + 6 + 2 norms; the logits.
    "transformer": 2 * 4000 * 128 + 6 * 4 * (128 * 128 + 128) + 4 * (2 * 128 * 512 + 640) + 12 * 256 + 129 * 4000,
}


def example(workload):
    return {name: tf.constant(array[:2]) for name, array in arrays.arrays(workload).items()}


@pytest.mark.parametrize("workload", PARAMETERS)
def test_the_experiment_trains_the_model_of_the_peers(workload):
    """Same variables in the same order, so same outputs from the same weights."""
    loaded = load.load(f"tests/benchmarks/workloads/{workload}.py")
    cfg = config.finalize(loaded.get_config())
    ours, plain = loaded.functions["make_model"](cfg), models.make(workload, keras.layers.Dropout)
    assert sum(v.shape.num_elements() for v in paths.trainable(ours).values()) == PARAMETERS[workload]
    plain.set_weights(ours.get_weights())
    batch = example(workload)
    left, right = (model(models.inputs(workload, batch)) for model in (ours, plain))
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)
    weight = tf.ones([2])
    terms, _ = loaded.functions["make_loss"](cfg)(ours, {**batch, "weight": weight}, False)
    ((total, count),) = terms.values()
    assert float(count) == (64 if workload == "transformer" else 2)
    assert float(total / count) == pytest.approx(float(models.loss(workload, right, batch)), rel=1e-5)


@pytest.mark.parametrize("workload", ["cnn", "transformer"])
def test_logits_of_half_precision_are_full(workload):
    with precision.scope("bfloat16"):
        model = models.make(workload, keras.layers.Dropout)
        assert model(models.inputs(workload, example(workload))).dtype == tf.float32
    assert {layer.compute_dtype for layer in model.layers} >= {"bfloat16"}


def test_the_plain_transformer_drops_where_the_framework_does():
    rates = []

    def dropout(rate):
        rates.append(rate)
        return keras.layers.Dropout(rate)

    models.transformer(dropout)
    # Two embeddings; probabilities and outputs of 6 attentions; outputs of 4 networks.
    assert rates == [0.1] * (2 + 2 * 6 + 4)


@pytest.mark.parametrize("workload", PARAMETERS)
def test_the_optimizer_of_the_peers_is_that_of_the_experiment(workload):
    cfg = config.finalize(load.load(f"tests/benchmarks/workloads/{workload}.py").get_config())
    ours, theirs = optim.make_optimizer(cfg, 1.0).get_config(), models.make_optimizer(workload).get_config()
    assert theirs.pop("learning_rate") == pytest.approx(cfg.schedule.learning_rate)
    assert ours == {**theirs, "learning_rate": 1.0, "is_legacy_optimizer": False}
    assert (cfg.schedule.name, cfg.data.shuffle, cfg.data.batch_size) == ("constant", True, arrays.BATCH[workload])


@pytest.fixture
def peer(monkeypatch):
    """Imports a script of a peer, which imports those beside it."""
    monkeypatch.syspath_prepend(str(Path(models.__file__).parents[1] / "peers"))
    return importlib.import_module


def test_the_bare_loop_sees_each_example_once_an_epoch(peer):
    blocks = peer("bare").indices(examples=10, batch=4, block=3)
    seen = np.concatenate([next(blocks).ravel() for _ in range(5)])  # [60]
    assert next(blocks).shape == (3, 4)
    epochs = seen.reshape(6, 10)
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_pipeline_gathers_whole_batches_of_a_permutation(peer, monkeypatch):
    made_up = {"image": np.arange(10, dtype=np.float32), "label": np.arange(10, dtype=np.int32)}
    monkeypatch.setattr(arrays, "arrays", lambda workload: made_up)
    monkeypatch.setattr(arrays, "BATCH", {"mlp": 4})
    batches = list(peer("pipeline").batches("mlp").take(6).as_numpy_iterator())
    assert all(np.array_equal(batch["image"], batch["label"]) for batch in batches)
    epochs = np.concatenate([batch["label"] for batch in batches]).reshape(3, 8)  # 2 of 10 do not fill a batch
    assert [len(set(epoch)) for epoch in epochs] == [8, 8, 8]
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("how", ["graph", "auto"])
def test_a_run_that_pauses_is_the_run_that_does_not(tmp_path, peer, how):
    """Turns of any length are made exactly, with the same numbers logged at the same steps."""
    ours = peer("ours")
    settings = {"train.compile": how, "log.every": "5 steps", "train.duration": "40 steps"}
    framework.train(framework.build("tests/tiny.py", settings, tmp_path / "plain"))

    run = framework.build("tests/tiny.py", settings, tmp_path / "paused")
    gate = ours.Gate(lambda gate: framework.train(run))
    ours.pause(run, gate)
    for count, step in ((2, 2), (1, 3), (21, 24), (15, 39)):
        gate.steps(count)
        assert int(run.state.step) == step
        assert gate.left == 0
    with pytest.raises(RuntimeError, match="the loop ended"):
        gate.steps(1)

    def rows(name):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if "second" not in key and key != "time"} for line in lines]

    assert rows("paused") == rows("plain") and len(rows("plain")) >= 8


def test_ours_is_past_its_first_epoch_when_it_is_ready():
    """An epoch has 468.75 steps; the loss of the next one tells."""
    script = str(ROOT / "tests/benchmarks/peers/ours.py")
    options = ["--workload=mlp", "--option=settings:train.compile=graph"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, script, *options], input="run 1\n", stdout=subprocess.PIPE, text=True, env=environment
    )
    ready, turn = map(json.loads, run.stdout.splitlines())
    assert ready["variant"] == "graph"
    assert turn["loss"] < 0.01  # 2.1 after three steps

"""Results of metrics: by what names they are logged, which are refused, and what evaluations and runs do with them."""

import json

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, metrics
from framework.errors import UserError
from framework.metrics import results
from framework.run import loop
from framework.run.replay import replay_step
from framework.writers.base import MultiWriter
from tests import small


class Own(metrics.Sums):
    """A metric of one sum with any result."""

    def __init__(self, result, mode="max", logged="interval"):
        self.result, self.mode, self.logged = result, mode, logged

    def empty(self):
        return np.zeros(1)

    def update(self, outputs, batch):
        return tf.reduce_sum(batch["weight"])[tf.newaxis]


def test_keys_of_a_dict_stand_behind_the_name():
    metric = Own(lambda state: {"low": state[0], "high": np.float32(2)}, mode={"low": "min", "high": "max"})
    assert results.of(metric, "own", np.array([0.5])) == {"own/low": 0.5, "own/high": 2.0}
    assert results.modes({"own": metric, "a": metrics.Accuracy()}) == {"own/low": "min", "own/high": "max", "a": "max"}
    results.check({"own": metric, "a": metrics.Accuracy()})


def test_names_are_known_of_a_metric_that_cannot_take_made_up_states():
    assert results.modes({"own": Own(lambda state: 1 / 0, "min")}) == {"own": "min"}


GREY = np.zeros([2, 2, 1])


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        (
            Own(lambda s: 1.0, logged="epoch"),
            "metric 'own': logged='epoch' is none of 'step', 'interval', 'evaluation'.",
        ),
        (
            Own(lambda s: {"a": 1.0}, mode={"b": "max"}),
            "metric 'own': mode={'b': 'max'} gives None for 'own/a'. It must be 'max' or 'min', or a dict that has one"
            " of them for each key of the result.",
        ),
        (Own(lambda s: {}), "metric 'own': result returned a dict with the keys []. Keys are names, such as 'macro'."),
        (
            Own(lambda s: {"a": s}),
            "metric 'own/a': result returned a value of shape (1,). It must return a float, e.g. float(state[0] /"
            " state[1]), a dict of floats or a metrics.Picture.",
        ),
        (
            Own(lambda s: {f"k{s[0]:.0f}": 1.0}),
            "metric 'own': result returned the keys ['own/k1'] of one state and ['own/k0'] of another.",
        ),
        (
            Own(lambda s: metrics.Picture(GREY)),
            "metric 'own': result returned a picture, which only evaluations show. Set logged = 'evaluation' in its"
            " class.",
        ),
    ],
)
def test_a_metric_that_breaks_the_contract_is_refused(metric, problem):
    with pytest.raises(UserError) as error:
        results.check({"own": metric})
    assert str(error.value) == problem


def test_a_merge_that_does_not_add_is_refused_where_the_device_adds():
    class Peak(Own):
        def merge(self, total, state):
            return np.maximum(total, state)

    results.check({"own": Peak(lambda s: 1.0, logged="step")})
    with pytest.raises(UserError) as error:
        results.check({"own": Peak(lambda s: 1.0)})
    assert str(error.value) == (
        "metric 'own' has logged='interval', so the step adds its states on the device, but its empty() is not all 0 or"
        " its merge is no addition. Inherit metrics.Sums, or set logged = 'step'."
    )


def test_two_metrics_must_not_report_the_same_name():
    with pytest.raises(UserError) as error:
        results.check({"a": Own(lambda s: {"b": 1.0}), "a/b": metrics.Accuracy()})
    assert str(error.value) == "the metrics 'a' and 'a/b' both report 'a/b'. Rename one of them."


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (np.zeros([4, 4]), "metrics.Picture has shape (4, 4). It must be [height, width, 1 or 3]."),
        (np.zeros([4, 4, 4]), "metrics.Picture has shape (4, 4, 4). It must be [height, width, 1 or 3]."),
        (np.zeros([4, 4, 3], int), "metrics.Picture is int64. It must be uint8, or floating from 0 to 1."),
        (
            np.full([4, 4, 3], 255.0),
            "metrics.Picture has pixels from 255.0 to 255.0. Floating pixels are from 0 to 1.",
        ),
    ],
)
def test_pixels_that_are_no_picture_are_refused(pixels, problem):
    with pytest.raises(UserError) as error:
        metrics.Picture(pixels)
    assert str(error.value) == problem


# In runs: a dict of small states, a sum on the device, and a picture.


class Counts(metrics.Sums):
    """How many examples of each label there are, and of each prediction."""

    mode = "max"

    def __init__(self, logged):
        self.logged = logged

    def empty(self):
        return np.zeros(6)

    def update(self, outputs, batch):
        guess, label = tf.argmax(outputs["logits"], -1), batch["label"]
        rows = tf.concat([tf.one_hot(label, 3), tf.one_hot(guess, 3)], axis=1)
        return tf.linalg.matvec(rows, tf.cast(batch["weight"], tf.float32), transpose_a=True)

    def result(self, state):
        if self.logged == "evaluation":
            return metrics.Picture(np.tile(state / max(1.0, state.sum()), (8, 1))[..., np.newaxis])
        return {"label": float(state[1]), "guess": float(state[4])}


def logits_loss(cfg):
    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        return {"ce": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {"logits": logits}

    return loss


def functions():
    made = {"own": Counts("step"), "sum": Counts("interval"), "drawn": Counts("evaluation")}
    return {"make_loss": logits_loss, "make_metrics": lambda cfg: {"accuracy": metrics.Accuracy(), **made}}


SETTINGS = {
    "train.duration": "6 steps",
    "log.every": "3 steps",
    "eval.every": "3 steps",
    "data.batch_size": 32,  # the evaluation of 160 examples has no rest; training wraps
    "checkpoint.best_metric": "test/sum/guess",
}


@pytest.mark.parametrize(
    ("mode", "replicas"),
    [("graph", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("xla", 1), ("graph", 2), ("xla", 2)))],
)
def test_rows_evaluations_and_pictures_of_a_run(tmp_path, monkeypatch, mode, replicas):
    drawn = {}
    monkeypatch.setattr(
        MultiWriter,
        "images",
        lambda self, step, images: [drawn.setdefault(n, []).append((step, x)) for n, x in images.items()],
    )
    settings = {**SETTINGS, "train.compile": mode}
    if replicas > 1:
        settings |= {"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas}
    run = small.build(tmp_path / "run", functions=functions(), **settings)
    result = loop.train(run)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps, evaluations = [r for r in rows if "loss" in r], [r for r in rows if "eval/test/loss" in r]
    for row in steps:
        assert {name.split("/")[0] for name in row} & {"sum", "drawn"} == set()
        assert row["mean/own/label"] == row["mean/sum/label"] >= row["own/label"] > 0
        assert row["mean/own/guess"] == row["mean/sum/guess"]
        assert not any("drawn" in name for name in row)
    labels = small.examples({}).arrays["label"]
    inputs = small.examples({}).arrays["x"]
    guesses = run.model(inputs, training=False).numpy().argmax(-1)
    last = evaluations[-1]
    assert last["eval/test/own/label"] == last["eval/test/sum/label"] == (labels == 1).sum()
    assert last["eval/test/own/guess"] == last["eval/test/sum/guess"] == (guesses == 1).sum()
    (_, first), (step, picture) = drawn["eval/test/drawn"]
    assert step == 6 and picture.shape == (1, 8, 6, 1) and not np.array_equal(first, picture)
    counts = np.concatenate([np.bincount(labels, minlength=3), np.bincount(guesses, minlength=3)])
    np.testing.assert_allclose(picture[0, 0, :, 0], counts / counts.sum())
    # What reads the numbers by name.
    assert result["final"]["test/sum/guess"] == (guesses == 1).sum()
    assert result["best"]["test/sum/guess"] == max(row["eval/test/sum/guess"] for row in evaluations)
    assert int(run.state.best.step) == result["best_steps"]["test/sum/guess"]
    assert "test/drawn" not in result["final"]
    shown = replay_step(run, 6)
    assert shown.differing == [] and shown.logged["own/label"] == steps[-1]["own/label"]


def test_what_config_keys_name_is_a_key_of_the_result(tmp_path):
    settings = {**SETTINGS, "checkpoint.best_metric": "test/sum/lable"}
    with pytest.raises(UserError, match=r"there is no metric 'sum/lable'. Did you mean 'sum/label'\?"):
        small.build(tmp_path / "run", functions=functions(), **settings)

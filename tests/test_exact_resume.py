"""A run that is stopped and that dies, again and again, at any point, leaves what one leaves that was left alone.

Compared are all bits of the state, every row and event, and what result.json says; times alone may differ.
"""

import json
import os
import random
import signal

import pytest
import tensorflow as tf

from framework import paths
from framework.checkpoint.checkpoints import Checkpoints
from framework.run import build as run
from framework.run import evaluation, loop
from framework.step.block import TrainBlock

SETTINGS = {
    "train.compile": "graph",
    "train.micro_batches": 2,
    "data.batch_size": 64,
    "ema.decay": 0.9,
    "eval.splits": "('test','test@ema')",
    "eval.every": "7 steps",
    "log.every": "5 steps",
    "log.histograms_every": "10 steps",
    "checkpoint.every": "9 steps",
    "checkpoint.keep": 2,
    "early_stopping.metric": "test/loss",
    "early_stopping.min_delta": 0.3,
    "early_stopping.patience": 2,
}
TIMES = {"examples_per_second", "data_wait"}


class Crash(BaseException):
    """The process ends here."""


def build(workdir, **overrides):
    return run.build("tests/tiny.py", {**SETTINGS, **overrides}, workdir)


def observed(built, result):
    """All that a run leaves, without times."""
    rows = [json.loads(line) for line in (built.workdir / "metrics.jsonl").read_text().splitlines()]
    kept = ("status", "step", "updates", "skipped", "empty_terms", "epochs", "final", "final_step", "best", "data")
    kept += ("train", "train_step", "best_steps", "seed", "hyperparameters", "overridden")
    return {
        "state": {path: variable.numpy().tobytes() for path, variable in paths.variables(built.state).items()},
        "rows": [{key: value for key, value in row.items() if key not in TIMES} for row in rows],
        "events": events(built.workdir / "tensorboard"),
        "result": {key: result[key] for key in kept},
        "stored": {key: json.loads((built.workdir / "result.json").read_text())[key] for key in kept},
        "best": built.checkpoints.pointed("best"),
        "newest": built.checkpoints.steps()[-1],
    }


def events(folder):
    """(run, step, tag, value) of every event, in order of step and tag."""
    found = []
    for path in folder.rglob("*.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag not in TIMES:
                    found.append(
                        (str(path.parent.relative_to(folder)), event.step, value.tag, value.SerializeToString())
                    )
    return sorted(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    built = build(tmp_path_factory.mktemp("exact") / "whole")
    return observed(built, loop.train(built))


def happen(patch, event, what):
    """Calls `what` at the `event`-th entry into or return from anything that a run does."""
    count = 0

    def point():
        nonlocal count
        count += 1
        if count == event:
            what()

    def around(function):
        def call(*args, **kwargs):
            point()
            returned = function(*args, **kwargs)
            point()
            return returned

        return call

    for place, name in (
        (TrainBlock, "__call__"),
        (loop.MultiWriter, "scalars"),
        (loop.MultiWriter, "histograms"),
        (evaluation, "report"),
        (Checkpoints, "save"),
    ):
        patch.setattr(place, name, around(getattr(place, name)))


def die():
    raise Crash


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_whole_run_has_all_of_it(whole):
    assert whole["result"]["status"] == "stopped early"
    tags = {(folder, tag.split("/")[0]) for folder, _, tag, _ in whole["events"]}
    assert {("train", "loss"), ("train", "weights"), ("train", "gradients"), ("eval/test@ema", "accuracy")} <= tags
    assert whole["result"] == whole["stored"]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_and_dead_at_random_points(tmp_path, monkeypatch, whole, seed):
    draw = random.Random(seed)
    ends = []
    for what in (stop, die, die):
        built = build(tmp_path / "run")
        with monkeypatch.context() as patch:
            happen(patch, draw.randrange(1, 16), what)
            try:
                ends.append(loop.train(built)["status"])
            except Crash:
                ends.append("dead")
    assert {"dead", "interrupted"} <= set(ends)
    built = build(tmp_path / "run")
    found = observed(built, loop.train(built))
    for part, wanted in whole.items():
        assert found[part] == wanted, part

"""Runs of a small net that set out from another run, for tests of what a run starts from."""

import logging

import pytest
import tf_keras as keras

from framework.config import UserError
from tests import small
from tests.small import snapshot

SETTINGS = {
    "checkpoint.every": "4 steps",
    "eval.every": "3 steps",
    "checkpoint.best_metric": "test/loss",
    "checkpoint.keep": 10,
    "schedule.learning_rate": 2.0,  # after the warm-up it gets worse: the best is not the newest
    "ema.decay": 0.9,
}
VARIABLES = 8  # two kernels, two biases, four of BatchNorm
LAST = {"last/kernel", "last/bias"}


def build(workdir, **overrides):
    return small.build(workdir, **{**SETTINGS, **overrides})


def with_head(units=3, name="last"):
    """make_model of another head: same body."""

    def make_model(cfg):
        body = small.make_model(cfg).layers[:-1]
        return keras.Sequential([*body, keras.layers.Dense(units, name=name)])

    return {"make_model": make_model}


def weights(built):
    return {path.removeprefix("model/"): v for path, v in snapshot(built).items() if path.startswith("model/")}


def averages(built):
    return {
        path.removeprefix("ema/averages/"): v for path, v in snapshot(built).items() if path.startswith("ema/averages/")
    }


def opened(built, caplog):
    """What `open` said."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="absl"):
        built.open()
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(f"{built.workdir}:")]


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)

"""Muon, groups with rules of their own and Lookahead in whole runs: skips, micro-batches, replicas, resume, the end."""

import math

import numpy as np
import pytest
import tf_keras as keras

from framework import optim, paths, testing
from framework.optim.adam import Adam
from tests.interrupted import interrupted
from tests.small import HOT, build, differing, snapshot
from tests.test_equivalence import assert_copies_agree, distance

SETTINGS = {
    "optimizer.name": "muon",
    "optimizer.momentum": 0.6,
    "optimizer.nesterov": True,
    "optimizer.rescale_weights": True,
    "optimizer.groups": ("last/kernel: name=sgd momentum=0.85 lr=0.5", "norm/.*: name=adamw until=50%"),
    "lookahead.every": 5,
    "lookahead.alpha": 1 - 0.95**5,
    "lookahead.power": 3.0,
    "ema.decay": 0.9,
    "train.on_nonfinite": "skip",
    "train.nonfinite_limit": 3,
}
TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
PLAIN = {**SETTINGS, "optimizer.groups": ("last/kernel: name=sgd momentum=0.85 lr=0.5",)}


def without_norm(cfg):
    """Returns a model in which no statistics depend on how a batch is cut."""
    return keras.Sequential([keras.layers.Dense(8, "tanh", name="first"), keras.layers.Dense(3, name="last")])


def weights(built):
    return {path: variable.numpy().astype(np.float64) for path, variable in paths.trainable(built.model).items()}


@pytest.mark.parametrize(
    "more",
    [
        {},
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in (TWO, {"train.compile": "xla"}, {"train.compile": "xla_update"})
        ),
    ],
)
def test_a_skipped_step_changes_counters_alone_and_a_run_ends_on_its_slow_weights(more):
    built = build(heat={(4, 3): HOT}, **SETTINGS, **more)
    assert [type(group) for group in built.state.optimizer.groups] == [optim.Sgd, Adam, optim.Muon]
    first = model_bits(built)
    assert slow_bits(built) == first
    built.train_block(4)
    before = snapshot(built)
    assert not math.isfinite(built.train_block(1).row(0)["loss"])
    assert differing(before, snapshot(built)) == {"step", "skipped", "skipped_in_row"}
    built.train_block(1)
    assert int(built.state.updates) == 5
    assert slow_bits(built) == model_bits(built) and len(differing(first, model_bits(built))) == len(first)
    built.train_block(3)
    assert slow_bits(built) != model_bits(built)
    built.train_block(1)  # the tenth step, after nine updates
    assert slow_bits(built) == model_bits(built)
    assert_copies_agree(built)


def slow_bits(built):
    return {path.removeprefix("slow/"): value for path, value in testing.bits(built.state.lookahead).items()}


def model_bits(built):
    return testing.bits(built.model)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_in_the_same_bits(mode, tmp_path):
    whole, resumed = interrupted(lambda: build(**SETTINGS, **{"train.compile": mode}), tmp_path, 4, 6)
    resumed.train_block(6)
    assert {"lookahead/slow/norm/moving_mean", "model/first/kernel"} <= snapshot(whole).keys()
    assert differing(snapshot(whole), snapshot(resumed)) == set()


def one_batch(**more):
    double = {"train.precision": "float64", "train.duration": "12 steps", "train.block_steps": 12}
    built = build(functions={"make_model": without_norm}, **PLAIN, **double, **more)
    built.train_block(12)
    return built


@pytest.fixture(scope="module")
def whole_batches():
    return one_batch()


@pytest.mark.parametrize(
    "more",
    [
        {**TWO, "train.micro_batches": 2},
        pytest.param({"train.micro_batches": 4, "train.compile": "xla"}, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_and_replicas_train_what_one_batch_trains(whole_batches, more):
    built = one_batch(**more)
    assert_copies_agree(built)
    assert distance(weights(built), weights(whole_batches)) <= 1e-12
    for name in ("lookahead", "ema"):
        for path, variable in paths.variables(getattr(whole_batches.state, name)).items():
            value = paths.variables(getattr(built.state, name))[path].numpy()
            np.testing.assert_allclose(value, variable.numpy(), rtol=1e-11, atol=1e-12, err_msg=path)

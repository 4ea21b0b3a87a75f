"""Schedules with a state: against tf_keras' callback and the logged evaluations, and that the state follows the run."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import Hook, optim, paths
from framework.errors import UserError
from framework.run import loop
from framework.run.replay import replay_step
from tests import small

TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
SETTINGS = {
    "train.duration": "10 steps",
    "eval.every": "2 steps",
    "train.block_steps": 4,
    "schedule.warmup": "",
    "schedule.name": "constant",
}
SETTINGS |= {"checkpoint.every": "1 step", "checkpoint.keep": 20, "schedule.learning_rate": 0.08}


def plateau(**settings):
    """make_schedule whose rate falls at most evaluations: little is better by a tenth."""
    settings = {"metric": "test/loss", "factor": 0.5, "patience": 1, "min_delta": 0.1, "min_rate": 0.004, **settings}
    return lambda cfg, total: optim.ReduceOnPlateau(optim.make_schedule(cfg, total), **settings)


def build(workdir, hook=None, make=None, heat=None, **overrides):
    functions = {"make_schedule": make or plateau()}
    if hook is not None:
        functions["make_hooks"] = lambda cfg, run: [Hook(1, hook, "dies")]
    return small.build(workdir, heat, functions, **{**SETTINGS, **overrides})


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def schedule_of(state):
    return {path: value for path, value in paths.variables(state).items() if path.startswith("schedule/")}


# ReduceOnPlateau against the callback of tf_keras

VALUES = {
    "falls": [5, 4, 3, 2, 1, 0.5, 0.2],
    "rises": [1, 2, 3, 4, 5, 6, 7, 8],
    "flat": [1.0] * 12,
    "small gains": [1, 0.95, 0.9, 0.85, 0.8, 0.7, 0.65, 0.6],
    "not finite": [3, math.nan, 2, math.nan, math.nan, math.inf, 2.5, 1, math.nan],
    "drawn": list(np.random.default_rng(5).normal(size=40)),
}


def of_keras(values, mode, factor, patience, min_delta, min_rate):
    """The rate after each value, by keras.callbacks.ReduceLROnPlateau."""
    optimizer = tf.Module()
    optimizer.lr = tf.Variable(0.8, dtype=tf.float64)
    callback = keras.callbacks.ReduceLROnPlateau("x", factor, patience, 0, mode, min_delta, 0, min_rate)
    callback.model = tf.Module()
    callback.model.optimizer = optimizer
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"x": value if math.isfinite(value) else math.nan})
        rates.append(float(optimizer.lr))
    return rates


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("patience", "min_delta", "min_rate"), [(1, 0.0, 0.0), (2, 0.1, 0.0), (3, 0.0, 0.15)])
def test_rates_are_those_of_the_callback_of_keras(values, mode, patience, min_delta, min_rate):
    schedule = optim.ReduceOnPlateau(lambda update: 0.8, "test/x", 0.5, patience, min_rate, min_delta)
    schedule.prepare({"test/x": mode})
    rates = []
    for value in values:
        schedule.observe({"test/x": value, "test/y": 0.0})
        rates.append(float(schedule(7)))
    np.testing.assert_allclose(rates, of_keras(values, mode, 0.5, patience, min_delta, min_rate), rtol=1e-14)


def test_reductions_end_at_the_least_rate_but_never_raise_one():
    def base(update):
        return tf.where(update < 3, tf.constant(0.01, tf.float64), tf.constant(1.0, tf.float64))

    schedule = optim.ReduceOnPlateau(base, "x", 0.1, 1, min_rate=0.05)
    schedule.prepare({"x": "max"})
    for scale in (1.0, 0.1, 0.01):
        rates = [float(schedule(tf.constant(update, tf.int64))) for update in (0, 3)]
        np.testing.assert_allclose(rates, [0.01, max(0.05, scale)], rtol=1e-14)
        schedule.observe({"x": 0.0})
        if scale == 1.0:
            schedule.observe({"x": 0.0})


# In a run


def expected_rates(workdir, factor=0.5, min_delta=0.1, min_rate=0.004, peak=0.08):
    """{step: rate} by the evaluations in metrics.jsonl, for patience 1."""
    evaluated = {row["step"]: row["eval/test/loss"] for row in rows(workdir) if "eval/test/loss" in row}
    best, scale, rates = math.inf, 1.0, {}
    for step in range(1, 11):
        rates[step] = max(scale * peak, min_rate)
        if step in evaluated:
            if evaluated[step] < best - min_delta:
                best = evaluated[step]
            else:
                scale *= factor
    return rates


@pytest.mark.parametrize(
    ("mode", "replicas"),
    [
        pytest.param("eager", {}, id="eager", marks=pytest.mark.slow),
        pytest.param("graph", {}, id="graph", marks=pytest.mark.slow),
        pytest.param("xla", {}, id="xla", marks=pytest.mark.slow),
        pytest.param("graph", TWO, id="graph on two"),
        pytest.param("xla", TWO, id="xla on two", marks=pytest.mark.slow),
    ],
)
def test_a_run_follows_its_evaluations(tmp_path, mode, replicas):
    run = build(tmp_path, **{"train.compile": mode, **replicas})
    loop.train(run)
    rates = {row["step"]: row["learning_rate"] for row in rows(tmp_path) if "loss" in row}
    wanted = expected_rates(tmp_path)
    assert len(set(wanted.values())) >= 3 and list(rates) == list(wanted)
    np.testing.assert_allclose(list(rates.values()), list(wanted.values()), rtol=1e-6)
    assert list(schedule_of(run.state)) == ["schedule/scale", "schedule/best", "schedule/waited"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = build(tmp_path_factory.mktemp("whole"))
    loop.train(run)
    return run


@pytest.mark.slow
def test_a_run_that_is_killed_at_each_step_has_the_same_bits(tmp_path, whole):
    died = []

    def die(context):
        if context.step not in died:
            died.append(context.step)
            raise MemoryError("killed")

    settings = {"checkpoint.every": "3 steps", "eval.every": "2 steps"}
    other = build(tmp_path / "whole", **settings)
    loop.train(other)
    assert small.snapshot(other) == small.snapshot(whole)
    for step in range(1, 11):
        with pytest.raises(UserError, match="killed"):
            loop.train(build(tmp_path / "run", die, **settings))
        assert died == list(range(1, step + 1))
    run = build(tmp_path / "run", die, **settings)
    loop.train(run)
    assert small.snapshot(run) == small.snapshot(whole)


@pytest.mark.slow
def test_going_back_takes_the_schedule_back(tmp_path):
    settings = {"train.on_nonfinite": "rewind", "checkpoint.every": "5 steps"}
    run = build(tmp_path / "run", heat={(7, 3): small.HOT}, **settings)
    loop.train(run)
    other = build(tmp_path / "whole", heat={(7, 3): small.HOT}, **settings)
    other.state.skip_list.assign([7, *[-1] * (other.state.skip_list.shape[0] - 1)])
    loop.train(other)
    assert small.snapshot(run) == small.snapshot(other)
    assert len({row["learning_rate"] for row in rows(tmp_path / "run") if "loss" in row}) >= 3


@pytest.mark.parametrize("step", [*(pytest.param(s, marks=pytest.mark.slow) for s in (3, 10)), 8])
def test_a_replayed_step_has_seen_the_evaluations_before_it(tmp_path, step):
    run = build(tmp_path, **{"checkpoint.every": ""})
    loop.train(run)
    replayed = replay_step(run, step)
    assert replayed.start == 0 and replayed.logged and replayed.differing == []


def test_a_schedule_without_variables_adds_nothing_to_a_checkpoint():
    plain, stateful = (set(paths.variables(run.state)) for run in (small.build(**SETTINGS), build(None)))
    assert stateful - plain == {"schedule/scale", "schedule/best", "schedule/waited"}
    assert plain < stateful


class Own(tf.Module):
    """Doubles the rate when told; what a user writes, with a plain `assign`."""

    def __init__(self):
        super().__init__()
        self.rate = tf.Variable(0.01, dtype=tf.float64)

    def __call__(self, update):
        return self.rate.read_value()

    def observe(self, results):
        assert set(results) == {"test/loss"}
        self.rate.assign(2 * self.rate)


@pytest.mark.parametrize(
    "replicas", [pytest.param({}, id="one device"), pytest.param(TWO, id="two", marks=pytest.mark.slow)]
)
def test_a_schedule_of_ones_own_is_read_in_the_step(tmp_path, replicas):
    run = build(tmp_path, make=lambda cfg, total: Own(), **{**replicas, "train.duration": "6 steps"})
    loop.train(run)
    rates = [row["learning_rate"] for row in rows(tmp_path) if "loss" in row]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.02, 0.02, 0.04, 0.04], rtol=1e-7)
    assert float(paths.copies(run.state.schedule.rate)[0]) == 0.08


# What is refused


class Forgets(Own):
    observe = None


class Counts:
    """No tf.Module: what it counts would be lost."""

    def __init__(self):
        self.count = 0

    def __call__(self, update):
        return 0.1

    def observe(self, results):
        self.count += 1


class Assigns(Own):
    def __call__(self, update):
        self.rate.assign_add(0.0)
        return self.rate.read_value()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            Forgets,
            "schedule Forgets of make_schedule has the variable 'rate' and no observe(results), which alone may assign"
            " it. Write one, or compute the rate from the update.",
        ),
        (
            Counts,
            "schedule Counts of make_schedule has observe(results) and no variable, so a resumed run would not know"
            " what it has seen. Write a tf.Module that keeps it in tf.Variable(…).",
        ),
        (
            Assigns,
            "the schedule assigns its variable 'Variable:0' as it is called. A step reads the variables of a schedule;"
            " assign them in observe(results), which is called after each evaluation.",
        ),
    ],
)
def test_a_schedule_whose_state_would_be_lost_is_refused(make, message):
    with pytest.raises(UserError) as error:
        build(None, make=lambda cfg, total: make())
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 1.5}, "ReduceOnPlateau(factor=1.5): factor must be above 0 and below 1."),
        ({"patience": 0}, "ReduceOnPlateau(patience=0): patience must be at least 1."),
        ({"min_rate": -1.0}, "ReduceOnPlateau(min_rate=-1.0): min_rate must be at least 0."),
        ({"min_delta": -0.1}, "ReduceOnPlateau(min_delta=-0.1): min_delta must be at least 0."),
    ],
)
def test_what_no_plateau_is_is_refused(settings, message):
    with pytest.raises(UserError) as error:
        plateau(**settings)(*_config())
    assert str(error.value) == message


def _config():
    from framework.config import base_config, finalize, resolve

    return resolve(finalize(base_config()), 10), 100


def test_a_plateau_within_a_plateau_is_refused():
    inner = optim.ReduceOnPlateau(lambda update: 0.1, "test/loss")
    with pytest.raises(UserError, match=r"^ReduceOnPlateau\(ReduceOnPlateau\): the schedule in it would"):
        optim.ReduceOnPlateau(inner, "test/loss")


def test_a_metric_that_nothing_evaluates_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UserError) as error:
        loop.train(build(tmp_path, make=plateau(metric="test/lost")))
    assert str(error.value) == (
        "ReduceOnPlateau(metric='test/lost'): no evaluation reports it. Did you mean 'test/loss'? Evaluated: test/loss,"
        " test/loss/cross_entropy."
    )
    assert not (tmp_path / "checkpoints").exists()

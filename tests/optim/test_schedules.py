"""Schedules against formulas in float64 and against tf_keras' own."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import optim, paths
from framework.config import UserError, base_config, resolve
from tests.compile_modes import MODES

STEPS = 200


def make_config(**values):
    config = base_config()
    config.train.duration = f"{STEPS} steps"
    for key, value in values.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return resolve(config, steps_per_epoch=50)


def cosine(update, peak=0.3, warmup=0, final=0.1):
    if update < warmup:
        return peak * update / warmup
    done = min(update - warmup, STEPS - warmup) / (STEPS - warmup)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)


def piecewise(update, warmup=0):
    if update < warmup:
        return 0.3 * update / warmup
    return 0.3 if update <= 50 else 0.03 if update <= 120 else 0.015


def polynomial(update, warmup=0):
    if update < warmup:
        return 0.3 * (0.2 + 0.8 * update / warmup)
    done = min(update - warmup, STEPS - warmup) / (STEPS - warmup)
    return 0.3 * (0.1 + 0.9 * (1 - done) ** 2.5)


def restarts(update, lengths, peak_factor, final):
    """The cycle is found by counting."""
    index = 0
    while update >= lengths[index]:
        update -= lengths[index]
        index += 1
    share = (1 + math.cos(math.pi * update / lengths[index])) / 2
    return 0.3 * ((1 - final) * peak_factor**index * share + final)


def inverse_sqrt(update, warmup, timescale):
    if update < warmup:
        return 0.3 * update / warmup
    return 0.3 * math.sqrt(timescale / (timescale + update - warmup))


def one_cycle(update, warmup=60, start=0.04, final=0.001):
    if update < warmup:
        return 0.3 * (start + (1 - start) * (1 - math.cos(math.pi * update / warmup)) / 2)
    done = min(update - warmup, STEPS - warmup) / (STEPS - warmup)
    return 0.3 * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)


EQUAL = {"schedule__name": "restarts", "schedule__period": "30 steps"}
# 210 = 100 + 110 is the start of a cycle, which floating point puts just after it.
GROWING = {"schedule__name": "restarts", "schedule__period": "100 steps", "schedule__period_factor": 1.1}
DOUBLING = {"schedule__name": "restarts", "schedule__period": "10 steps", "schedule__period_factor": 2.0}
INVERSE = {"schedule__name": "inverse_sqrt"}
CYCLE = {
    "schedule__name": "one_cycle",
    "schedule__start_fraction": 0.04,
    "schedule__final_fraction": 0.001,
}
POLYNOMIAL = {"schedule__name": "polynomial", "schedule__power": 2.5, "schedule__final_fraction": 0.1}
PIECES = {"schedule__boundaries": ("1 epoch", "60%"), "schedule__factors": (0.1, 0.05)}
SCHEDULES = {
    "constant": ({}, lambda u: 0.3),
    "constant, warm-up": ({"schedule__warmup": "20 steps"}, lambda u: 0.3 * min(u / 20, 1)),
    "cosine": ({"schedule__name": "cosine", "schedule__final_fraction": 0.1}, cosine),
    "cosine to zero": ({"schedule__name": "cosine"}, lambda u: cosine(u, final=0.0)),
    "cosine, warm-up": (
        {"schedule__name": "cosine", "schedule__final_fraction": 0.1, "schedule__warmup": "10%"},
        lambda u: cosine(u, warmup=20),
    ),
    "piecewise": ({"schedule__name": "piecewise", **PIECES}, piecewise),
    "piecewise, warm-up": (
        {"schedule__name": "piecewise", "schedule__warmup": "20 steps", **PIECES},
        lambda u: piecewise(u, 20),
    ),
    "constant, warm-up from a fifth": (
        {"schedule__warmup": "20 steps", "schedule__start_fraction": 0.2},
        lambda u: 0.3 * min(0.2 + 0.8 * u / 20, 1),
    ),
    "polynomial": (POLYNOMIAL, polynomial),
    "polynomial to zero": ({"schedule__name": "polynomial"}, lambda u: 0.3 * max(1 - u / STEPS, 0)),
    "polynomial, warm-up": (
        {**POLYNOMIAL, "schedule__warmup": "20 steps", "schedule__start_fraction": 0.2},
        lambda u: polynomial(u, 20),
    ),
    "a line up from a fifth and a line down": (
        {
            **{"schedule__name": "polynomial", "schedule__final_fraction": 0.07},
            **{"schedule__warmup": "23%", "schedule__start_fraction": 0.2},
        },
        lambda u: 0.3 * float(np.interp(u, [0, 46, STEPS], [0.2, 1, 0.07])),
    ),
    "restarts": (EQUAL, lambda u: restarts(u, [30] * 99, 1, 0)),
    "restarts, growing": (GROWING, lambda u: restarts(u, [100, 110, 121], 1, 0)),
    "restarts, doubling and lower": (
        {**DOUBLING, "schedule__peak_factor": 0.7, "schedule__final_fraction": 0.1},
        lambda u: restarts(u, [10, 20, 40, 80, 160], 0.7, 0.1),
    ),
    "restarts, once": ({**EQUAL, "schedule__peak_factor": 0.0}, lambda u: restarts(u, [30] * 99, 0, 0)),
    "restarts, warm-up": (
        {**DOUBLING, "schedule__warmup": "20 steps"},
        lambda u: 0.3 * u / 20 if u < 20 else restarts(u - 20, [10, 20, 40, 80, 160], 1, 0),
    ),
    "inverse_sqrt": ({**INVERSE, "schedule__timescale": "35 steps"}, lambda u: inverse_sqrt(u, 0, 35)),
    "inverse_sqrt, warm-up": (
        {**INVERSE, "schedule__timescale": "35 steps", "schedule__warmup": "20 steps"},
        lambda u: inverse_sqrt(u, 20, 35),
    ),
    "Noam": (
        {**INVERSE, "schedule__warmup": "20 steps"},
        lambda u: 0.3 * min(u / 20, math.sqrt(20 / u)) if u else 0.0,
    ),
    "one_cycle": ({**CYCLE, "schedule__warmup": "30%"}, one_cycle),
    "one_cycle without a rise": (CYCLE, lambda u: cosine(u, final=0.001)),
}


def make_schedule(name):
    values, formula = SCHEDULES[name]
    return optim.make_schedule(make_config(schedule__learning_rate=0.3, **values), STEPS), formula


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_formula_at_every_update_and_past_the_end(name):
    schedule, formula = make_schedule(name)
    compiled = MODES["graph"](schedule)
    updates = range(STEPS + 20)
    found = [compiled(tf.constant(update, tf.int64)) for update in updates]
    found_of_ints = [schedule(update) for update in updates[::10]]
    assert {rate.dtype for rate in (*found, *found_of_ints)} == {tf.float64}
    assert {tuple(rate.shape) for rate in (*found, *found_of_ints)} == {()}
    wanted = np.array([formula(update) for update in updates])
    assert np.abs(np.array(found) - wanted).max() < 3e-15
    assert np.abs(np.array(found_of_ints) - wanted[::10]).max() < 3e-15


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_takes_a_tensor_in_every_mode(name, mode):
    schedule, formula = make_schedule(name)
    compiled = MODES[mode](schedule)
    for update in (0, 1, 10, 19, 20, 21, 30, 50, 51, 60, 70, 100, 120, 121, 150, 199, 200, 210, 250):
        assert float(compiled(tf.constant(update, tf.int64))) == pytest.approx(formula(update), rel=1e-13, abs=1e-15)


KERAS = {
    "cosine": lambda: keras.optimizers.schedules.CosineDecay(0.3, STEPS, alpha=0.1),
    "cosine to zero": lambda: keras.optimizers.schedules.CosineDecay(0.3, STEPS),
    "cosine, warm-up": lambda: keras.optimizers.schedules.CosineDecay(
        0.0, STEPS - 20, alpha=0.1, warmup_target=0.3, warmup_steps=20
    ),
    "piecewise": lambda: keras.optimizers.schedules.PiecewiseConstantDecay([50, 120], [0.3, 0.03, 0.015]),
    "polynomial": lambda: keras.optimizers.schedules.PolynomialDecay(0.3, STEPS, 0.03, 2.5),
    "polynomial to zero": lambda: keras.optimizers.schedules.PolynomialDecay(0.3, STEPS, 0.0),
    "restarts, doubling and lower": lambda: keras.optimizers.schedules.CosineDecayRestarts(0.3, 10, 2.0, 0.7, 0.1),
}
# At these their float32 puts the first update of a cycle at the end of the one before, or nearly.
KERAS_IS_ROUGH = {"restarts, doubling and lower": (10, 30, 70, 150)}


@pytest.mark.parametrize("name", KERAS)
def test_schedule_is_that_of_tf_keras(name):
    schedule, _ = make_schedule(name)
    theirs = KERAS[name]()
    updates = [update for update in range(STEPS + 20) if update not in KERAS_IS_ROUGH.get(name, ())]
    both = MODES["graph"](lambda update: (schedule(update), theirs(update)))
    found, wanted = np.array([both(tf.constant(update, tf.int64)) for update in updates], np.float64).T
    assert np.abs(found - wanted).max() < 3e-7 * 0.3  # theirs is float32


def test_a_cycle_starts_at_its_peak_far_into_a_run():
    peaks = optim.schedules.restarts(0.3, 7, 3.0)
    start, length = 0, 7
    while start < 10**9:
        assert float(peaks(tf.constant(start, tf.int64))) == pytest.approx(0.3, rel=1e-6), start
        assert float(peaks(tf.constant(start + length - 1, tf.int64))) < 0.3 * 0.06, start
        start, length = start + length, length * 3


@pytest.mark.parametrize("mode", MODES)
def test_a_compressed_schedule_passes_through_all_of_it_and_then_is_0(mode):
    schedule = optim.make_schedule(make_config(schedule__name="polynomial", schedule__learning_rate=0.3), STEPS)
    for steps in (50, 60, STEPS):
        fast = MODES[mode](optim.schedules.compressed(schedule, steps, STEPS))
        for update in (0, 1, 7, 48, 49, 50, 59, 60, 199, 200, 300):
            at = update * STEPS // steps
            wanted = 0.3 * (1 - at / STEPS) if update < steps else 0
            assert float(fast(tf.constant(update, tf.int64))) == pytest.approx(wanted, rel=1e-14), (steps, update)


MISSING = {
    "restarts": "schedule.name='restarts' needs schedule.period, the length of the first cosine."
    " Type e.g. --config.schedule.period='1 epoch'.",
    "inverse_sqrt": "schedule.name='inverse_sqrt' needs schedule.timescale or schedule.warmup."
    " Type e.g. --config.schedule.warmup='1 epoch'.",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_schedule_without_its_length_is_refused(name):
    with pytest.raises(UserError) as error:
        optim.make_schedule(make_config(schedule__name=name), STEPS)
    assert str(error.value) == MISSING[name]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_learning_rate_follows_the_updates_of_the_run(dtype, mode):
    schedule, formula = make_schedule("cosine, warm-up")
    updates = tf.Variable(0, dtype=tf.int64)
    rate = optim.learning_rate(schedule, updates, dtype, factor=0.1)
    assert isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    compiled = MODES[mode](lambda: rate(tf.constant(150, tf.int64)))
    for update in (0, 7, 30):
        updates.assign(update)
        assert compiled().dtype == dtype
        assert float(compiled()) == pytest.approx(0.1 * formula(update), rel=1e-14 if dtype == tf.float64 else 6e-8)
    with pytest.raises(TypeError, match="a schedule is rebuilt from its config, not serialized"):
        rate.get_config()


def test_the_updates_are_not_part_of_an_optimizers_state():
    updates = tf.Variable(0, dtype=tf.int64)
    optimizer = keras.optimizers.SGD(optim.learning_rate(lambda update: tf.constant(1.0), updates, tf.float32))
    assert all(variable is not updates for variable in paths.variables(optimizer).values())

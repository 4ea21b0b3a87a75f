"""framework/optim.py against formulas in float64, against tf_keras' schedules, and optimizers against NumPy."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import optim
from framework.config import base_config, resolve

STEPS = 200
MODES = {
    "eager": lambda fn: fn,
    "graph": lambda fn: tf.function(fn, autograph=False),
    "xla": lambda fn: tf.function(fn, autograph=False, jit_compile=True),
}


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
}


def make_schedule(name):
    values, formula = SCHEDULES[name]
    return optim.make_schedule(make_config(schedule__learning_rate=0.3, **values), STEPS), formula


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_formula_at_every_update_and_past_the_end(name):
    schedule, formula = make_schedule(name)
    updates = range(STEPS + 20)
    found = [schedule(update) for update in updates]
    assert {rate.dtype for rate in found} == {tf.float64}
    assert {tuple(rate.shape) for rate in found} == {()}
    assert np.abs(np.array(found) - [formula(update) for update in updates]).max() < 1e-15


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_takes_a_tensor_in_every_mode(name, mode):
    schedule, formula = make_schedule(name)
    compiled = MODES[mode](schedule)
    for update in (0, 1, 19, 20, 21, 50, 51, 120, 121, 199, 200, 250):
        assert float(compiled(tf.constant(update, tf.int64))) == pytest.approx(formula(update), rel=1e-14, abs=1e-16)


KERAS = {
    "cosine": lambda: keras.optimizers.schedules.CosineDecay(0.3, STEPS, alpha=0.1),
    "cosine to zero": lambda: keras.optimizers.schedules.CosineDecay(0.3, STEPS),
    "cosine, warm-up": lambda: keras.optimizers.schedules.CosineDecay(
        0.0, STEPS - 20, alpha=0.1, warmup_target=0.3, warmup_steps=20
    ),
    "piecewise": lambda: keras.optimizers.schedules.PiecewiseConstantDecay([50, 120], [0.3, 0.03, 0.015]),
}


@pytest.mark.parametrize("name", KERAS)
def test_schedule_is_that_of_tf_keras(name):
    schedule, _ = make_schedule(name)
    theirs = KERAS[name]()
    updates = range(STEPS + 20)
    found = np.array([schedule(update) for update in updates])
    wanted = np.array([theirs(tf.constant(update, tf.int64)) for update in updates], np.float64)
    assert np.abs(found - wanted).max() < 3e-7 * 0.3  # theirs is float32


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_learning_rate_is_the_schedule_cast(dtype):
    schedule, formula = make_schedule("cosine, warm-up")
    rate = optim.learning_rate(schedule, dtype)
    assert isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    assert rate(7).dtype == dtype
    assert rate(7).numpy() == dtype.as_numpy_dtype(formula(7))
    with pytest.raises(TypeError, match="a schedule is rebuilt from its config, not serialized"):
        rate.get_config()


# ---- optimizers

OPTIMIZERS = {
    "sgd": {"optimizer__name": "sgd"},
    "momentum": {"optimizer__name": "sgd", "optimizer__momentum": 0.8},
    "nesterov": {"optimizer__name": "sgd", "optimizer__momentum": 0.8, "optimizer__nesterov": True},
    "adam": {
        "optimizer__name": "adam",
        "optimizer__beta_1": 0.8,
        "optimizer__beta_2": 0.95,
        "optimizer__epsilon": 1e-3,
    },
    "adamw": {"optimizer__name": "adamw", "optimizer__weight_decay": 0.05, "optimizer__beta_1": 0.7},
    "adamw without decay": {"optimizer__name": "adamw"},
}


def make_optimizer(name, dtype=tf.float64, **more):
    config = make_config(schedule__name="cosine", schedule__learning_rate=0.3, **OPTIMIZERS[name], **more)
    return optim.make_optimizer(config, optim.learning_rate(optim.make_schedule(config, STEPS), dtype)), config


def rounded(value):
    """tf_keras casts momentum, decay and the powers' betas to the variable's dtype by way of float32."""
    return float(np.float32(value))


class Reference:
    """The optimizers written out in NumPy."""

    def __init__(self, settings, w):
        self.settings, self.w = settings, w.copy()
        self.m, self.v, self.t = np.zeros_like(w), np.zeros_like(w), 0

    def update(self, g):
        s, rate = self.settings, cosine(self.t, final=0.0)
        self.t += 1
        if s.name == "sgd":
            momentum = rounded(s.momentum)
            self.m = momentum * self.m - rate * g
            self.w += momentum * self.m - rate * g if s.nesterov else self.m
            return
        self.w -= rate * rounded(s.weight_decay) * self.w
        self.m = s.beta_1 * self.m + (1 - s.beta_1) * g
        self.v = s.beta_2 * self.v + (1 - s.beta_2) * g**2
        # tf_keras adds epsilon after the bias correction is moved into the rate ("epsilon hat" of the paper).
        rate *= np.sqrt(1 - rounded(s.beta_2) ** self.t) / (1 - rounded(s.beta_1) ** self.t)
        self.w -= rate * self.m / (np.sqrt(self.v) + s.epsilon)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_the_reference(name, mode):
    optimizer, config = make_optimizer(name)
    rng = np.random.default_rng(2)
    w = rng.normal(size=(3, 4))
    reference, variable = Reference(config.optimizer, w), tf.Variable(w)
    optimizer.build([variable])
    update = MODES[mode](lambda g: optimizer.apply_gradients([(g, variable)], skip_gradients_aggregation=True))
    for count in range(1, 6):
        g = rng.normal(size=w.shape)
        update(tf.constant(g))
        reference.update(g)
        assert np.abs(variable - reference.w).max() < 1e-14
        assert int(optimizer.iterations) == count


KINDS = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_reaches_the_optimizer(name):
    optimizer, config = make_optimizer(name)
    assert type(optimizer) is KINDS[config.optimizer.name]
    assert optimizer.jit_compile is False
    wanted = {"sgd": ("momentum", "nesterov"), "adam": ("beta_1", "beta_2", "epsilon")}
    wanted["adamw"] = (*wanted["adam"], "weight_decay")
    for key in wanted[config.optimizer.name]:
        assert getattr(optimizer, key) == config.optimizer[key], key
    assert optimizer.clipnorm is optimizer.clipvalue is optimizer.global_clipnorm is None
    assert not optimizer.use_ema


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_the_rate_keeps_its_dtype_inside_the_optimizer(dtype):
    optimizer, _ = make_optimizer("sgd", dtype)
    variable = tf.Variable(np.zeros(1), dtype=dtype)
    optimizer.build([variable])
    optimizer.apply_gradients([(tf.ones([1], dtype), variable)])
    assert variable.numpy() == -dtype.as_numpy_dtype(0.3)
    assert optimizer.learning_rate.dtype == dtype

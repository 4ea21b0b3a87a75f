"""framework/optim/checked.py: a schedule may return any number, and what else it returns is one line."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import optim
from framework.config import UserError
from tests.small import build

NUMBERS = {
    "a float": (lambda update: 0.25, 0.25),
    "an int": (lambda update: 2, 2.0),
    "a float32": (lambda update: np.float32(0.1), float(np.float32(0.1))),
    "a float64": (lambda update: np.float64(0.1), 0.1),
    "an array": (lambda update: np.array(0.1), 0.1),
    "the update": (lambda update: update + 1, 4.0),
    "a quotient": (lambda update: 0.1 * (1 - update / 10), 0.07),
    "a float32 tensor": (lambda update: tf.constant(0.1), float(np.float32(0.1))),
    "of tf_keras": (keras.optimizers.schedules.ExponentialDecay(0.5, 3, 0.5), 0.25),
}


@pytest.mark.parametrize(("schedule", "wanted"), NUMBERS.values(), ids=NUMBERS)
def test_any_number_is_a_rate(schedule, wanted):
    rate = optim.checked_schedule(schedule, 10)(tf.constant(3, tf.int64))
    assert rate.dtype.is_floating and rate.shape == []
    assert float(rate) == pytest.approx(wanted, rel=1e-15)


def test_a_schedule_that_was_right_is_not_changed_by_a_bit():
    for dtype in (tf.float32, tf.float64):
        value = tf.constant(0.1, dtype)
        assert optim.checked_schedule(lambda update, value=value: value, 5)(0) is value


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_a_run_follows_a_rate_that_is_a_python_number(mode):
    built = build(functions={"make_schedule": lambda cfg, total: lambda update: 1}, **{"train.compile": mode})
    assert built.train_block(2).row(1)["learning_rate"] == 1.0


WRONG = {
    "None": (lambda update: None, "the schedule returned None. It must return a number"),
    "a text": (lambda update: "0.1", "the schedule returned '0.1'. It must return a number"),
    "a vector": (lambda update: tf.constant([0.1, 0.2]), "the schedule returned a value of shape (2,). It must"),
    "a list": (lambda update: [0.1], "the schedule returned a value of type list. It must return a number"),
    "NaN": (lambda update: math.nan, "the schedule gives a learning rate of nan at update 0 of 50."),
    "negative": (lambda update: -0.1, "the schedule gives a learning rate of -0.1 at update 0 of 50."),
    "negative later": (lambda update: 0.1 - update / 100, "a learning rate of -0.02 at update 12 of 50."),
    "infinite at the start": (lambda update: 1 / update, "the schedule gives a learning rate of inf at update 0"),
    "an error": (lambda update: 0.1 * update, ": <lambda>: TypeError: Expected int64, but got 0.1"),
}
NO_VALUE = {
    "a choice": (lambda x: 1.0 if x > 3 else 2.0, "Write tf.where"),
    "an and": (lambda x: (x > 3) and 1.0, "Write tf.where"),
    "a largest": (lambda x: max(x, 3), "Write tf.where"),
    "a loop": (lambda x: sum(value + 1 for value in x), "tf.map_fn"),
    "a range": (lambda x: len(range(x)), "Write tf.cast"),
    "a float": (lambda x: float(x), "Write tf.cast"),
    "math": (lambda x: math.cos(x), "Write tf.cast"),
    "NumPy": (lambda x: np.cos(x), "Write tf.cast"),
    "an array": (lambda x: np.interp(x, [1, 2], [3, 4]), "Write tf.cast"),
    "its value": (lambda x: x.numpy(), "Write tf.cast"),
    "a place": (lambda x: [0.1, 0.2][x], "Write tf.cast"),
    "a key": (lambda x: {1: 2}[x], "Write tf.cast"),
    "a text": (lambda x: f"{x:.3f}", "Write tf.cast"),
}


@pytest.mark.parametrize(("schedule", "problem"), WRONG.values(), ids=WRONG)
def test_what_is_no_rate_is_one_line(schedule, problem):
    with pytest.raises(UserError) as error:
        optim.checked_schedule(schedule, 50)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("schedule", "advice"), NO_VALUE.values(), ids=NO_VALUE)
def test_python_that_needs_the_value_of_the_update_is_one_line(schedule, advice):
    with pytest.raises(UserError) as error:
        optim.checked_schedule(schedule, 50)
    message = str(error.value)
    assert f"test_checked.py:{schedule.__code__.co_firstlineno}: " in message
    assert "A tensor has no value while the step is traced" in message and advice in message
    assert "\n" not in message


def test_a_python_choice_is_refused_when_a_run_is_built():
    def make_schedule(cfg, total_steps):
        return lambda update: 1e-3 if update < total_steps // 2 else 1e-4

    with pytest.raises(UserError, match=r"test_checked.py:\d+: <lambda>: .* Write tf\.where\(condition, a, b\)"):
        build(functions={"make_schedule": make_schedule}, **{"train.compile": "eager"})


def test_a_schedule_that_counts_or_draws_in_python_is_refused():
    """In a compiled step it would be a constant, and eagerly it would not."""
    calls, draws = [], np.random.default_rng(0)

    def counting(update):
        calls.append(1)
        return 0.1 / len(calls)

    for schedule in (counting, lambda update: draws.uniform(0.1, 0.2)):
        with pytest.raises(UserError, match="the schedule is not a function of the update: called again with 0"):
            optim.checked_schedule(schedule, 50)


def test_the_schedule_of_one_of_several_models_is_named():
    with pytest.raises(UserError, match="the schedule of 'critic' gives a learning rate of -1 at update 0 of 9"):
        optim.checked_schedule(lambda update: -1.0, 9, "critic")


@pytest.mark.parametrize(("total", "updates"), [(1, [0]), (2, [0, 1]), (100, [0, 1, 2, 5, 10, 25, 50, 75, 90, 99])])
def test_the_first_and_the_last_update_are_looked_at(total, updates):
    assert optim.sampled_updates(total) == updates

"""framework/data/draws.py: numbers that NumPy, Python or a clock gives to a trace are refused, all others are not."""

import itertools
import random
import time

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.config import UserError, base_config
from framework.data.batches import make_batches
from framework.data.sources import Source

GENERATOR = np.random.default_rng(0)
COIN = itertools.cycle([True, False])


def batches_of(transform, placement="resident"):
    config = base_config()
    config.data.update({"placement": placement, "batch_size": 4})
    source = Source({"x": np.arange(8, dtype=np.float32)}, origin="points")
    return make_batches(source, config, training=True, transform=transform)


def traced(batches, steps=3):
    """The field `x` of some steps, as the step has it: of one trace."""
    take = tf.function(lambda step: batches.at(step)["x"], autograph=False)
    return np.stack([take(tf.constant(step, tf.int64)).numpy() for step in range(steps)])


def with_x(change):
    return lambda batch: {**batch, "x": change(batch["x"])}


def shifted(x):
    return x + np.random.normal()


def flipped(x):
    return -x if next(COIN) else x


DRAWN = {
    "NumPy": shifted,
    "a generator": lambda x: x * np.float32(GENERATOR.normal(size=4)),
    "Python": lambda x: x + random.random(),
    "an index": lambda x: tf.roll(x, random.randrange(10**9), 0),
    "a branch": flipped,
    "a clock": lambda x: x + time.time_ns() % 10**9,
    "a loop": lambda x: tf.map_fn(lambda one: one + np.random.normal(), x),
}


@pytest.mark.parametrize("placement", ["resident", "stream"])
@pytest.mark.parametrize("kind", DRAWN)
def test_a_draw_that_is_a_constant_of_the_trace_is_refused(kind, placement):
    with pytest.raises(UserError) as caught:
        batches = batches_of(with_x(DRAWN[kind]), placement)
        batches.plan(0, 1, 1) if placement == "stream" else traced(batches)
    assert str(caught.value).startswith("transform draws numbers of NumPy or Python in ")
    assert str(caught.value).endswith(
        "they become constants when the step is traced, the same at every step."
        " Instead, draw with framework.rng, such as rng.uniform."
    )


def test_the_line_names_the_function_and_the_line_that_draws():
    first = shifted.__code__.co_firstlineno
    with pytest.raises(UserError, match=rf" in shifted \(test_draws\.py:{first + 1}\): they become"):
        traced(batches_of(with_x(shifted)))


def test_what_would_happen_without_the_check(monkeypatch):
    monkeypatch.setattr("framework.data.fields.refuse_constant_draws", lambda *args: None)
    x = traced(batches_of(with_x(lambda x: 0 * x + np.random.normal())))
    assert len(np.unique(x)) == 1  # one draw for all examples of all steps


class Lazy:
    """A transform that makes what it needs when it is first called."""

    matrix = None

    def __call__(self, x):
        if self.matrix is None:
            self.matrix = np.float32(np.random.normal(size=4))
        return x * self.matrix


KEPT = {
    "rng": lambda x: x + rng.uniform("noise", x.shape[0], 1)[:, 0],
    "a fixed generator": lambda x: x * np.float32(np.random.default_rng(0).normal(size=4)),
    "a table made once": Lazy(),
    "a host function": lambda x: tf.ensure_shape(tf.numpy_function(lambda y: y + np.float32(1), [x], tf.float32), [4]),
    "a loop": lambda x: tf.map_fn(lambda one: one * 2, x),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_the_same_in_each_trace_passes(kind):
    batches = batches_of(with_x(KEPT[kind]))
    x = traced(batches)
    assert x.shape == (3, 4) and np.isfinite(x).all()
    for step in range(3):
        np.testing.assert_array_equal(x[step], batches.at(step)["x"])


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_a_transform_that_assigns_to_its_batch_passes(placement):
    def doubled(batch):
        batch["x"] = 2 * batch["x"]
        return batch

    plain, twice = (traced(batches_of(transform, placement)) for transform in (None, doubled))
    np.testing.assert_array_equal(twice, 2 * plain)


def test_draws_of_rng_differ_from_step_to_step():
    x = traced(batches_of(with_x(lambda x: 0 * x + rng.uniform("noise", x.shape[0], 1)[:, 0])), steps=8)
    assert len(np.unique(x)) == x.size


def test_the_transform_is_looked_at_once():
    calls = []
    batches = batches_of(with_x(lambda x: calls.append(tf.is_symbolic_tensor(x)) or x))
    for _ in range(3):
        traced(batches, steps=1)
    assert calls == [True] * 5  # two looks, then the traces of the three calls

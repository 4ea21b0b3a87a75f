"""The replay buffer: a ring, drawn from uniformly, in the state."""

import numpy as np
import pytest
import tensorflow as tf

from framework import paths, rng
from framework.config import UserError, base_config
from framework.data.replay import Replay

MODES = {
    "eager": lambda fn: fn,
    "graph": lambda fn: tf.function(fn, autograph=False),
    "xla": lambda fn: tf.function(fn, autograph=False, jit_compile=True),
}


def make(capacity=10, batch_size=4):
    config = base_config()
    config.data.batch_size = batch_size
    specs = {"x": tf.TensorSpec([2], tf.float32), "n": tf.TensorSpec([], tf.int32)}
    return Replay(specs, capacity, config)


def rows(first, count):
    n = np.arange(first, first + count)
    return {"x": tf.constant(np.stack([n, -n], 1), tf.float32), "n": tf.constant(n, tf.int32)}


@pytest.mark.parametrize("mode", MODES)
def test_the_newest_rows_lie_over_the_oldest(mode):
    replay = make()
    for first in (0, 3, 6, 9):
        MODES[mode](lambda first=first: replay.add(rows(first, 3)))()
    assert int(replay.added) == 12
    assert replay.rows["n"].numpy().tolist() == [10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert replay.rows["x"].numpy()[:, 1].tolist() == [-10, -11, -2, -3, -4, -5, -6, -7, -8, -9]


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_buffer_gives_weight_zero(mode):
    replay = make()
    batch = MODES[mode](lambda: replay.at(3))()
    assert batch["weight"].numpy().tolist() == [0] * 4 and batch["x"].shape == (4, 2)
    replay.add(rows(5, 1))
    batch = MODES[mode](lambda: replay.at(3))()
    assert batch["weight"].numpy().tolist() == [1] * 4 and batch["n"].numpy().tolist() == [5] * 4


def test_draws_are_uniform_over_what_there_is():
    replay = make(capacity=100, batch_size=60_000)
    replay.add(rows(0, 6))
    counts = np.bincount(replay.at(0)["n"].numpy(), minlength=100)
    assert counts[6:].sum() == 0
    # Chi-square of 5 degrees of freedom: 20.5 is passed once in a thousand.
    assert ((counts[:6] - 10_000) ** 2 / 10_000).sum() < 20.5


def test_draws_are_the_formula_of_their_words_in_every_mode():
    replay = make(capacity=1000, batch_size=64)
    replay.add(rows(0, 777))
    with rng.scope(rng.key(0), 5):
        words = rng.words("replay", 64, 1).numpy()[:, 0].astype(object)
    wanted = [int(word) * 777 >> 32 for word in words]
    for mode in MODES.values():
        assert mode(lambda: replay.at(5))()["n"].numpy().tolist() == wanted
    assert replay.indices(5)["index"].tolist() == wanted
    assert replay.at(6)["n"].numpy().tolist() != wanted


def test_its_variables_are_all_that_it_is():
    replay = make()
    assert set(paths.variables(replay)) == {"rows/x", "rows/n", "added"}
    assert replay.origin == {"source": "replay buffer", "examples": 10, "bytes": 120, "subset": False}
    assert replay.steps_per_epoch == 2.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError) as error:
        make().add({"x": tf.zeros([1, 2])})
    assert str(error.value) == "a replay buffer of x, n was given rows of x."
    with pytest.raises(UserError) as error:
        make().add(rows(0, 11))
    assert str(error.value) == "a replay buffer of 10 rows was given 11 at once."
    with pytest.raises(UserError) as error:
        make(capacity=0)
    assert str(error.value) == "a replay buffer of 0 rows: it holds between 1 and 2**31 - 1."

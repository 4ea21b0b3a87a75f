"""The replay buffer: a ring, drawn from uniformly, in the state."""

import numpy as np
import pytest
import tensorflow as tf

from framework import paths, rng
from framework.config import UserError, base_config
from framework.data.replay_buffer import ReplayBuffer
from tests.compile_modes import MODES


def make(capacity=10, batch_size=4):
    config = base_config()
    config.data.batch_size = batch_size
    specs = {"x": tf.TensorSpec([2], tf.float32), "n": tf.TensorSpec([], tf.int32)}
    return ReplayBuffer(specs, capacity, config)


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
        words = rng.random_bits("replay", 64, 1).numpy()[:, 0].astype(object)
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
    assert str(error.value) == (
        "a replay buffer with the fields x, n was given rows with the fields x."
        " Add rows with all fields of the buffer and no others."
    )
    with pytest.raises(UserError) as error:
        make().add(rows(0, 11))
    assert str(error.value) == (
        "a replay buffer of 10 rows was given 11 rows at once."
        " Add at most as many as it holds, of a number that is known when the step is traced."
    )
    with pytest.raises(UserError) as error:
        make(capacity=0)
    assert str(error.value) == "a replay buffer cannot hold 0 rows. Use a capacity from 1 to 2**31 - 1."


def weighted(shape=(), dtype=tf.float32):
    config = base_config()
    config.data.batch_size = 4
    return ReplayBuffer({"x": tf.TensorSpec([], tf.int32), "weight": tf.TensorSpec(shape, dtype)}, 10, config)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_keeps_its_weight(mode):
    replay = weighted()
    assert replay.at(0)["weight"].numpy().tolist() == [0] * 4
    replay.add({"x": tf.range(3), "weight": tf.constant([0.5, 0.0, 3.0])})
    batch = MODES[mode](lambda: replay.at(3))()
    assert batch["weight"].numpy().tolist() == [[0.5, 0.0, 3.0][x] for x in batch["x"].numpy()]
    assert replay.indices(3)["weight"].tolist() == batch["weight"].numpy().tolist()
    replay.add({"x": tf.zeros(10, tf.int32), "weight": tf.fill([10], -1.0)})
    assert np.isnan(MODES[mode](lambda: replay.at(4))()["weight"]).all()  # the step stops at it


@pytest.mark.parametrize(("shape", "dtype"), [((2,), tf.float32), ((), tf.string)])
def test_a_weight_of_something_else_than_a_row_is_refused(shape, dtype):
    with pytest.raises(UserError, match=r"^'weight' of the rows of a replay buffer is "):
        weighted(shape, dtype)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"n": np.float32([0.7])},
            r"'n' of a replay buffer is int32 \(\) a row, but the rows to add are float32 \(1,\).",
        ),
        (
            {"x": np.ones([1, 3], np.float32)},
            r"'x' of a replay buffer is float32 \(2,\) a row, but the rows to add are float32 \(1, 3\).",
        ),
        ({"x": np.ones([2, 2])}, "a replay buffer was given 1 rows of 'n' and 2 of another field."),
    ],
)
def test_rows_of_another_kind_are_refused(given, line):
    """0.7 would be kept as 0."""
    with pytest.raises(UserError, match=line):
        make().add({**rows(0, 1), **given})


def test_the_number_of_rows_may_stand_in_any_field():
    replay = make()

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)], autograph=False)
    def add(x):
        replay.add({"x": x, "n": tf.range(3)})

    add(tf.ones([3, 2]))
    assert int(replay.added) == 3 and replay.rows["n"].numpy()[:3].tolist() == [0, 1, 2]

"""framework/layers/ids.py: rows of known, unknown and missing ids, in every compile mode, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from framework import layers
from tests.compile_modes import FAST_COMPILED

IDS = np.array([[0, 3, 4], [5, 6, -1], [2, 2**40, -(2**40)]])
each_mode = pytest.mark.parametrize("compiled", FAST_COMPILED)


@each_mode
@pytest.mark.parametrize(
    ("keys", "unknown", "expected"),
    [
        ([3, 4, 5], "row", [[0, 1, 2], [3, 4, 4], [4, 4, 4]]),
        ([5, 3, -1], "row", [[0, 2, 4], [1, 4, 3], [4, 4, 4]]),
        (range(3, 6), "refuse", [[0, 1, 2], [3, -1, -1], [-1, -1, -1]]),
        (np.array([6], np.int32), "row", [[0, 2, 2], [2, 1, 2], [2, 2, 2]]),
    ],
)
def test_numbers_are_looked_up(compiled, keys, unknown, expected):
    layer = layers.Lookup(keys, unknown)
    rows = compiled(layer)(tf.constant(IDS))
    assert rows.dtype == tf.int32
    assert rows.numpy().tolist() == expected
    assert layer.rows == len(keys) + (2 if unknown == "row" else 1)


def test_numbers_of_32_bits_are_looked_up():
    ids = tf.constant([0, 1, 2, 2**31 - 1, -(2**31)], tf.int32)
    assert layers.Lookup([2, 1])(ids).numpy().tolist() == [0, 2, 1, 3, 3]


@pytest.mark.parametrize(("unknown", "row"), [("row", 3), ("refuse", -1)])
def test_strings_are_looked_up(unknown, row):
    layer = layers.Lookup(["Straße", "doctor"], unknown)
    texts = tf.constant(["doctor", "", "Straße", "Doctor"])
    for call in (layer, tf.function(layer)):
        assert call(texts).numpy().tolist() == [2, 0, 1, row]


@each_mode
def test_a_hash_is_that_of_murmur(compiled):
    def mixed(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x ^ (x >> 16)

    def row(number):
        word = number % 2**64
        return 0 if number == 0 else mixed(mixed(word >> 32) ^ word % 2**32) % 6 + 1

    layer = layers.HashedLookup(7)
    assert compiled(layer)(tf.constant(IDS)).numpy().tolist() == [[row(int(i)) for i in ids] for ids in IDS]


def test_hashes_spread_evenly_and_do_not_change():
    layer = layers.HashedLookup(11)
    rows = layer(tf.range(1, 10_001)).numpy()
    counts = np.bincount(rows, minlength=11)
    assert counts[0] == 0 and abs(counts[1:] - 1000).max() < 4 * 30  # a standard deviation is 30
    assert layer(tf.constant([1, 2, 3])).numpy().tolist() == layer(tf.constant([1, 2, 3], tf.int64)).numpy().tolist()
    assert layer(tf.constant(["", "a", "b", "film"])).numpy().tolist() == FARM_ROWS


FARM_ROWS = [0, 10, 3, 9]  # of TensorFlow 2.21.0; its documentation says that they last


@each_mode
def test_numbers_are_put_in_intervals(compiled):
    layer = layers.Bucketize([18, 25, 35.5])
    numbers = np.array([-1, 18, 17.999, 25, 35.4, 35.5, 90, np.inf, -np.inf, np.nan])
    expected = [*(1 + np.digitize(numbers[:-1], [18, 25, 35.5])), 0]
    assert compiled(layer)(tf.constant(numbers)).numpy().tolist() == expected
    assert layer(tf.constant([17, 18])).numpy().tolist() == [1, 2]
    assert layer.rows == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Lookup([1, 2], "drop"), "unknown='drop' is none of row, refuse"),
        (lambda: layers.Lookup([1, "a"]), "keys are of int, str, but must be all int or all str, at least one"),
        (lambda: layers.Lookup([]), "keys are of nothing, but must be all int or all str, at least one"),
        (lambda: layers.Lookup([1.5]), "keys are of float, but must be all int or all str, at least one"),
        (lambda: layers.Lookup([4, 5, 4]), "keys have 4 twice, but each key has one row"),
        (lambda: layers.Lookup([4, 0]), "keys have 0, which is padding"),
        (lambda: layers.Lookup(["a", ""]), "keys have '', which is padding"),
        (
            lambda: layers.Lookup([1, 2**30]),
            "keys from 1 to 1073741824 are 2**24 or more apart; use HashedLookup, or other numbers",
        ),
        (lambda: layers.HashedLookup(1), "rows=1 must be at least 2: row 0 is padding"),
        (lambda: layers.Bucketize([]), "boundaries=[] must be increasing numbers, at least one"),
        (lambda: layers.Bucketize([1, 1]), "boundaries=[1.0, 1.0] must be increasing numbers, at least one"),
    ],
)
def test_what_is_no_vocabulary_is_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_ids_of_another_kind_than_the_keys_are_refused():
    for keys, ids in ((["a"], tf.constant([1])), ([1], tf.constant(["a"]))):
        with pytest.raises(ValueError, match=f"ids are {ids.dtype.name}, but keys such as .* are not"):
            layers.Lookup(keys)(ids)


@pytest.mark.parametrize("make", [lambda: layers.Lookup([5, 7]), lambda: layers.HashedLookup(10)], ids=["key", "hash"])
@pytest.mark.parametrize("ids", [np.array([5, 7.9], np.float32), np.array([5.0]), np.array([True])], ids=str)
def test_numbers_that_are_no_integers_are_no_ids(make, ids):
    message = f"ids are {ids.dtype}, but must be integers or strings; Bucketize takes other numbers"
    layer = make()
    for call in (layer, tf.function(layer)):
        with pytest.raises(ValueError, match=message):
            call(tf.constant(ids))

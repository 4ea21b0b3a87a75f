"""run/snapshot.py: what of a state has changed, and putting it back."""

import numpy as np
import pytest
import tensorflow as tf

from framework.run import snapshot
from framework.run.snapshot import Snapshot
from tests.compile_modes import MODES
from tests.small import build, differing
from tests.small import snapshot as bits_of

START = np.array([[1.0, -0.0], [np.nan, 3.0]], np.float32)


def state():
    root = tf.Module()
    root.table = tf.Variable(START)
    root.half = tf.Variable(tf.constant([1.0, 2.0], tf.bfloat16))
    root.step = tf.Variable(7, dtype=tf.int64)
    root.mask = tf.Variable([True, False])
    root.empty = tf.Variable(tf.zeros([0, 3]))
    root.name_of = tf.Variable(["a", "b"])
    return root


def bits(root):
    return {v.name: v.numpy().tobytes() for v in root.variables if v.dtype != tf.string}


CHANGES = {
    "table": lambda root: root.table.assign(-root.table),
    "table, a sign": lambda root: root.table[0, 1].assign(0.0),
    "table, by row": lambda root: root.table.scatter_sub(tf.IndexedSlices([[1.0, 0.0]], [0])),
    "table, a sum": lambda root: root.table.assign_add(tf.ones([2, 2])),
    "half": lambda root: root.half.assign_sub(tf.ones([2], tf.bfloat16)),
    "step": lambda root: root.step.assign_add(1),
    "mask": lambda root: root.mask.assign([True, True]),
    "name_of": lambda root: root.name_of.assign(["a", "c"]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_seen_and_put_back(what, mode):
    if mode == "xla" and what == "name_of":
        pytest.skip("XLA has no strings")
    root = state()
    before, taken = bits(root), Snapshot(root)
    assert taken.is_unchanged() and taken.put_back() == []

    def change():
        CHANGES[what](root)

    for _ in range(2):  # a variable that is updated by row is read in another way afterwards
        MODES[mode](change)()
        assert not taken.is_unchanged()
        assert taken.put_back() == [what.partition(",")[0]]
        assert bits(root) == before and root.name_of.numpy().tolist() == [b"a", b"b"]
        assert taken.is_unchanged()


def test_what_is_assigned_the_bits_that_it_had_has_not_changed():
    root = state()
    taken = Snapshot(root)
    root.table.assign(START.copy())
    assert taken.is_unchanged() and taken.put_back() == []


def test_no_bytes_are_compared_of_what_was_not_assigned(monkeypatch):
    root = state()
    taken = Snapshot(root)
    compared = []
    monkeypatch.setattr(snapshot, "_bits", lambda array: compared.append(array.shape) or array.reshape(-1))
    root.half.assign([1.0, 2.0])
    assert taken.is_unchanged()
    assert (2,) in compared and (2, 2) not in compared


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_steps_of_training_are_put_back(mode):
    """A compiled block, which may write over the memory of variables, leaves the values that are held alone."""
    run = build(**{"train.compile": mode, "optimizer.name": "adam", "ema.decay": 0.5})
    run.train_block(2)
    before, taken = bits_of(run), Snapshot(run.state)
    run.train_block(2)
    assert len(differing(before, bits_of(run))) > 10 and not taken.is_unchanged()
    assert set(taken.put_back()) >= {"step", "updates", "model/first/kernel", "model/norm/moving_mean"}
    assert not differing(before, bits_of(run)) and taken.is_unchanged()

"""Checkpoints are written beside the training: one at a time, of a copy, without holding up an exit."""

import os
import sys
import threading
import time

import pytest
import tensorflow as tf

from framework import paths
from framework.checkpoint import checkpoints as checkpoint
from framework.checkpoint import storage
from framework.checkpoint.checkpoints import Checkpoints
from framework.config import UserError
from tests.checkpoint.states import make_state, save_at


class Held:
    """Keeps the writer waiting before its first array, until it is let go."""

    def __init__(self, monkeypatch):
        self.go, self.threads, original = threading.Event(), [], storage._chunks

        def parts(array):
            self.threads.append(threading.current_thread())
            assert self.go.wait(60)
            return original(array)

        monkeypatch.setattr(storage, "_chunks", parts)


@pytest.fixture
def held(monkeypatch):
    holding = Held(monkeypatch)
    yield holding
    holding.go.set()


def test_the_state_may_change_at_once(tmp_path, held):
    created = make_state()
    with Checkpoints(tmp_path, 3) as checkpoints:
        created.step.assign(5)
        note = {"best": {"test/loss": 1.0}}
        folder = checkpoints.save(created, note)
        expected = checkpoint.digest(created)
        for variable in paths.variables(created).values():
            variable.assign(tf.ones_like(variable) * 7)
        note["best"]["test/loss"] = 2.0
        assert not folder.exists()
        held.go.set()
    assert checkpoint.digest(checkpoint.read_arrays(folder)) == expected != checkpoint.digest(created)
    assert checkpoints.restore(created) == {"best": {"test/loss": 1.0}}


def test_memory_of_the_copy_is_taken_again(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    checkpoints.save(created, {})
    checkpoints.steps()
    first = {path: array.__array_interface__["data"] for path, array in checkpoints._copy.items()}
    created.step.assign(7)
    folder = checkpoints.save(created, {})
    assert {path: array.__array_interface__["data"] for path, array in checkpoints._copy.items()} == first
    checkpoints.close()
    assert checkpoint.digest(checkpoint.read_arrays(folder)) == checkpoint.digest(created)
    assert checkpoints._copy == {}


def test_every_dtype_is_saved_and_restored(tmp_path):
    types = (tf.bfloat16, tf.float16, tf.float64, tf.bool, tf.int8, tf.int32, tf.uint32, tf.int64, tf.complex64)
    created, other = make_state(), make_state(seed=3)
    for each, value in ((created, 1), (other, 0)):
        each.extra = tf.Module()
        each.extra.of = [tf.Variable(tf.cast([[value, 0, 1]], dtype)) for dtype in types]
        each.extra.scalar, each.extra.none = tf.Variable(bool(value)), tf.Variable(tf.zeros([0, 3]))
    save_at(Checkpoints(tmp_path, 3), created, 1)
    assert checkpoint.digest(other) != checkpoint.digest(created)
    Checkpoints(tmp_path, 3).restore(other)
    assert checkpoint.digest(other) == checkpoint.digest(created)


def test_text_is_refused(tmp_path):
    created = make_state()
    created.extra = tf.Module()
    created.extra.vocabulary = tf.Variable(["a", "b"])
    with pytest.raises(UserError) as caught:
        save_at(Checkpoints(tmp_path, 3), created, 1)
    assert str(caught.value) == "the variable 'extra/vocabulary' holds text, but a checkpoint holds numbers."


def test_one_write_at_a_time_and_who_looks_waits(tmp_path, held):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    created.step.assign(1)
    checkpoints.save(created, {})
    checkpoints.save(created, {})  # of the same step: on its way
    waiting = threading.Timer(0.2, held.go.set)
    waiting.start()
    created.step.assign(2)
    checkpoints.save(created, {})
    assert held.go.is_set()  # the second waited for the first
    assert checkpoints.steps() == [1, 2]
    assert len(set(held.threads)) == 2
    waiting.join()


@pytest.mark.parametrize("look", [Checkpoints.steps, lambda c: c.pointed("last"), lambda c: c.restore(make_state())])
def test_who_looks_sees_what_was_saved(tmp_path, held, look):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    created.step.assign(4)
    checkpoints.save(created, {"at": 4})
    waiting = threading.Timer(0.2, held.go.set)
    waiting.start()
    assert look(checkpoints) in ([4], 4, {"at": 4})
    waiting.join()


def test_a_synchronous_save_waits(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3, asynchronous=False)
    created.step.assign(4)
    folder = checkpoints.save(created, {})
    assert checkpoint.digest(checkpoint.read_arrays(folder)) == checkpoint.digest(created)
    assert (tmp_path / "last.json").exists()
    assert "checkpoint writer" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no niceness of its own")
@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_writer_is_nice_and_training_is_not(tmp_path, monkeypatch, asynchronous):
    seen, original = [], storage._chunks

    def parts(array):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return original(array)

    monkeypatch.setattr(storage, "_chunks", parts)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    save_at(Checkpoints(tmp_path, 3, asynchronous=asynchronous), make_state(), 1)
    assert set(seen) == {max(before, checkpoint._NICENESS) if asynchronous else before}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_who_breaks_off_does_not_wait(tmp_path, monkeypatch):
    """A save that would take an hour is abandoned, what is there stays, and a later one is not."""
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    original = storage._chunks

    def slow(array):
        for part in original(array):
            for _ in range(36_000):
                time.sleep(0.1)
                yield part

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_chunks", slow)
        with pytest.raises(KeyboardInterrupt), checkpoints:
            created.step.assign(2)
            checkpoints.save(created, {})
            raise KeyboardInterrupt
        assert checkpoints.steps() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json", "step-00000001"]
    save_at(checkpoints, created, 2)
    assert checkpoints.steps() == [1, 2]


def test_another_error_waits_for_the_write(tmp_path, held):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    waiting = threading.Timer(0.2, held.go.set)
    with pytest.raises(ZeroDivisionError), checkpoints:
        created.step.assign(2)
        checkpoints.save(created, {})
        waiting.start()
        raise ZeroDivisionError
    assert (tmp_path / "step-00000002" / "manifest.json").exists()
    waiting.join()

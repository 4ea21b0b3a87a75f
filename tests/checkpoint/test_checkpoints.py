"""Checkpoints are whole or not there, keep what they say, and give back every bit."""

import contextlib
import errno
import hashlib
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import optim, paths, state
from framework.checkpoint import checkpoints as checkpoint
from framework.checkpoint import directory, storage
from framework.checkpoint.checkpoints import Checkpoints
from framework.checkpoint.snapshot import manifest_of
from framework.checkpoint.storage import CorruptError, read_manifest, write_manifest
from framework.config import RunError, UserError


def make_state(units=3, seed=0):
    model = keras.Sequential([keras.layers.Dense(units, input_shape=(4,)), keras.layers.BatchNormalization()])
    created = state.create(
        model,
        optim.Optimizer([(keras.optimizers.Adam(1e-3, jit_compile=False), paths.trainable(model))]),
        state.new_counter(),
    )
    rng = np.random.default_rng(seed)
    for variable in paths.variables(created).values():
        value = rng.normal(size=variable.shape) * 100
        variable.assign(tf.cast(value, variable.dtype))
    return created


def snapshot(created):
    return {path: variable.numpy().tobytes() for path, variable in paths.variables(created).items()}


def save_at(checkpoints, created, step, is_best=False):
    """Saves and waits."""
    created.step.assign(step)
    if is_best:
        created.best.step.assign(step)
    folder = checkpoints.save(created, {"at": step})
    checkpoints.close()
    return folder


def test_restores_every_bit_and_the_note(tmp_path):
    saved, other = make_state(seed=1), make_state(seed=2)
    folder = save_at(Checkpoints(tmp_path, 3), saved, 469)
    assert folder == tmp_path / "step-00000469"
    assert Checkpoints(tmp_path, 3).restore(other) == {"at": 469}
    assert snapshot(other) == snapshot(saved)


def test_facts_come_back_by_step_and_are_hashed(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    assert checkpoints.facts() == {}
    for step, facts in ((1, {"config": "a"}), (2, None), (3, {"config": "c", "files": {"x.py": "d"}})):
        created.step.assign(step)
        checkpoints.save(created, {}, facts)
    assert checkpoints.facts(1) == {"config": "a"}
    assert checkpoints.facts(2) == {} == checkpoints.facts(7)
    assert checkpoints.facts() == checkpoints.facts(3) == {"config": "c", "files": {"x.py": "d"}}
    manifest = tmp_path / "step-00000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"config": "c"', '"config": "e"'))
    assert checkpoints.facts(3) == {}
    assert checkpoints.restore(created) == {} and int(created.step) == 2  # damaged: the one before


def test_special_values_survive(tmp_path):
    created = make_state()
    created.best.value.assign(np.nan)
    kernel = created.model.layers[0].kernel
    kernel.assign(np.array([[np.inf, -0.0, 1e-45], [1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32))
    before = snapshot(created)
    save_at(Checkpoints(tmp_path, 1), created, int(created.step))
    other = make_state(seed=5)
    Checkpoints(tmp_path, 1).restore(other)
    assert snapshot(other) == before


def test_arrays_are_read_by_path(tmp_path):
    created = make_state()
    arrays = checkpoint.read_arrays(save_at(Checkpoints(tmp_path, 1), created, 7))
    np.testing.assert_array_equal(arrays["model/dense/kernel"], created.model.layers[0].kernel.numpy())
    assert arrays["step"] == 7
    assert checkpoint.digest(arrays) == checkpoint.digest(created)


def test_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "none", 3).restore(make_state()) is None
    assert Checkpoints(tmp_path / "none", 3).steps() == []


def test_keeps_the_newest_and_the_best(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 2)
    for step in (1, 2, 3, 4, 5):
        save_at(checkpoints, created, step, is_best=step == 2)
    assert checkpoints.steps() == [2, 4, 5]
    assert (checkpoints.pointed("best"), checkpoints.pointed("last")) == (2, 5)
    save_at(checkpoints, created, 6, is_best=True)
    assert checkpoints.steps() == [5, 6]


def test_restores_the_best(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 1)
    save_at(checkpoints, created, 3, is_best=True)
    best = snapshot(created)
    created.model.layers[0].kernel.assign_add(tf.ones([4, 3]))
    save_at(checkpoints, created, 9)
    assert checkpoints.restore(created, "best") == {"at": 3}
    assert snapshot(created) == best


def test_saving_a_step_twice_moves_the_pointer_only(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    folder = save_at(checkpoints, created, 5)
    before = (folder / "manifest.json").stat().st_mtime_ns
    save_at(checkpoints, created, 5, is_best=True)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert checkpoints.pointed("best") == 5


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "half a manifest", "no manifest", "other manifest"])
def test_falls_back_past_a_damaged_checkpoint(tmp_path, damage, caplog):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    whole = snapshot(created)
    created.model.layers[0].kernel.assign_add(tf.ones([4, 3]))
    newest = save_at(checkpoints, created, 2)
    data = newest / "arrays.bin"
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        data.write_bytes(content[:-1])
    elif damage == "remove":
        data.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "half a manifest":
        (newest / "manifest.json").write_text("{")
    else:
        manifest = (newest / "manifest.json").read_text()
        (newest / "manifest.json").write_text(manifest.replace('"at": 2', '"at": 3'))
    other = make_state(seed=9)
    assert checkpoints.restore(other) == {"at": 1}
    assert snapshot(other) == whole
    says = {
        "flip": "arrays.bin does not have its SHA-256",
        "truncate": f"arrays.bin has {len(content) - 1} bytes, not {len(content)}",
        "remove": "arrays.bin is missing",
        "half a manifest": "manifest.json: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "no manifest": "manifest.json is missing",
        "other manifest": "manifest.json does not have its SHA-256",
    }[damage]
    assert f"checkpoint {newest} is damaged ({says}); falling back to the one before" in caplog.text


def test_a_damaged_best_is_refused(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    folder = save_at(checkpoints, created, 1, is_best=True)
    (folder / "arrays.bin").unlink()
    with pytest.raises(UserError) as caught:
        checkpoints.restore(created, "best")
    assert str(caught.value) == (
        f"{tmp_path}: the best checkpoint cannot be used: arrays.bin is missing. Use --checkpoint=last."
    )


def test_no_best_yet(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    with pytest.raises(
        UserError, match=r"the best checkpoint cannot be used: there is none; set checkpoint\.best_metric to"
    ):
        checkpoints.restore(created, "best")


def test_another_model_is_refused_with_both_sides(tmp_path):
    save_at(Checkpoints(tmp_path, 3), make_state(units=3), 1)
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path, 3).restore(make_state(units=2))
    assert "model/dense/kernel: float32[4, 3] in the checkpoint, float32[4, 2] in the run" in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'step-00000001'} is of another model or optimizer: ")


@pytest.mark.parametrize("phase", ["arrays", "manifest", "rename", "pointer"])
def test_a_crash_in_any_phase_leaves_the_one_before(tmp_path, monkeypatch, phase):
    """An exception of the writer stands for the crash: whatever is on disk at that moment must restore."""
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    before = snapshot(created)

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    real = directory.write_json
    patched = {
        "arrays": (storage, "_chunks", crash),
        "manifest": (storage, "write_json", crash),
        "rename": (checkpoint.Path, "rename", crash),
        "pointer": (directory, "write_json", lambda path, v: crash() if path.name == "last.json" else real(path, v)),
    }[phase]
    created.model.layers[0].kernel.assign_add(tf.ones([4, 3]))
    with monkeypatch.context() as patch:
        patch.setattr(*patched)
        with pytest.raises(KeyboardInterrupt):
            save_at(checkpoints, created, 2)
    after = snapshot(created)
    other = make_state(seed=4)
    assert Checkpoints(tmp_path, 3).restore(other) == ({"at": 2} if phase == "pointer" else {"at": 1})
    assert snapshot(other) == (after if phase == "pointer" else before)
    save_at(checkpoints, created, 3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_who_trains_on_sets_damaged_ones_aside_and_writes_them_anew(tmp_path):
    """A damaged newest checkpoint must not be taken for written, nor count among the newest that are kept."""
    created, checkpoints = make_state(), Checkpoints(tmp_path, 1)
    created.best.step.assign(5)
    save_at(checkpoints, created, 5)
    for step in (10, 12):
        save_at(checkpoints, created, step)
    for step in (10, 12):
        if (tmp_path / f"step-{step:08d}").exists():
            (tmp_path / f"step-{step:08d}" / "arrays.bin").unlink()
    assert checkpoints.restore(created, repair=True) == {"at": 5}
    assert checkpoints.steps() == [5]
    save_at(checkpoints, created, 12)
    assert checkpoints.restore(make_state(seed=3)) == {"at": 12}
    assert (tmp_path / "damaged-step-00000012").is_dir()


def test_who_looks_on_moves_nothing(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    (save_at(checkpoints, created, 2) / "arrays.bin").unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert checkpoints.restore(created) == {"at": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_half_deleted_checkpoint_is_written_anew(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    (save_at(checkpoints, created, 4) / "manifest.json").unlink()
    assert checkpoints.restore(make_state(seed=3)) is None
    save_at(checkpoints, created, 4)
    assert checkpoints.restore(make_state(seed=3)) == {"at": 4}


def test_a_best_pointer_that_a_crash_left_behind_is_moved(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    created.best.step.assign(-1)
    save_at(checkpoints, created, 3, is_best=True)
    save_at(checkpoints, created, 4, is_best=True)
    directory.write_json(tmp_path / "best.json", {"step": 3})
    assert checkpoints.restore(make_state(seed=3), repair=True) == {"at": 4}
    assert checkpoints.pointed("best") == 4


def test_bytes_are_on_disk_before_the_name(tmp_path, monkeypatch):
    """Every file of a checkpoint, then the rename, then the folder, then the pointer."""
    happened = []
    sync, rename = storage.os.fsync, checkpoint.Path.rename
    links = "/proc/self/fd/{}"
    monkeypatch.setattr(
        storage.os, "fsync", lambda fd: happened.append(Path(os.readlink(links.format(fd))).name) or sync(fd)
    )
    monkeypatch.setattr(
        checkpoint.Path,
        "rename",
        lambda self, target: happened.append(f"rename to {target.name}") or rename(self, target),
    )
    created = make_state()
    created.best.step.assign(-1)
    save_at(Checkpoints(tmp_path, 3), created, 1)
    assert happened == [
        "arrays.bin",
        ".manifest.json.tmp",
        ".step-00000001.tmp",
        "rename to step-00000001",
        tmp_path.name,
        ".last.json.tmp",
        tmp_path.name,
    ]


def test_a_digest_is_that_of_paths_types_shapes_and_bytes():
    module = tf.Module()
    module.b = tf.Variable([[1.5, -0.0]], dtype=tf.bfloat16)
    module.a = tf.Variable(7, dtype=tf.int64)
    module.none = tf.Variable(tf.zeros([0, 3], tf.float64))
    module.flag = tf.Variable([True, False])
    content = (
        b"a int64[]\n" + (7).to_bytes(8, "little") + b"b bfloat16[1, 2]\n" + bytes.fromhex("c03f0080")
        + b"flag bool[2]\n\x01\x00" + b"none float64[0, 3]\n"
    )  # fmt: skip
    assert checkpoint.digest(module) == hashlib.sha256(content).hexdigest()
    arrays = {path: np.asarray(variable.numpy()) for path, variable in paths.variables(module).items()}
    assert checkpoint.digest(arrays) == checkpoint.digest(module)


def test_a_digest_tells_one_bit_apart():
    created = make_state()
    before = checkpoint.digest(created)
    assert checkpoint.digest(make_state()) == before
    created.best.value.assign(np.array(-0.0))
    minus = checkpoint.digest(created)
    created.best.value.assign(np.array(0.0))
    assert len({before, minus, checkpoint.digest(created)}) == 3


# --- beside the training ----------------------------------------------------------------------------------------------


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


# --- a disk that is full or fails -------------------------------------------------------------------------------------


def full(patch, undo):
    """The device that is always full, instead of the file."""
    patch.setattr(storage, "_ARRAYS", "/dev/full")


def quota(patch, undo):
    """No file may grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)


def failing(patch, undo):
    """fsync is where a failing disk shows."""

    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    patch.setattr(storage.os, "fsync", fsync)


FAULTS = {
    "full": (full, "[Errno 28] No space left on device"),
    "quota": (quota, "[Errno 27] File too large"),
    "disk": (failing, "[Errno 5] Input/output error"),
}


@contextlib.contextmanager
def fault(name):
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as undo:
        FAULTS[name][0](patch, undo)
        yield


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_of_the_disk_is_raised_at_the_next_save_and_at_the_end(tmp_path, name, caplog):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    before = save_at(checkpoints, created, 1)
    whole = checkpoint.digest(created)
    said = (
        f"{tmp_path}: the checkpoint of step 2 could not be saved: {FAULTS[name][1]};"
        " the last complete one is of step 1."
    )
    for again in (lambda: checkpoints.save(created, {}), checkpoints.close):
        caplog.clear()
        created.step.assign(2)
        with fault(name):
            checkpoints.save(created, {})
            assert checkpoints.steps() == [1]
        assert [record.getMessage() for record in caplog.records] == [said]
        created.step.assign(3)
        with pytest.raises(RunError) as caught:
            again()
        assert str(caught.value) == f"{said} Mend that and type the same command again."
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json", "step-00000001"]
        checkpoints.close()  # raised once
    assert checkpoint.digest(checkpoint.read_arrays(before)) == whole
    save_at(checkpoints, created, 3)
    assert checkpoints.steps() == [1, 3]


def test_an_error_of_the_disk_is_passed_over_on_request_but_at_the_end(tmp_path, caplog):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3, on_error="continue")
    with fault("full"):
        for step in (1, 2):
            created.step.assign(step)
            checkpoints.save(created, {})
        assert checkpoints.steps() == []
    said = [
        f"{tmp_path}: the checkpoint of step {step} could not be saved: [Errno 28] No space left on device;"
        " there is no complete one."
        for step in (1, 2)
    ]
    assert [record.getMessage() for record in caplog.records] == said
    checkpoints.save(created, {"at": 2})  # the same step once more, now that there is room
    checkpoints.close()
    assert checkpoints.restore(created) == {"at": 2}
    created.step.assign(3)
    with fault("full"), pytest.raises(RunError) as caught, checkpoints:
        checkpoints.save(created, {})
    assert str(caught.value) == (
        f"{tmp_path}: the checkpoint of step 3 could not be saved: [Errno 28] No space left on device;"
        " the last complete one is of step 2. Mend that and type the same command again."
    )


def test_a_synchronous_save_raises_itself(tmp_path):
    created = make_state()
    checkpoints = Checkpoints(tmp_path, 3, asynchronous=False)
    with fault("full"), pytest.raises(RunError, match=r"could not be saved: .* No space left on device"):
        checkpoints.save(created, {})
    checkpoints = Checkpoints(tmp_path, 3, asynchronous=False, on_error="continue")
    with fault("full"):
        checkpoints.save(created, {})
    with pytest.raises(RunError):
        checkpoints.close()


def test_a_slip_in_the_code_is_raised_whatever_is_asked_for(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3, on_error="continue")
    checkpoints.save(created, {"at": object()})
    created.step.assign(3)
    with pytest.raises(TypeError, match="Object of type object is not JSON serializable"):
        checkpoints.save(created, {})


# --- which are kept ---------------------------------------------------------------------------------------------------


def test_one_for_every_so_many_hours_is_kept_for_good(tmp_path):
    """Saved every 40 minutes for eight hours, by two processes; every two hours are two hours from the one before."""
    hours, created = [0.0], make_state()
    created.best.step.assign(-1)
    for step in range(1, 13):
        checkpoints = Checkpoints(tmp_path, 2, keep_hours=2, clock=lambda: 1.7e9 + 3600 * hours[0])
        save_at(checkpoints, created, step)
        hours[0] += 2 / 3 + 1e-6
    # Saved at 0:00, 2:00, 4:00 and 6:00, and the newest two.
    assert checkpoints.steps() == [1, 4, 7, 10, 11, 12]


def test_a_damaged_one_is_not_kept_for_its_hour(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 1, keep_hours=1, clock=lambda: 1e9)
    created.best.step.assign(-1)
    first = save_at(checkpoints, created, 1)
    (first / "manifest.json").write_text("{")
    save_at(checkpoints, created, 2)
    save_at(checkpoints, created, 3)
    assert checkpoints.steps() == [2, 3]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"step": null}'])
def test_pointers_may_be_lost(tmp_path, content):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    for step in (1, 2, 3):
        save_at(checkpoints, created, step, is_best=step == 2)
    for name in ("last.json", "best.json"):
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    assert (checkpoints.pointed("last"), checkpoints.pointed("best")) == (3, 2)
    assert checkpoints.restore(created, "best") == {"at": 2}
    assert checkpoints.restore(created, repair=True) == {"at": 3}
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "checkpoint": "step-00000002"}
    save_at(checkpoints, created, 4)
    assert checkpoints.steps() == [2, 3, 4] and (tmp_path / "last.json").exists()


def test_a_folder_of_another_name_is_none_of_ours(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 1)
    save_at(checkpoints, created, 1).rename(tmp_path / "step-00000001-copy")
    save_at(checkpoints, created, 2)
    assert checkpoints.steps() == [2] and (tmp_path / "step-00000001-copy").exists()


@pytest.mark.parametrize(("name", "value"), [("facts", [1]), ("variables", []), ("note", 3), ("step", "4")])
def test_a_manifest_of_wrong_kinds_is_damage_even_with_its_hash(tmp_path, name, value):
    state = tf.Module()
    state.step, state.best = tf.Variable(4, dtype=tf.int64), tf.Module()
    state.best.step = tf.Variable(-1, dtype=tf.int64)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        path = checkpoints.save(state, {})
    write_manifest(path, {**read_manifest(path), name: value})
    with pytest.raises(CorruptError, match=f"manifest.json has no {name}"):
        manifest_of(path)
    assert Checkpoints(tmp_path, keep=2).facts() == {}

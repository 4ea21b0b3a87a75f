"""Checkpoints are whole or not there, keep what they say, and give back every bit."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import checkpoint, optim, paths, state
from framework.checkpoint import Checkpoints
from framework.config import UserError


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
    created.step.assign(step)
    if is_best:
        created.best.step.assign(step)
    return checkpoints.save(created, {"at": step})


def test_restores_every_bit_and_the_note(tmp_path):
    saved, other = make_state(seed=1), make_state(seed=2)
    folder = save_at(Checkpoints(tmp_path, 3), saved, 469)
    assert folder == tmp_path / "step-00000469"
    assert Checkpoints(tmp_path, 3).restore(other) == {"at": 469}
    assert snapshot(other) == snapshot(saved)


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


def test_tensorflow_reads_the_tensors_by_path(tmp_path):
    created = make_state()
    folder = save_at(Checkpoints(tmp_path, 1), created, 7)
    reader = tf.train.load_checkpoint(str(folder / "state"))
    np.testing.assert_array_equal(reader.get_tensor("model/dense/kernel"), created.model.layers[0].kernel.numpy())
    assert reader.get_tensor("step") == 7
    assert set(reader.get_variable_to_shape_map()) == set(paths.variables(created))


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


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_falls_back_past_a_damaged_checkpoint(tmp_path, damage, caplog):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    whole = snapshot(created)
    created.model.layers[0].kernel.assign_add(tf.ones([4, 3]))
    newest = save_at(checkpoints, created, 2)
    data = newest / "state.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        data.write_bytes(content[:-1])
    elif damage == "remove":
        data.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    other = make_state(seed=9)
    assert checkpoints.restore(other) == {"at": 1}
    assert snapshot(other) == whole
    says = {
        "flip": "state.data-00000-of-00001 does not have its SHA-256",
        "truncate": "state.data-00000-of-00001 does not have its SHA-256",
        "remove": "state.data-00000-of-00001 is missing",
        "manifest": "manifest.json: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    }[damage]
    assert f"checkpoint {newest} is damaged ({says}); falling back to the one before" in caplog.text


def test_a_damaged_best_is_refused(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    folder = save_at(checkpoints, created, 1, is_best=True)
    (folder / "state.index").unlink()
    with pytest.raises(UserError) as caught:
        checkpoints.restore(created, "best")
    assert str(caught.value) == (
        f"{tmp_path}: the best checkpoint cannot be used: state.index is missing. Use --config.export.checkpoint=last."
    )


def test_no_best_yet(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    with pytest.raises(UserError, match=r"the best checkpoint cannot be used: there is none yet\."):
        checkpoints.restore(created, "best")


def test_another_model_is_refused_with_both_sides(tmp_path):
    save_at(Checkpoints(tmp_path, 3), make_state(units=3), 1)
    with pytest.raises(UserError) as caught:
        Checkpoints(tmp_path, 3).restore(make_state(units=2))
    assert "model/dense/kernel: float32[4, 3] in the checkpoint, float32[4, 2] in the run" in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'step-00000001'} is of another model or optimizer: ")


@pytest.mark.parametrize("phase", ["SaveV2", "manifest", "rename", "pointer"])
def test_a_crash_in_any_phase_leaves_the_one_before(tmp_path, monkeypatch, phase):
    """An exception stands for the crash: whatever is on disk at that moment must restore."""
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    before = snapshot(created)

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    real = checkpoint.write_json
    patched = {
        "SaveV2": (tf.raw_ops, "SaveV2", crash),
        "manifest": (checkpoint, "write_json", crash),
        "rename": (checkpoint.Path, "rename", crash),
        "pointer": (checkpoint, "write_json", lambda path, v: crash() if path.name == "last.json" else real(path, v)),
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
            (tmp_path / f"step-{step:08d}" / "state.index").unlink()
    assert checkpoints.restore(created, repair=True) == {"at": 5}
    assert checkpoints.steps() == [5]
    save_at(checkpoints, created, 12)
    assert checkpoints.restore(make_state(seed=3)) == {"at": 12}
    assert (tmp_path / "damaged-step-00000012").is_dir()


def test_who_looks_on_moves_nothing(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    save_at(checkpoints, created, 1)
    (save_at(checkpoints, created, 2) / "state.index").unlink()
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
    checkpoint.write_json(tmp_path / "best.json", {"step": 3})
    assert checkpoints.restore(make_state(seed=3), repair=True) == {"at": 4}
    assert checkpoints.pointed("best") == 4


def test_bytes_are_on_disk_before_the_name(tmp_path, monkeypatch):
    """Every file of a checkpoint, then the rename, then the folder, then the pointer."""
    happened = []
    sync, rename = checkpoint.os.fsync, checkpoint.Path.rename
    links = "/proc/self/fd/{}"
    monkeypatch.setattr(
        checkpoint.os, "fsync", lambda fd: happened.append(Path(os.readlink(links.format(fd))).name) or sync(fd)
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
        "state.data-00000-of-00001",
        "state.index",
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


def test_write_json_never_shows_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    checkpoint.write_json(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.json, "dump", lambda value, file, indent: file.write("{") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            checkpoint.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}

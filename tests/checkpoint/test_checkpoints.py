"""Checkpoints are whole or not there, keep what they say, and give back every bit."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from framework import paths
from framework.checkpoint import checkpoints as checkpoint
from framework.checkpoint import directory, storage
from framework.checkpoint.checkpoints import Checkpoints
from framework.checkpoint.snapshot import manifest_of
from framework.checkpoint.storage import CorruptError, read_manifest, write_manifest
from framework.config import UserError
from tests.checkpoint.states import make_state, save_at, snapshot


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

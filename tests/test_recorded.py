"""A run over records is exact: one seed twice, after a kill, on other replicas; what changed meanwhile is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import launch
from framework import config, testing
from framework.config.overrides import override
from framework.data import prepare
from framework.errors import UserError
from framework.run import loop
from tests import recorded
from tests.data.files import made

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "train.compile": "graph",
    "train.duration": "12 steps",
    "checkpoint.every": "6 steps",
    "eval.every": "",
    "checkpoint.best_metric": "",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Three TFRecord shards of 96 pictures."""
    (tmp_path / "records").mkdir()
    made.write_shards(tmp_path / "records", [40, 16, 40])
    return tmp_path / "records"


def build(folder, workdir, **settings):
    return testing.build(recorded, SETTINGS | {"data.folder": str(folder)} | settings, workdir)


def save(built):
    built.checkpoints.save(built.state, {}, built.facts())
    built.checkpoints.close()
    built.write_header([])


def test_one_seed_twice_and_a_resume_end_in_the_same_bits(folder, tmp_path):
    ends = {}
    for name, calls in (("once", 1), ("again", 4)):
        built = build(folder, tmp_path / name, **{"data.parallel_calls": calls})
        built.open()
        for _ in range(2):
            built.train_block(6)
        ends[name] = testing.bits(built.state)
    half = build(folder, tmp_path / "half")
    half.open()
    half.train_block(6)
    save(half)
    resumed = build(folder, tmp_path / "half")
    assert resumed.open() == 6
    resumed.train_block(6)
    ends["resumed"] = testing.bits(resumed.state)
    for name, end in ends.items():
        assert testing.differing(ends["once"], end) == set(), name


def test_prepared_shards_give_the_bits_of_the_shards_they_were_made_of(folder, tmp_path):
    pytest.importorskip("array_record.python.array_record_module", reason="needs the extra 'data'")
    assert prepare.main([str(folder), str(tmp_path / "array_records"), "--shards=5"]) == 0
    ends = []
    for number, place in enumerate((folder, tmp_path / "array_records")):
        built = build(place, tmp_path / f"run-{number}", **{"data.placement": "resident"})
        built.open()
        built.train_block(6)
        ends.append(testing.bits(built.state))
    assert testing.differing(*ends) == set()


def test_other_records_are_refused_at_a_resume(folder, tmp_path):
    built = build(folder, tmp_path / "run")
    built.open()
    built.train_block(6)
    save(built)
    shard = folder / "train-00001-of-00003.tfrecord"
    made.write_tf_records(shard, made.pictures(16, 500))
    with pytest.raises(UserError, match=rf"{shard} has changed since {shard.name}.index was made"):
        build(folder, tmp_path / "run")
    (folder / f"{shard.name}.index").unlink()
    with pytest.raises(UserError, match="the examples of 'train' changed since"):
        build(folder, tmp_path / "run").open()


@pytest.fixture
def array_records(folder, tmp_path):
    """Four ArrayRecord shards of the same pictures."""
    pytest.importorskip("array_record.python.array_record_module", reason="needs the extra 'data'")
    assert prepare.main([str(folder), str(tmp_path / "array_records")]) == 0
    return tmp_path / "array_records"


def batches_of(folder):
    values = {"data.folder": str(folder)}
    return recorded.make_data(config.finalize(override(recorded.get_config(""), values)), "train")


def test_replicas_and_workers_read_and_augment_the_pictures_of_one_device(array_records):
    whole = batches_of(array_records)
    for shares in ([8, 8], [4, 12]):
        firsts = np.cumsum([0, *shares[:-1]]).tolist()
        # The replicas of one process share the source; a worker opens its own.
        for owner in (lambda: whole, lambda: batches_of(array_records)):
            shards = [owner().shard(first, count) for first, count in zip(firsts, shares, strict=True)]
            plans = [batches.plan(4, 4, 4) for batches in (whole, *shards)]
            for step in range(4):
                expected, *parts = (b.take(p, tf.constant(step)) for b, p in zip((whole, *shards), plans, strict=True))
                for name in ("image", "label"):
                    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected[name])
            for batches in shards:
                batches.close()
    whole.close()


def opened(folder):
    """Returns how many files of a folder this process has open."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(f"{folder}/") for link in links if os.path.lexists(link))


def test_closed_batches_have_no_file_open_and_read_on(array_records):
    batches, expected = batches_of(array_records), batches_of(array_records)
    shard = batches.shard(0, 8)
    for first in (0, 4, 8):
        plan, of_shard, other = batches.plan(first, 4, 4), shard.plan(first, 4, 4), expected.plan(first, 4, 4)
        expected.close()
        assert opened(array_records) == 4  # shards
        batches.close()
        assert opened(array_records) == 0
        for name, rows in other.items():
            np.testing.assert_array_equal(plan[name], rows)
            np.testing.assert_array_equal(of_shard[name], rows[:, :8])


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_end_of_a_run_closes_the_files_and_the_next_step_opens_them(array_records, tmp_path, replicas):
    devices = {"runtime.strategy": "mirrored", "runtime.devices": 2} if replicas == 2 else {}
    whole = build(array_records, tmp_path / "whole", **devices)
    whole.open()
    whole.train_block(6)
    whole.train_block(6)
    assert opened(array_records) >= 4  # shards
    whole.close()
    assert opened(array_records) == 0
    closed = build(array_records, tmp_path / "closed", **devices)
    closed.open()
    closed.train_block(6)
    closed.close()
    closed.train_block(6)
    assert opened(array_records) >= 4
    assert testing.differing(testing.bits(whole.state), testing.bits(closed.state)) == set()
    closed.close()
    loop.train(build(array_records, tmp_path / "run", **devices))
    assert opened(array_records) == 0


def seen(files):
    """Returns the lines that the processes of a run wrote of the pictures of its first two epochs."""
    lines = [path.read_text().splitlines() for path in sorted(files.parent.glob(f"{files.name}-*"))]
    return [{line for line in each if line.startswith(("0 ", "1 "))} for each in lines]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_two_replicas_and_one_of_two_workers_see_the_pictures_of_one_device(array_records, tmp_path):
    ways = {
        "one": [],
        "replicas": ["--config.runtime.strategy=mirrored", "--config.runtime.virtual_devices=2"],
        "workers": ["--local_workers=2"],
    }
    by_process = {}
    for name, flags in ways.items():
        settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
        places = [f"--config.data.folder={array_records}", f"--config.data.seen={tmp_path / name}"]
        command = ["launch.py", "--config=tests/recorded.py", f"--workdir={tmp_path / 'runs' / name}"]
        done = subprocess.run(
            [sys.executable, *command, *settings, *places, *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        by_process[name] = seen(tmp_path / name)
    (one,) = by_process["one"]
    assert len(one) == 2 * 96 and len({line.split()[1] for line in one}) == 96
    assert by_process["replicas"] == [one]
    first, second = by_process["workers"]
    # Each worker reads its half of each batch; `verify` and what is traced eagerly may read the first batch whole.
    assert first | second == one and len(first) < len(one) > len(second)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["records", "array_records"])
def test_ten_kills_over_records_end_in_the_same_bits(folder, tmp_path, kind, request, capsys):
    if kind == "array_records":
        request.getfixturevalue(kind)
    arguments = [f"--workdir={tmp_path / 'run'}", "--mode=verify_resume", "--kills=10", "--config.train.compile=graph"]
    experiment = ["--config=tests/recorded.py", f"--config.data.folder={tmp_path / kind}"]
    assert launch.main(["launch.py", *experiment, *arguments]) == 0, capsys.readouterr()

"""A run over records is exact: one seed twice, after a kill, on other replicas; what changed meanwhile is refused."""

import pytest

import launch
from framework import testing
from framework.data import prepare
from framework.errors import UserError
from tests import recorded
from tests.data.files import made

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


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["records", "array_records"])
def test_ten_kills_over_records_end_in_the_same_bits(folder, tmp_path, kind, capsys):
    if kind == "array_records":
        pytest.importorskip("array_record.python.array_record_module", reason="needs the extra 'data'")
        assert prepare.main([str(folder), str(tmp_path / kind)]) == 0
    arguments = [f"--workdir={tmp_path / 'run'}", "--mode=verify_resume", "--kills=10", "--config.train.compile=graph"]
    experiment = ["--config=tests/recorded.py", f"--config.data.folder={tmp_path / kind}"]
    assert launch.main(["launch.py", *experiment, *arguments]) == 0, capsys.readouterr()

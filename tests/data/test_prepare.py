"""framework/data/prepare.py: folders and TFRecord become ArrayRecord shards that are whole, checked and resumable."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from framework import data
from framework.data import prepare
from framework.errors import UserError
from tests.data.files import made

pytest.importorskip("array_record.python.array_record_module", reason="needs the extra 'data'")

ROOT = Path(__file__).parents[2]
FIELDS = data.Examples({"image": data.Image((made.SIDE, made.SIDE)), "label": data.Label(classes=3)})


@pytest.fixture
def records(tmp_path):
    """Three TFRecord shards of 30 pictures."""
    (tmp_path / "records").mkdir()
    made.write_shards(tmp_path / "records", [11, 8, 11])
    return tmp_path / "records"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_tf_records_are_copied_and_the_manifest_counts(records, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare.main([str(records), str(out), "--shards=4", "--workers=2"]) == 0
    assert capsys.readouterr().out == f"{out}: 30 records in 4 shards, 0 damaged ones left out\n"
    manifest = json.loads((out / "manifest.json").read_text())
    assert [shard["records"] for shard in manifest["shards"]] == [8, 8, 7, 7] and manifest["records"] == 30
    assert sorted(files_of(out)) == ["manifest.json", *(shard["name"] for shard in manifest["shards"])]
    ours, theirs = data.array_records(out, FIELDS), data.tf_records(records, FIELDS)
    rows = np.random.default_rng(0).permutation(30)
    for name, array in theirs.take(rows).items():
        np.testing.assert_array_equal(ours.take(rows)[name], array)
    # The same files by the same command, and by other threads.
    before = files_of(out)
    assert prepare.main([str(records), str(out), "--shards=4", "--workers=2"]) == 0 and files_of(out) == before
    assert prepare.main([str(records), str(tmp_path / "one"), "--shards=4", "--workers=1"]) == 0
    assert files_of(tmp_path / "one") == before


def test_damaged_pictures_of_a_folder_are_named_and_counted(tmp_path, capsys, caplog):
    for number in range(12):
        path = tmp_path / "pets" / ("cat" if number < 6 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.encoded(made.pixels(number))[: -30 if number in (2, 9) else None])
    out = tmp_path / "out"
    assert prepare.main([str(tmp_path / "pets"), str(out), "--shards=2"]) == 0
    assert "10 records in 2 shards, 2 damaged ones left out" in capsys.readouterr().out
    lines = [f"{tmp_path}/pets/{name}: the PNG is damaged or cut off" for name in ("cat/02.png", "dog/09.png")]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["skipped"] == {"records": 2, "first": lines} and manifest["classes"] == ["cat", "dog"]
    assert all(f"left out: {line}" in caplog.text for line in lines)
    source = data.array_records(out, FIELDS)
    left = [number for number in range(12) if number not in (2, 9)]
    batch = source.take(np.arange(10))
    np.testing.assert_array_equal(batch["image"], [made.pixels(number) for number in left])
    np.testing.assert_array_equal(batch["label"], np.array(left) // 6)
    assert source.classes == ("cat", "dog")


def test_a_damaged_record_stops_the_preparation_if_asked_to(records, tmp_path, capsys):
    shard = records / "train-00001-of-00003.tfrecord"
    made.flip(shard, made.frames(shard)[3][0] + 20)
    assert prepare.main([str(records), str(tmp_path / "out"), "--damaged=stop"]) == 1
    line = f"error: {shard}, record 3: its CRC is wrong. Mend the file, or use --damaged=skip."
    assert capsys.readouterr().err.splitlines()[-1] == line
    with pytest.raises(UserError, match="is not complete"):
        data.array_records(tmp_path / "out", FIELDS)


def test_an_interrupted_preparation_is_continued(records, tmp_path, monkeypatch):
    command = [str(records), str(tmp_path / "out"), "--shards=4", "--workers=1"]
    written = prepare._Preparation._written

    def dying(self, path, rows, bar):
        if path.name.startswith("records-00002"):
            raise KeyboardInterrupt
        return written(self, path, rows, bar)

    monkeypatch.setattr(prepare._Preparation, "_written", dying)
    assert prepare.main(command) == 130
    with pytest.raises(UserError, match=r"is not complete\. Type the command of framework\.data\.prepare again"):
        data.array_records(tmp_path / "out", FIELDS)
    seen = []
    monkeypatch.setattr(
        prepare._Preparation, "_written", lambda *args: seen.append(args[1].name[:13]) or written(*args)
    )
    assert prepare.main(command) == 0
    # The worker may have begun the next shard before the interruption reached it; what is written stays.
    assert seen in (["records-00002"], ["records-00002", "records-00003"])
    assert prepare.main([str(records), str(tmp_path / "whole"), "--shards=4"]) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_preparation_that_is_killed_again_and_again_ends_in_the_same_files(records, tmp_path):
    command = [sys.executable, "-m", "framework.data.prepare", str(records), str(tmp_path / "out"), "--shards=6"]
    kill = (
        "import os, signal, sys; from framework.data import prepare; write = prepare._Preparation._written\n"
        "def killed(self, path, rows, bar):\n"
        "    entry = write(self, path, rows, bar)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare._Preparation._written = killed; prepare.main(sys.argv[1:])"
    )
    for _ in range(3):
        done = subprocess.run([command[0], "-c", kill, *command[3:]], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ)
    assert prepare.main([str(records), str(tmp_path / "whole"), "--shards=6"]) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_what_cannot_be_prepared_is_refused_in_one_line(records, tmp_path, capsys):
    def line(*arguments):
        assert prepare.main([str(each) for each in arguments]) == 2
        return capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert line(records, tmp_path / "full") == (
        f"{tmp_path}/full has other files, such as thesis.txt. Use another folder."
    )
    assert line(records, records / "out").endswith(f"is inside of {records}. Write the shards to another folder.")
    assert line(tmp_path / "none", tmp_path / "out").startswith(f"{tmp_path}/none does not exist")
    assert line(records) == (
        "the following arguments are required: folder. See python -m framework.data.prepare --help."
    )
    assert line(records, tmp_path / "out", "--shards=0").startswith("argument --shards: ")
    assert prepare.main([str(records), str(tmp_path / "out")]) == 0
    assert line(records, tmp_path / "out", "--shards=2") == (
        f"{tmp_path}/out was prepared from other files, or by another command. Use another folder, or remove this one."
    )

"""framework/writers/jsonl.py: exact rows, whole whatever happens to the file."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from framework.errors import MachineError
from framework.writers import Jsonl
from tests.writers.recorded import steps_of, write_rows


def test_jsonl_writes_one_object_a_row_in_the_order_of_the_values(tmp_path: Path) -> None:
    writer = Jsonl(tmp_path / "metrics.jsonl")
    writer.scalars(100, {"loss": 0.25, "learning_rate": np.float32(0.5), "skipped": 0})
    writer.scalars(np.int64(200), {"eval/test/loss": 2.0})
    expected = (
        '{"step": 100, "loss": 0.25, "learning_rate": 0.5, "skipped": 0.0}\n{"step": 200, "eval/test/loss": 2.0}\n'
    )
    assert (tmp_path / "metrics.jsonl").read_text() == expected  # before close: a reader sees whole rows at once
    writer.close()
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_jsonl_stays_valid_json_with_nan_and_infinity(tmp_path: Path) -> None:
    writer = Jsonl(tmp_path / "m.jsonl")
    writer.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan"), "e": 1.0})
    writer.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1, "a": null, "b": null, "c": null, "d": null, "e": 1.0}\n'


def test_jsonl_ignores_what_is_no_row(tmp_path: Path) -> None:
    writer = Jsonl(tmp_path / "m.jsonl")
    writer.histograms(1, {"w": np.zeros(3)})
    writer.images(1, {"x": np.zeros([1, 2, 2])})
    writer.graph(tf.Graph())
    writer.texts(1, {"config": "text"})
    writer.close()
    assert (tmp_path / "m.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("resume_step", "kept"),
    [(None, [10, 20, 30, 40]), (0, []), (5, []), (20, [10, 20]), (25, [10, 20]), (40, [10, 20, 30, 40])],
)
def test_jsonl_resumes_without_the_rows_beyond_the_step(tmp_path: Path, resume_step: int | None, kept: list) -> None:
    path = tmp_path / "m.jsonl"
    write_rows(path, range(10, 50, 10))
    before = path.read_bytes().splitlines(keepends=True)
    writer = Jsonl(path, resume_step)
    assert path.read_bytes() == b"".join(before[: len(kept)])
    writer.scalars(50, {"loss": 1.0})
    writer.close()
    assert steps_of(path) == [*kept, 50]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]


def test_jsonl_keeps_all_rows_of_the_resume_step(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    writer = Jsonl(path)
    for step, name in ((10, "loss"), (20, "loss"), (20, "eval/test/loss"), (30, "loss")):
        writer.scalars(step, {name: 1.0})
    writer.close()
    Jsonl(path, 20).close()
    assert steps_of(path) == [10, 20, 20]


@pytest.mark.parametrize("torn", [b'{"step": 20, "lo', b'{"step": 20, "loss": 2.0}', b"\xff\xfe", b"\0\0\0\n", b"7\n"])
@pytest.mark.parametrize("resume_step", [None, 20])
def test_jsonl_drops_a_torn_last_line(tmp_path: Path, torn: bytes, resume_step: int | None) -> None:
    path = tmp_path / "m.jsonl"
    write_rows(path, range(10, 20, 10))
    complete = path.read_bytes()
    path.write_bytes(complete + torn)
    Jsonl(path, resume_step).close()
    assert path.read_bytes() == complete


def test_jsonl_truncates_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    write_rows(path, range(10, 50, 10))
    before = path.read_bytes()

    def crash(source: Path, target: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("framework.writers.jsonl.os.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        Jsonl(path, 20)
    assert path.read_bytes() == before


def test_jsonl_flush_syncs_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("framework.writers.jsonl.os.fsync", synced.append)
    writer = Jsonl(tmp_path / "m.jsonl")
    writer.scalars(1, {"loss": 1.0})
    assert synced == []
    writer.flush()
    assert len(synced) == 1
    writer.close()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_rows_of_a_file_that_is_gone_are_not_lost_in_silence(tmp_path, how):
    path = tmp_path / "metrics.jsonl"
    writer = Jsonl(path)
    writer.scalars(1, {"loss": 1.0})
    writer.flush()
    path.unlink()
    if how == "replaced":
        path.write_text("")
    with pytest.raises(OSError) as error:
        writer.flush()
    assert str(error.value) == f"[Errno 5] deleted or replaced while the run was writing it: '{path}'"
    with pytest.raises(OSError):
        writer.close()


def test_damaged_rows_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is whole stays, byte for byte; a link to the file stays a link."""
    rows = [f'{{"step": {step}, "loss": 0.5}}\n' for step in (1, 2, 3, 4)]
    path, other = tmp_path / "m.jsonl", tmp_path / "disk.jsonl"
    path.symlink_to(other)
    other.write_bytes((rows[0] + '{"step": 2, "lo\xff\n' + rows[2] + rows[3].replace("4", "3,")).encode("latin-1"))
    Jsonl(path, 3).close()
    assert other.read_text() == rows[0] + rows[2] and path.is_symlink()
    assert caplog.messages == [f"{path}: 2 of 4 lines are damaged and left out"]


def test_rows_that_cannot_be_read_are_not_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n')

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(MachineError, match=r"m\.jsonl cannot be read: Permission denied\. Mend that"):
            Jsonl(path, 0)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'

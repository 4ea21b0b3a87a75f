"""Small files: written whole or not at all, read with a check, locked without touching anything else."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from framework import files
from framework.config import UserError
from framework.files import CorruptError, held, load_json, read_json, rows, unreachable, write_bytes, write_json

SO = "the step is timed anew"


def number(value):
    return int(value["starts"][0]["step"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"5",
        b'{"starts": 5}',
        b'{"starts": []}',
        b'{"starts": [{"step": "x"}]}',
        b'{"starts": [{"step": Infinity}]}',
        b'{"starts": [{"step": ' + b"9" * 5000 + b"}]}",
        b"[" * 100_000,
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"\0" * 100,
    ],
)
def test_damage_is_a_warning_and_the_default(tmp_path, content, caplog):
    path = tmp_path / "environment.json"
    path.write_bytes(content)
    assert read_json(path, number, -1, SO) == -1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    assert record.getMessage().startswith(f"{path} is damaged (") and record.getMessage().endswith(f"): {SO}")


def test_a_file_that_is_not_there_is_the_default_without_a_word(tmp_path, caplog):
    assert read_json(tmp_path / "none.json", number, -1, SO) == -1 and not caplog.records
    write_json(tmp_path / "some.json", {"starts": [{"step": 7}]})
    assert read_json(tmp_path / "some.json", number, -1, SO) == 7 and not caplog.records


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(CorruptError):
        load_json(tmp_path / "x")


@pytest.mark.parametrize("make", [os.mkdir, lambda path: path.write_text("old"), "link"])
def test_what_a_crash_left_is_in_nobodys_way_and_no_link_is_written_through(tmp_path, make):
    other = tmp_path / "other"
    other.write_text("precious")
    aside = tmp_path / ".x.tmp"
    aside.symlink_to(other) if make == "link" else make(aside)
    write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and other.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["other", "x"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    write_json(tmp_path / "x", 1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.Path if call == "replace" else files.os, call, full)
        with pytest.raises(OSError, match="No space"):
            write_json(tmp_path / "x", 2)
    assert load_json(tmp_path / "x") == 1 and os.listdir(tmp_path) == ["x"]


def test_rows_that_are_whole_are_read_and_the_others_counted(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 2}', '{"step": 2, "los', "", '{"step": "3"}', "[4]", '{"loss": 1}', '{"step": 5}']
    path.write_bytes(("\n".join(lines) + "\n").encode() + b'\xff{"step": 6}\n{"step": 7')
    assert [row["step"] for row in rows(path)] == [1, 5]
    assert caplog.messages == [f"{path}: 6 of 9 lines are damaged and left out"]  # the torn last one is no damage


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_of_its_own_is_refused(tmp_path, kind):
    other = tmp_path / "other"
    other.write_text("precious")
    lock = tmp_path / ".lock"
    {"link": lambda: lock.symlink_to(other), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(UserError) as caught, held(lock, str):
        pass
    why = {"link": "it is a link", "pipe": "it is not a file", "folder": "Is a directory"}[kind]
    assert str(caught.value) == f"{lock} cannot be locked: {why}. Remove it, or use another folder."
    assert other.read_text() == "precious"


def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked: No locks available\. Use a folder on another disk\.$"):
        held(tmp_path / ".lock", str).__enter__()


def test_who_waits_says_so_and_goes_on_when_the_other_is_gone(tmp_path, caplog):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('1 on x', file=f, flush=True)"
    hold += "; print('held', flush=True); sys.stdin.read()"
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        timer = threading.Timer(0.3, other.stdin.close)
        timer.start()
        caplog.set_level("INFO")
        with held(lock, lambda holder: f"{holder} has it", waits=True):
            assert other.wait(5) == 0 and caplog.messages == ["1 on x has it"]
            assert lock.read_text() == f"{os.getpid()} on {os.uname().nodename}\n"
        timer.join()


def test_what_cannot_be_reached_says_why(tmp_path):
    (tmp_path / "gone").symlink_to("/nowhere/at all")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    assert unreachable(tmp_path / "none") == unreachable(tmp_path) == ""
    assert unreachable(tmp_path / "gone") == "it is a link to /nowhere/at all, which does not exist"
    assert unreachable(tmp_path / "file" / "x") == "Not a directory"
    assert "loop" in unreachable(tmp_path / "loop")


def test_json_is_written_as_it_always_was(tmp_path):
    write_json(tmp_path / "x", {"a": [1, None]})
    assert (tmp_path / "x").read_text() == json.dumps({"a": [1, None]}, indent=2) + "\n"

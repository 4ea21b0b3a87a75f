"""Exports that are interrupted, meet each other or a full disk: report.json says what is there."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from framework.config import RunError
from framework.export import report, runner
from framework.export.base import Signature
from framework.export.runner import export_all
from framework.manifest import digest

SIGNATURE = Signature(
    lambda model, inputs: {"logits": inputs["x"] * model.factor}, {"x": tf.TensorSpec([None, 3], tf.float32)}
)
BATCH = {"x": np.ones([4, 3], np.float32), "weight": np.ones(4, np.float32)}


class Scale(tf.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(factor)


@dataclasses.dataclass(frozen=True)
class Versions:
    """Writes the factor into a numbered folder; `meanwhile` is called while it does."""

    name: str = "saved"
    bound: float = 2e-6
    meanwhile: object = None

    @property
    def signatures(self):
        return {"serving_default": SIGNATURE}

    def target(self, folder):
        return folder / str(1 + len(list(folder.glob("[0-9]*"))))

    def write(self, model, path):
        path.mkdir()
        if self.meanwhile:
            self.meanwhile()
        (path / "factor.txt").write_text(str(float(model.factor)))

    def load(self, path):
        factor = np.float32((path / "factor.txt").read_text())
        return {"serving_default": lambda inputs: {"logits": inputs["x"] * factor}}


def export(folder, *hooks, factor=1.5, step=7):
    return export_all(hooks, Scale(factor), [BATCH], {}, folder, step)


def told(folder):
    """(hook, step, passed) of each entry of report.json; every one that has passed stands there as it was written."""
    entries = json.loads((folder / "report.json").read_text())
    for entry in entries:
        assert not entry["passed"] or digest(folder / entry["path"]) == entry["sha256"]
    return [(entry["hook"], entry["step"], entry["passed"]) for entry in entries]


def raising(error):
    def fail():
        raise error

    return fail


def test_two_exports_at_once_take_two_versions(tmp_path, caplog):
    caplog.set_level("INFO")
    inside, go_on, reports = threading.Event(), threading.Event(), {}

    def first():
        reports[1] = export(tmp_path, Versions(meanwhile=lambda: inside.set() or go_on.wait(30)), factor=1.0, step=1)

    def second():
        reports[2] = export(tmp_path, Versions(), factor=2.0, step=2)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    threads[1].join(0.5)
    assert 2 not in reports and told(tmp_path) == [("saved", 1, False)]
    assert f"process {os.getpid()} on {os.uname().nodename} is exporting to {tmp_path}: waiting for it" in caplog.text
    go_on.set()
    for thread in threads:
        thread.join()
    assert [reports[number][0].path for number in (1, 2)] == ["saved/1", "saved/2"]
    assert [(tmp_path / f"saved/{number}/factor.txt").read_text() for number in (1, 2)] == ["1.0", "2.0"]
    assert told(tmp_path) == [("saved", 2, True)]


def test_exports_of_two_processes_wait_for_one_another(tmp_path):
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / ".exports.lock"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        thread = threading.Thread(target=lambda: export(tmp_path / "exports", Versions()))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and os.listdir(tmp_path / "exports") == []
        other.stdin.close()
        thread.join(30)
    assert told(tmp_path / "exports") == [("saved", 7, True)]


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), GeneratorExit(), MemoryError("32 GB")])
def test_a_hook_that_wants_to_end_the_process_has_failed(tmp_path, error):
    bad, good = export(tmp_path, Versions("bad", meanwhile=raising(error)), Versions("good"))
    assert (bad.passed, good.passed) == (False, True)
    assert bad.failure == f"{type(error).__name__}: {error}".removesuffix(": ")
    assert told(tmp_path) == [("bad", 7, False), ("good", 7, True)]
    assert type(error).__name__ in (tmp_path / "bad.failed/error.txt").read_text()


@pytest.mark.parametrize("when", ["at first", "later"])
def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path, when):
    """KeyboardInterrupt stands for the kill: it passes through, and what is there at that moment is all there is."""
    if when == "later":
        export(tmp_path, Versions("one"), Versions("two"), factor=1.0, step=3)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, Versions("one"), Versions("two", meanwhile=raising(KeyboardInterrupt())), factor=2.0)
    assert told(tmp_path) == [("one", 7, True), ("two", 7, False)]
    assert not report.is_current(tmp_path, ["one", "two"], 7)
    assert (tmp_path / "two").exists() == (when == "later")
    export(tmp_path, Versions("one"), Versions("two"), factor=2.0)
    assert report.is_current(tmp_path, ["one", "two"], 7)
    assert sorted(os.listdir(tmp_path)) == ["one", "report.html", "report.json", "two"]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["mkdir", "write", "rename", "flush"])
def test_a_full_disk_costs_one_hook_and_no_other(tmp_path, monkeypatch, call):
    export(tmp_path, Versions("one"), Versions("two"), factor=1.0, step=3)
    real = {"mkdir": runner.Path.mkdir, "rename": os.replace, "flush": runner.sync}

    def fail(kind, path, *args, **kwargs):
        if ".one.partial" in str(path) or str(path).endswith(("one.failed", "/one")):
            raise FULL
        return real[kind](path, *args, **kwargs)

    with monkeypatch.context() as patch:
        if call == "mkdir":
            patch.setattr(runner.Path, "mkdir", lambda self, *a, **k: fail("mkdir", self, *a, **k))
        elif call == "rename":
            patch.setattr(runner.os, "replace", lambda a, b: fail("rename", a, b))
        elif call == "flush":
            patch.setattr(runner, "sync", lambda path: fail("flush", path))
        one = Versions("one", meanwhile=raising(FULL) if call == "write" else None)
        bad, good = export(tmp_path, one, Versions("two"), factor=2.0)
    assert bad.failure == "OSError: [Errno 28] No space left on device" and good.passed
    assert told(tmp_path) == [("one", 7, False), ("two", 7, True)]
    assert sorted(os.listdir(tmp_path / "one")) == ["1", "manifest.json"]  # as it was
    assert (tmp_path / "one/1/factor.txt").read_text() == "1.0"


@pytest.mark.parametrize("full", [FULL, tf.errors.ResourceExhaustedError(None, None, "No space left on device")])
def test_what_is_half_written_on_a_full_disk_is_not_kept(tmp_path, full):
    # Its room is needed for the report and for the other hooks.
    def fill():
        (tmp_path / ".one.partial" / "1" / "half.bin").write_bytes(b"0" * 4096)
        raise full

    bad, good = export(tmp_path, Versions("one", meanwhile=fill), Versions("two"))
    assert (bad.passed, bad.path, good.passed) == (False, "one.failed", True)
    assert os.listdir(tmp_path / "one.failed") == ["error.txt"]
    assert sorted(os.listdir(tmp_path)) == ["one.failed", "report.html", "report.json", "two"]


def test_no_room_for_the_report_leaves_none_that_is_not_true(tmp_path, monkeypatch):
    export(tmp_path, Versions("one"), Versions("two"), factor=1.0, step=3)

    def fail(path, value):
        raise FULL

    monkeypatch.setattr(report, "write_json", fail)
    with pytest.raises(RunError) as caught:
        export(tmp_path, Versions("one"), Versions("two"), factor=2.0)
    assert str(caught.value) == (
        f"{tmp_path / 'report.json'} could not be written: No space left on device; there is no report now."
        " Mend that and export again."
    )
    assert not (tmp_path / "report.json").exists()
    both = [sorted(os.listdir(tmp_path / name)) for name in ("one", "two")]
    assert both == [["1", "2", "manifest.json"]] * 2  # both had a turn


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/exports cannot be made: Not a directory\. Mend that and export again\.$"):
        export(tmp_path / "file" / "exports", Versions())
    (tmp_path / "exports").symlink_to("/unmounted/exports")
    with pytest.raises(
        RunError, match=r"exports cannot be made: it is a link to /unmounted/exports, which does not exist"
    ):
        export(tmp_path / "exports", Versions())


@pytest.mark.parametrize(
    "content", ["", "[", "5", "[]", "{}", "[5]", '[{"hook": "saved"}]', "[[[", '[{"hook": "saved", "passed": true}]']
)
def test_a_damaged_report_is_no_report(tmp_path, content):
    export(tmp_path, Versions())
    assert report.is_current(tmp_path, ["saved"], 7)
    assert not report.is_current(tmp_path, ["saved"], 8) and not report.is_current(tmp_path, ["saved", "lite"], 7)
    (tmp_path / "report.json").write_text(content)
    assert not report.is_current(tmp_path, ["saved"], 7)


def test_an_artefact_that_has_changed_is_exported_anew(tmp_path, caplog):
    export(tmp_path, Versions())
    artefact = tmp_path / "saved/1/factor.txt"
    artefact.write_text("1.4")
    assert not report.is_current(tmp_path, ["saved"], 7)
    assert caplog.messages[-1] == f"{tmp_path / 'saved/1'} has changed since it was exported: it is exported again"
    artefact.write_text("1.5")
    assert report.is_current(tmp_path, ["saved"], 7)
    shutil.rmtree(tmp_path / "saved")
    assert not report.is_current(tmp_path, ["saved"], 7)


def test_reports_of_other_hooks_stay_while_they_are_true(tmp_path):
    def exported(hook, step, batches=(BATCH,), **state):
        export_all([hook], Scale(1.5), batches, {}, tmp_path, step, keeps_others=True, **state)
        return told(tmp_path)

    assert exported(Versions("one"), 7) == [("one", 7, True)]
    assert exported(Versions("two"), 7) == [("two", 7, True), ("one", 7, True)]
    assert report.is_current(tmp_path, ["one"], 7) and report.is_current(tmp_path, ["one", "two"], 7)
    (tmp_path / "one/1/factor.txt").write_text("1.4")
    assert exported(Versions("three"), 7) == [("three", 7, True), ("two", 7, True)]
    assert exported(Versions("two"), 9) == [("two", 9, True)]  # of another state
    export(tmp_path, Versions("four"), step=9)
    assert told(tmp_path) == [("four", 9, True)]  # not asked to keep them
    assert exported(Versions("five"), 9, weights="ema") == [("five", 9, True)]  # other weights of the same step
    assert report.is_current(tmp_path, ["five"], 9, weights="ema") and not report.is_current(tmp_path, ["five"], 9)
    assert exported(Versions("six"), 9, weights="ema", split="dev") == [("six", 9, True)]  # other examples
    assert exported(Versions("seven"), 9, [BATCH, BATCH], weights="ema", split="dev") == [("seven", 9, True)]

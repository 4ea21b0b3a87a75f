"""framework/sweep/runner.py: every trial is run once, whatever ends trials, workers or the sweep."""

import errno
import json
import math
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from framework import files
from framework.distribute import memory
from framework.errors import DataError, MachineError, NonFiniteError, RunError, UserError
from framework.sweep import runner, worker
from framework.sweep.runner import Request, Runner
from tests.sweep.spaces import opened

pytest.importorskip("optuna", reason="needs the extra 'sweep'")

DONE = {"status": "finished", "step": 10}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(runner, "_STOP_SECONDS", 0.2)


class FakeWorker:
    """Stands in for a process: `scripts` has the accuracies of each trial, and how it ends."""

    scripts: ClassVar = {}
    made: ClassVar = []
    most_at_once = 0

    def __init__(self):
        self.made.append(self)
        self.is_usable, self.trials = True, 0
        self.tasks, self.left, self.ended = [], [], False

    def begin(self, task):
        assert self.is_usable and not self.left
        self.trials += 1
        self.tasks.append(task)
        self.folder = Path(task.workdir)
        self.folder.mkdir(exist_ok=True)
        values, self.ending = self.scripts[int(task.workdir[-4:])]
        self.left = [{"modes": {}}, *values, self.ending]
        type(self).most_at_once = max(self.most_at_once, sum(bool(worker.left) for worker in self.made))

    def answer(self):
        if self.ending is KeyboardInterrupt and len(self.left) == 1:
            raise KeyboardInterrupt
        if not self.left:
            return None
        said = self.left.pop(0)
        if isinstance(said, float):
            path = self.folder / "metrics.jsonl"
            step = len(path.read_text().splitlines()) if path.exists() else 0
            with path.open("a") as file:
                value = said if math.isfinite(said) else None
                file.write(json.dumps({"step": step, "loss": 9.0, "eval/test/accuracy": value}) + "\n")
            return None
        self.is_usable = self.is_usable and "error" not in said
        return said

    def stop(self):
        self.is_usable = False
        self.left = [{"status": "interrupted", "step": 5}]

    def end(self):
        self.ended, self.left = True, []


def trained(*values):
    return values, DONE | {"best": {"test/accuracy": max(values)}}


def failing(why="loss is NaN at step 3"):
    return (), {"error": why}


def caused(error, cause):
    error.__cause__ = cause
    return error


def run(folder, scripts, trials, parallel=1, **plan):
    FakeWorker.scripts, FakeWorker.made, FakeWorker.most_at_once = scripts, [], 0
    study = opened(folder, **plan)
    Runner(study, Request("tests/tiny.py", ["--config.seed=1"], folder), trials, parallel, (), FakeWorker).run()
    assert all(worker.ended for worker in FakeWorker.made)
    return study


def tasks():
    return [task for worker in FakeWorker.made for task in worker.tasks]


@pytest.mark.parametrize("parallel", [1, 3])
def test_each_trial_is_trained_once_in_its_folder(tmp_path, parallel):
    study = run(tmp_path, {number: trained(0.1, number / 10) for number in range(5)}, 5, parallel)
    assert [(row["state"], row["value"]) for row in study.rows()] == [
        ("finished", max(0.1, number / 10)) for number in range(5)
    ]
    assert sorted(task.workdir for task in tasks()) == [str(tmp_path / f"trial-{number:04d}") for number in range(5)]
    assert len(FakeWorker.made) == FakeWorker.most_at_once == parallel
    assert all(task.overrides[0] == "--config.seed=1" and len(task.overrides) == 2 for task in tasks())


def test_enough_trials_are_enough(tmp_path):
    run(tmp_path, {number: trained(0.5) for number in range(2)}, 2)
    assert run(tmp_path, {}, 2).started == 2 and not FakeWorker.made


def test_a_trial_that_the_pruner_gives_up_is_stopped_and_its_worker_replaced(tmp_path):
    scripts = {number: trained(0.5, 0.6, 0.7) for number in range(5)} | {4: trained(0.4, 0.9), 5: trained(0.8)}
    study = run(tmp_path, scripts, 6, pruner="median")
    assert [row["state"] for row in study.rows()] == ["finished"] * 4 + ["ended early", "finished"]
    assert [len(worker.tasks) for worker in FakeWorker.made] == [5, 1]


def test_evaluations_that_are_not_finite_count_when_trials_are_compared(tmp_path):
    """The first finite value of the fifth is its third one: below the third ones of the others, above their first."""
    scripts = {number: trained(0.1, 0.1, 0.7) for number in range(4)} | {4: trained(math.nan, math.nan, 0.5, 0.9)}
    study = run(tmp_path, scripts, 5, pruner="median")
    assert [row["state"] for row in study.rows()] == ["finished"] * 4 + ["ended early"]
    assert [trial.intermediate_values for trial in study._trials()[3:]] == [{1: 0.1, 2: 0.1, 3: 0.7}, {3: 0.5}]


def test_a_failed_trial_is_counted_and_its_worker_replaced(tmp_path):
    study = run(tmp_path, {0: trained(0.5), 1: failing(), 2: trained(0.6)}, 3)
    assert [(row["state"], row["error"]) for row in study.rows()] == [
        ("finished", ""),
        ("failed", "loss is NaN at step 3"),
        ("finished", ""),
    ]
    assert [len(worker.tasks) for worker in FakeWorker.made] == [2, 1]


def test_a_sweep_whose_first_trials_fail_gives_up(tmp_path):
    with pytest.raises(
        RunError, match=r"^the first 3 trials failed\. Trial 2 \(--config\.\S+\): there is no such key$"
    ):
        run(tmp_path, {number: failing("there is no such key") for number in range(9)}, 9)
    assert len(tasks()) == 3 and all(worker.ended for worker in FakeWorker.made)


def test_a_full_disk_stops_the_sweep_and_fails_no_trial(tmp_path):
    """Else each of the trials that are left would begin, fail, and count."""
    full = (), {"error": "metrics.jsonl cannot be written: No space left on device.", "is_of_machine": True}
    with pytest.raises(RunError, match=r"^trial 1: metrics\.jsonl cannot be written: No space left on device\.$"):
        run(tmp_path, {0: trained(0.5), 1: full, 2: trained(0.75)}, 3)
    first = tasks()[1]
    study = run(tmp_path, {1: trained(0.25), 2: trained(0.75)}, 3)
    assert tasks()[0] == first
    assert [(row["state"], row["value"]) for row in study.rows()] == [
        ("finished", value) for value in (0.5, 0.25, 0.75)
    ]


@pytest.mark.parametrize(
    ("error", "is_of_machine"),
    [
        (MachineError("full"), True),
        (DataError("gone"), True),
        (caused(UserError("the folder cannot be written"), OSError(errno.ENOSPC, "full")), True),
        (caused(UserError("the folder cannot be written"), OSError(errno.EACCES, "denied")), False),
        (NonFiniteError("loss"), False),
        (RunError("it keeps compiling"), False),
    ],
)
def test_a_worker_says_whether_the_machine_or_the_trial_failed(monkeypatch, error, is_of_machine):
    def build(*arguments):
        raise error

    monkeypatch.setattr("framework.run.build.build", build)
    answer = worker._train(worker.Task("x.py", (), "run"), lambda answer: None)
    is_bad_input = isinstance(error, UserError)
    assert answer == {"error": str(error), "is_bad_input": is_bad_input, "is_of_machine": is_of_machine}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_memory_of_a_trial_is_not_that_of_the_trials_before_it(monkeypatch):
    """They share a process, whose greatest size would be told of each of them."""
    peaks = []

    def build(*arguments):
        peaks.append(memory.peak_memory())
        raise RunError("enough")

    monkeypatch.setattr("framework.run.build.build", build)
    large = np.ones(2**25)  # 256 MB
    assert memory.peak_memory() > large.nbytes
    before = memory.peak_memory()
    del large
    worker._train(worker.Task("x.py", (), "run"), lambda answer: None)
    assert peaks[0] < before - 2**27


def test_an_interrupted_sweep_goes_on_with_the_same_trial(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {0: trained(0.5), 1: ((0.3,), KeyboardInterrupt)}, 3)
    first = tasks()[1]
    assert all(worker.ended for worker in FakeWorker.made)
    study = run(tmp_path, {1: trained(0.6), 2: trained(0.7)}, 3)
    assert tasks()[0] == first
    assert [(row["number"], row["state"], row["value"]) for row in study.rows()] == [
        (0, "finished", 0.5),
        (1, "finished", 0.6),
        (2, "finished", 0.7),
    ]


def test_a_trial_that_another_process_trains_is_left_to_it(tmp_path):
    opened(tmp_path).ask()
    with files.held(tmp_path / "trial-0000.lock", str):
        study = run(tmp_path, {1: trained(0.5)}, 2)
    assert [row["state"] for row in study.rows()] == ["unfinished", "finished"]


def test_a_trial_that_another_process_has_ended_meanwhile_is_not_trained_again(tmp_path, monkeypatch):
    study = opened(tmp_path)
    study.ask(), study.ask()
    unfinished = type(study).unfinished

    def ended_by_another(ours):
        found = unfinished(ours)
        study.end(found[1], 0.25)
        return found

    monkeypatch.setattr(type(study), "unfinished", ended_by_another)
    found = run(tmp_path, {0: trained(0.5), 2: trained(0.75)}, 3)
    assert [row["value"] for row in found.rows()] == [0.5, 0.25, 0.75]
    assert [task.workdir[-1] for task in tasks()] == ["0", "2"]


def test_a_worker_that_is_gone_is_a_failed_trial_with_its_status(monkeypatch):
    monkeypatch.setattr(worker.sys, "executable", "false")
    gone = worker.Worker()
    gone._process.wait()
    gone.begin(worker.Task("tests/tiny.py", (), "nowhere"))
    assert gone.answer() == {"error": "its process ended with status 1; its output is in nowhere.log"}
    assert not gone.is_usable
    gone.end()


def test_a_worker_imports_nothing_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "traceback.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    ours = worker.Worker()
    try:
        ours.begin(worker.Task("no.py", (), str(tmp_path / "run")))
        while (answer := ours.answer()) is None:
            time.sleep(0.02)
    finally:
        ours.end()
    assert answer["is_bad_input"] and answer["error"].startswith("--config=no.py cannot be read"), answer


def test_a_trial_of_other_devices_has_a_process_of_its_own(tmp_path):
    def sweep(trial):
        return {"runtime.intra_op_threads": trial.suggest_int("threads", 1, 4)}

    run(tmp_path, {number: trained(0.5) for number in range(3)}, 3, sweep=sweep)
    assert [len(worker.tasks) for worker in FakeWorker.made] == [1, 1, 1]

"""The loop: an interrupted run ends in the bits of one that was not; what a run writes, and when."""

import json
import threading
import time
from pathlib import Path

import pytest

from framework.checkpoint import checkpoints, storage
from framework.checkpoint.checkpoints import digest, read_arrays
from framework.config import RunError
from framework.run import evaluation, loop
from tests.run.tiny_runs import TINY, before_blocks, build, interrupt_at, rows, snapshot


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "whole"
    built = build(workdir)
    result = loop.train(built)
    return built, result, workdir


@pytest.mark.parametrize(
    ("stops", "mode"),
    [
        # Fast in a graph: tests/test_exact_resume.py, at random points.
        *(pytest.param(stops, "graph", marks=pytest.mark.slow) for stops in ((1,), (20, 33), (1, 20, 21, 33))),
        ((20,), "xla"),
    ],
)
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, uninterrupted, stops, mode):
    settings = {}
    if mode == "xla":
        settings["log.histograms_every"] = ""  # a program of their own: as exact in a graph
        whole = build(tmp_path / "whole", mode, **settings)
        loop.train(whole)
        expected, expected_rows = snapshot(whole), rows(tmp_path / "whole", "examples_per_second")
    else:
        whole, _, workdir = uninterrupted
        expected, expected_rows = snapshot(whole), rows(workdir, "examples_per_second")
    for stop in stops:
        built = build(tmp_path / "run", mode, **settings)
        interrupt_at(built, stop)
        result = loop.train(built)
        assert result["status"] == "interrupted"
        assert stop <= result["step"] < 40
        assert built.checkpoints.steps()[-1] == result["step"]
    built = build(tmp_path / "run", mode, **settings)
    assert loop.train(built)["status"] == "finished"
    assert snapshot(built) == expected
    assert rows(tmp_path / "run", "examples_per_second") == expected_rows


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, uninterrupted, monkeypatch):
    """Step 20 is written when training is beyond it, and holds the bits of step 20."""
    built, beyond, written_at = build(tmp_path / "run"), threading.Event(), []
    parts = storage._chunks

    def waiting(array):
        assert beyond.wait(60)
        written_at.append(int(built.state.step))
        return parts(array)

    monkeypatch.setattr(storage, "_chunks", waiting)
    before_blocks(built, lambda first, k: beyond.set() if first > 24 else None)
    loop.train(built)
    assert written_at[0] > 24
    for step in (20, 40):
        ours, whole = (read_arrays(built_.checkpoints.directory.path(step)) for built_ in (built, uninterrupted[0]))
        assert ours["step"] == step and digest(ours) == digest(whole)
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint writer"]


def test_a_signal_during_a_write_saves_its_own_step_too(tmp_path, uninterrupted, monkeypatch):
    built, parts = build(tmp_path / "run"), storage._chunks

    def slow(array):
        time.sleep(0.05)  # about two seconds a checkpoint
        return parts(array)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_chunks", slow)
        interrupt_at(built, 21)
        result = loop.train(built)
    assert (result["status"], built.checkpoints.steps()) == ("interrupted", [20, result["step"]])
    assert 21 <= result["step"] < 40
    again = build(tmp_path / "run")
    assert loop.train(again)["status"] == "finished"
    assert snapshot(again) == snapshot(uninterrupted[0])


def full_disk_at(monkeypatch, step):
    """The checkpoint of that step, and no other, goes to the device that is always full."""
    write = checkpoints.write_arrays

    def writing(folder, arrays, facts, abandoned):
        with monkeypatch.context() as patch:
            if facts["step"] == step:
                patch.setattr(storage, "_ARRAYS", "/dev/full")
            write(folder, arrays, facts, abandoned)

    monkeypatch.setattr(checkpoints, "write_arrays", writing)


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk_at(patch, 20)
        with pytest.raises(RunError) as caught:
            loop.train(build(tmp_path / "run", **{"checkpoint.every": "10 steps"}))
    assert str(caught.value) == (
        f"{tmp_path / 'run' / 'checkpoints'}: the checkpoint of step 20 could not be saved: [Errno 28] No space left on"
        " device; the last complete one is of step 10. Mend that and type the same command again."
    )
    assert not (tmp_path / "run" / "result.json").exists()
    again = build(tmp_path / "run", **{"checkpoint.every": "10 steps"})
    loop.train(again)
    assert snapshot(again) == snapshot(uninterrupted[0])
    assert rows(tmp_path / "run", "examples_per_second") == rows(uninterrupted[2], "examples_per_second")


@pytest.mark.parametrize("asynchronous", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_full_disk_is_passed_over_on_request_but_at_the_end(tmp_path, monkeypatch, asynchronous):
    settings = {"checkpoint.every": "10 steps", "checkpoint.on_error": "continue"}
    settings |= {"checkpoint.asynchronous": asynchronous}
    with monkeypatch.context() as patch:
        full_disk_at(patch, 20)
        first = build(tmp_path / "first", **settings)
        assert loop.train(first)["status"] == "finished"
    assert first.checkpoints.steps() == [10, 30, 40]
    full_disk_at(monkeypatch, 40)
    with pytest.raises(RunError, match=r"of step 40 could not .*; the last complete one is of step 30\."):
        loop.train(build(tmp_path / "second", **settings))
    assert not (tmp_path / "second" / "result.json").exists()


def test_a_full_disk_elsewhere_in_the_run_folder_is_one_line_too(tmp_path, monkeypatch):
    write = loop.write_json

    def writing(path, value):
        if path.name == "result.json":
            path = Path("/dev/full")
            path.write_text("1" * 100_000)
        write(path, value)

    monkeypatch.setattr(loop, "write_json", writing)
    with pytest.raises(RunError) as caught:
        loop.train(build(tmp_path / "run", **{"train.duration": "2 steps"}))
    expected = f"{tmp_path / 'run'}: [Errno 28] No space left on device. Mend that and type the same command again."
    assert str(caught.value) == expected


def test_an_unsaved_tail_is_written_once(tmp_path, uninterrupted, monkeypatch):
    """A run that dies between a log row and its checkpoint writes that row again, not twice."""
    built = build(tmp_path / "run")
    original = loop._block_length

    def die(run_, hooks, step, progress):
        if step >= 30:
            raise MemoryError
        return original(run_, hooks, step, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_block_length", die)
        with pytest.raises(MemoryError):
            loop.train(built)
    assert built.checkpoints.steps() == [20]
    assert rows(tmp_path / "run")[-1]["step"] == 30
    again = build(tmp_path / "run")
    loop.train(again)
    assert rows(tmp_path / "run", "examples_per_second") == rows(uninterrupted[2], "examples_per_second")


def test_a_row_for_every_logged_step_and_evaluation(uninterrupted):
    _, _, workdir = uninterrupted
    lines = rows(workdir)
    trained = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "eval/test/loss" in line]
    assert [line["step"] for line in trained] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [line["step"] for line in evaluated] == [20, 40]
    counts, norms = ["skipped", "empty_terms"], ["parameter_norm", "update_norm"]
    keys = ["step", "loss", "learning_rate", "gradient_norm", *counts, "accuracy", *norms]
    keys += ["mean/loss", "mean/accuracy", "examples_per_second"]
    assert all(list(line) == keys for line in trained)
    assert all(list(line) == ["step", "eval/test/loss", "eval/test/accuracy"] for line in evaluated)


def test_logged_numbers_are_those_of_the_step(uninterrupted, tmp_path):
    built = build(tmp_path / "other")
    by_step = {line["step"]: line for line in rows(uninterrupted[2]) if "loss" in line}
    for step in range(1, 41):
        row = built.train_block(1).row(0)
        if step in by_step:
            assert {key: by_step[step][key] for key in row} == row


def test_result_says_what_happened(uninterrupted):
    built, result, workdir = uninterrupted
    assert json.loads((workdir / "result.json").read_text()) == result
    lines = [line for line in rows(workdir) if "eval/test/loss" in line]
    assert result["status"] == "finished"
    assert (result["step"], result["updates"], result["epochs"]) == (40, 40, 2.0)
    assert result["final"] == {name.removeprefix("eval/"): lines[-1][name] for name in lines[-1] if name != "step"}
    assert result["best"]["test/accuracy"] == max(line["eval/test/accuracy"] for line in lines)
    assert result["best"]["test/loss"] == min(line["eval/test/loss"] for line in lines)
    for name, step in result["best_steps"].items():
        (best,) = [line for line in lines if line["step"] == step]
        assert best[f"eval/{name}"] == result["best"][name]
    last = [line for line in rows(workdir) if "loss" in line][-1]
    assert result["train"] == {name: last[f"mean/{name}"] for name in ("loss", "accuracy")}
    assert (result["train_step"], result["seed"]) == (40, 0)
    assert result["overridden"] == {"train.compile": "graph"}
    assert (
        result["hyperparameters"].items()
        >= {"train.compile": "graph", "model.hidden": 128, "log.every": "5 steps"}.items()
    )
    unlike = {"seed", "clip.name", "ema.decay", "eval.every"}  # as by default
    assert not unlike & result["hyperparameters"].keys()
    (start,) = json.loads((workdir / "environment.json").read_text())["starts"]
    assert result["commit"] == {"framework": start["git"], "experiment": start["experiment_git"]}
    assert result["data"]["train"] == {
        "placement": "resident", "source": "made-up digits", "examples": 2560, "bytes": 2560 * 788, "subset": False,
        "sample": built.data.origin["sample"], "sha256": built.data.origin["sha256"],
    }  # fmt: skip
    assert result["parameters"] == 784 * 128 + 128 + 128 * 10 + 10
    assert (result["compile"], result["traces"], result["compilations"]) == ("graph", 1, 0)
    assert 0 < result["time_to_first_step_seconds"] < result["wall_seconds"]
    assert result["examples_per_second"] > 0
    assert result["data_wait"] is None  # resident data are not waited for


def test_run_folder_has_everything(uninterrupted):
    built, _, workdir = uninterrupted
    assert json.loads((workdir / "config.json").read_text())["train"]["duration"] == "40 steps"
    assert (workdir / "tiny.py").read_bytes() == Path(TINY).read_bytes()
    (start,) = json.loads((workdir / "environment.json").read_text())["starts"]
    assert start["step"] == 0
    assert {"command", "packages", "cpu", "cores", "devices", "git", "python", "platform", "time"} <= start.keys()
    assert (workdir / "overrides.txt").exists()
    assert built.checkpoints.steps() == [20, 40]
    for name in ("train", "eval/test"):
        assert list((workdir / "tensorboard" / name).glob("events.out.tfevents.*")), name


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    _, result, workdir = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    again = build(workdir)
    assert loop.train(again) == result
    assert {
        path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"
    } == before
    assert evaluation.evaluate(again) == result["final"]

"""The loop: what it writes and when, that an interrupted run ends in the bits of one that was not, early stopping."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.checkpoint import checkpoints, storage
from framework.checkpoint.checkpoints import Checkpoints, digest, read_arrays
from framework.config import RunError, UserError
from framework.run import build as run
from framework.run import evaluation, exporting, loop
from framework.run.nonfinite import NonFiniteError
from framework.run.replay import replay_step
from framework.run.result import whole_result
from framework.step import compile_choice
from framework.step.compile_choice import CompileChoice
from tests import small

TINY = "tests/tiny.py"


def build(workdir, mode="graph", **overrides):
    return run.build(TINY, {"train.compile": mode, **overrides}, workdir)


def snapshot(built):
    return {path: variable.numpy().tobytes() for path, variable in paths.variables(built.state).items()}


def rows(workdir, *without):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "whole"
    built = build(workdir)
    result = loop.train(built)
    return built, result, workdir


def before_blocks(built, action):
    """Calls action(first step, steps) before every block."""
    train_block = built.train_block

    class Watched:
        block_steps, compiled, inspect = train_block.block_steps, train_block.compiled, train_block.inspect
        layout = train_block.layout

        def __call__(self, k, sums=None):
            action(int(built.state.step), k)
            return train_block(k, sums)

        def compiled_by(self, mode):
            built.train_block = train_block.compiled_by(mode)
            before_blocks(built, action)
            return built.train_block

    built.train_block = Watched()


def interrupt_at(built, step):
    """Sends SIGTERM to ourselves from within the block that reaches `step`."""

    def interrupt(first, k):
        if first < step <= first + k:
            os.kill(os.getpid(), signal.SIGTERM)

    before_blocks(built, interrupt)


@pytest.mark.parametrize(
    ("stops", "mode"), [((1,), "graph"), ((13,), "graph"), ((20, 21, 33), "graph"), ((20, 33), "xla")]
)
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, uninterrupted, stops, mode):
    if mode == "xla":
        whole = build(tmp_path / "whole", mode)
        loop.train(whole)
        expected, expected_rows = snapshot(whole), rows(tmp_path / "whole", "examples_per_second")
    else:
        whole, _, workdir = uninterrupted
        expected, expected_rows = snapshot(whole), rows(workdir, "examples_per_second")
    for stop in stops:
        built = build(tmp_path / "run", mode)
        interrupt_at(built, stop)
        result = loop.train(built)
        assert result["status"] == "interrupted"
        assert stop <= result["step"] < 40
        assert built.checkpoints.steps()[-1] == result["step"]
    built = build(tmp_path / "run", mode)
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


@pytest.mark.parametrize("asynchronous", [True, False])
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
        "sample": built.data.origin["sample"],
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


def test_early_stopping_ends_the_run_and_survives_an_interruption(tmp_path):
    """At learning rate 0 nothing improves after the first evaluation: patience 3 ends it at the fourth."""
    settings = {
        "schedule.learning_rate": 0.0,
        "eval.every": "5 steps",
        "early_stopping.metric": "test/loss",
        "early_stopping.patience": 3,
    }
    first = build(tmp_path / "run", **settings)
    interrupt_at(first, 12)
    assert loop.train(first)["status"] == "interrupted"
    second = build(tmp_path / "run", **settings)
    result = loop.train(second)
    assert (result["status"], result["step"]) == ("stopped early", 20)
    assert (int(second.state.early.step), int(second.state.early.waited)) == (5, 3)
    third = build(tmp_path / "run", **settings)
    assert loop.train(third)["status"] == "stopped early"
    assert int(third.state.step) == 20


def test_best_checkpoint_is_that_of_the_best_evaluation(tmp_path):
    built = build(tmp_path / "run", **{"eval.every": "5 steps", "checkpoint.every": "", "checkpoint.keep": 1})
    loop.train(built)
    lines = {line["step"]: line["eval/test/accuracy"] for line in rows(tmp_path / "run") if "eval/test/loss" in line}
    best = max(lines, key=lambda step: (lines[step], -step))
    assert built.checkpoints.pointed("best") == int(built.state.best.step) == best
    built.checkpoints.restore(built.state, "best")
    assert evaluation.evaluate(built)["test/accuracy"] == lines[best]


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    settings = {
        "optimizer.name": "sgd",
        "schedule.name": "constant",
        "schedule.warmup": "",
        "checkpoint.every": "1 step",
    }
    built = build(tmp_path / "run", **settings, **{"schedule.learning_rate": 1e15})
    with pytest.raises(NonFiniteError) as caught:
        loop.train(built)
    saved = built.checkpoints.steps()
    message = str(caught.value)
    with pytest.raises(NonFiniteError, match=r"Nothing of it is saved; there is no checkpoint yet\. Try"):
        loop.train(build(tmp_path / "none", **{**settings, "schedule.learning_rate": 1e15, "checkpoint.every": ""}))
    assert message.startswith(f"step {saved[-1] + 1} cannot be taken: ")
    assert message.endswith(
        f" at learning_rate=1e+15. Nothing of it is saved; the last checkpoint is of step {saved[-1]}."
        " Try a lower --config.schedule.learning_rate, a warm-up, or --config.clip.name=global_norm."
        f" Batch, indices and state are in {tmp_path / 'run' / 'failure' / f'step-{saved[-1]:08d}'}."
    )
    whole = build(tmp_path / "run", **settings, **{"schedule.learning_rate": 1e15})
    assert whole.open() == saved[-1]


def test_evaluation_without_a_period_happens_at_the_end(tmp_path):
    built = build(tmp_path / "run", **{"eval.every": "", "checkpoint.every": "", "log.histograms_every": ""})
    loop.train(built)
    assert [line["step"] for line in rows(tmp_path / "run") if "eval/test/loss" in line] == [40]
    assert built.checkpoints.steps() == [40]


def test_several_evaluation_splits_are_told_apart(tmp_path):
    built = build(tmp_path / "run", **{"eval.splits": ("test", "train_eval"), "train.duration": "5 steps"})
    result = loop.train(built)
    assert list(result["final"]) == ["test/loss", "test/accuracy", "train_eval/loss", "train_eval/accuracy"]
    assert result["data"]["train_eval"]["examples"] == 2560


def test_held_out_examples_are_those_of_the_split(tmp_path):
    built = build(tmp_path / "run", **{"export.examples": 200})
    batches = list(exporting.held_out(built))
    assert [len(batch["label"]) for batch in batches] == [128, 128]
    np.testing.assert_array_equal(batches[1]["label"], built.eval_data["test"].at(1)["label"])


def test_a_second_call_on_the_same_run_counts_its_own_time_only(tmp_path):
    built = build(tmp_path / "run")
    interrupt_at(built, 10)
    first = loop.train(built)
    time.sleep(0.5)
    start = time.monotonic()
    second = loop.train(built)
    taken = time.monotonic() - start
    assert (first["status"], second["status"]) == ("interrupted", "finished")
    assert second["wall_seconds"] <= first["wall_seconds"] + 0.5 + taken + 0.1


def test_the_best_value_of_a_loss_term_is_the_smallest(tmp_path):
    built = build(tmp_path / "run", **{"model.l2": 0.01, "eval.every": "5 steps"})
    result = loop.train(built)
    for term in ("loss/cross_entropy", "loss/penalty"):
        values = [line[f"eval/test/{term}"] for line in rows(tmp_path / "run") if "eval/test/loss" in line]
        assert result["best"][f"test/{term}"] == min(values) < max(values)


def test_a_block_takes_no_longer_than_a_signal_may_wait(tmp_path, monkeypatch):
    """With steps of a second, blocks become short; the numbers stay what they are."""
    built = build(tmp_path / "run", **{"train.block_steps": 100, "log.every": "40 steps", "log.histograms_every": ""})
    lengths = []
    train_block = built.train_block

    class Slow:
        block_steps, compiled, inspect = train_block.block_steps, train_block.compiled, train_block.inspect
        layout = train_block.layout

        def __call__(self, k, sums=None):
            lengths.append(k)
            return train_block(k, sums)

    built.train_block = Slow()
    monkeypatch.setattr(loop.Progress, "step_seconds", property(lambda self: 0.5 if lengths else 0.0))
    loop.train(built)
    assert lengths[0] == 1
    assert set(lengths[1:]) <= {1, 2, 3, 4} and max(lengths) == 4
    assert sum(lengths) == 40


def test_rows_are_on_disk_before_the_checkpoint(tmp_path, monkeypatch):
    """A checkpoint at step S means that the rows up to S are not written again."""
    happened = []
    flush, save = loop.MultiWriter.flush, Checkpoints.save
    monkeypatch.setattr(loop.MultiWriter, "flush", lambda self: happened.append("flush") or flush(self))
    monkeypatch.setattr(Checkpoints, "save", lambda *a: happened.append("save") or save(*a))
    loop.train(build(tmp_path / "run", **{"train.duration": "4 steps"}))
    saves = [place for place, what in enumerate(happened) if what == "save"]
    assert saves and all(happened[place - 1] == "flush" for place in saves)


def test_best_and_time_outlive_an_interruption(tmp_path):
    """The best evaluation was before the interruption: learning ends there."""
    settings = {"eval.every": "10 steps", "schedule.name": "piecewise", "schedule.warmup": ""}
    settings |= {"schedule.boundaries": ("20 steps",), "schedule.factors": (0.0,), "schedule.final_fraction": 0.0}
    first = build(tmp_path / "run", **settings)
    interrupt_at(first, 21)
    before = loop.train(first)
    second = build(tmp_path / "run", **settings)
    second.note = {}
    result = loop.train(second)
    assert result["best"]["test/accuracy"] >= before["best"]["test/accuracy"]
    # A start counts to its last save: what the sum holds is bounded by times within the starts, not by the disk's.
    saved = second.note["wall_seconds"]
    assert before["time_to_first_step_seconds"] < saved <= before["wall_seconds"]
    assert result["wall_seconds"] > saved + result["time_to_first_step_seconds"]
    assert second.note["evaluated_step"] == before["final_step"] == 20
    assert result["final_step"] == 40


def test_a_result_of_an_earlier_interruption_does_not_stand_for_the_end(tmp_path):
    """Killed after the last checkpoint and before result.json: the old one says 'interrupted at 12'."""
    first = build(tmp_path / "run")
    interrupt_at(first, 12)
    old = loop.train(first)
    loop.train(build(tmp_path / "run"))
    (tmp_path / "run" / "result.json").write_text(json.dumps(old))
    result = loop.train(build(tmp_path / "run"))
    assert (result["status"], result["step"], result["final_step"]) == ("finished", 40, 40)


def test_a_state_that_no_checkpoint_holds_is_not_trained_on(tmp_path):
    built = build(tmp_path / "run")
    built.train_block(2)
    with pytest.raises(UserError) as caught:
        loop.train(built)
    assert str(caught.value) == (
        f"the state in memory is at step 2, but {tmp_path / 'run'} has no checkpoint of that step. Build the run again."
    )


@pytest.fixture
def chooses(monkeypatch):
    """Makes tuning take a candidate that is not the first; (mode, steps) of each time it was asked."""
    asked = []

    def choose(block, modes, replicas, steps):
        asked.append((modes, steps))
        return block.compiled_by("xla_update"), CompileChoice("xla_update", {"graph": 2.0, "xla": None}, "the fastest")

    monkeypatch.setattr(compile_choice, "choose", choose)
    return asked


def test_auto_is_tuned_once_and_what_it_chose_is_kept_with_the_run(tmp_path, chooses, caplog):
    caplog.set_level("INFO")
    whole, parts = build(tmp_path / "whole", "auto"), build(tmp_path / "parts", "auto")
    assert whole.train_block.compiled.mode == "graph"  # until it is tuned
    result = loop.train(whole)
    assert "train.compile=auto: xla_update, the fastest (ms a step: graph 2, xla -)" in caplog.messages
    assert re.search(
        r"first step after [\d.]+ s, of which building [\d.]+, tuning [\d.]+, compiling [\d.]+", caplog.text
    )
    kept = {"mode": "xla_update", "milliseconds": {"graph": 2.0, "xla": None}, "reason": "the fastest", "compiling": 0}
    assert (result["compile"], result["tuning"], result["traces"]) == ("xla_update", kept, 1)
    assert json.loads((tmp_path / "whole" / "tuning.json").read_text()) == kept
    assert whole.eval_blocks["test"].compiled.mode == "graph"  # which is what goes with it

    interrupt_at(parts, 20)
    loop.train(parts)
    assert chooses == [(compile_choice.MODES, 40)] * 2
    (tmp_path / "parts" / "tuning.json").unlink()  # a checkpoint that was copied elsewhere knows by itself
    caplog.clear()
    again = build(tmp_path / "parts", "auto")
    loop.train(again)
    assert "train.compile=auto: xla_update, as before" in caplog.messages
    assert len(chooses) == 2
    assert again.train_block.compiled.mode == "xla_update"
    assert digest(again.state) == digest(whole.state)

    looked = run.build(TINY, {}, tmp_path / "whole", from_workdir=True)
    assert looked.train_block.compiled.mode == "xla_update"
    assert evaluation.evaluate(looked) == result["final"]
    shown = replay_step(looked, 10)
    assert shown.logged
    assert not shown.differing
    with pytest.raises(UserError) as error:
        build(tmp_path / "whole", "xla_update")
    assert str(error.value) == (
        f"--workdir={tmp_path / 'whole'} holds a run of another config (train.compile: 'auto' there, 'xla_update' now)."
        f" Use another folder; there, --config.resume_from={tmp_path / 'whole'} continues this run."
    )


def test_a_run_that_died_before_its_first_checkpoint_takes_the_same_choice(tmp_path, chooses):
    first = build(tmp_path / "run", "auto")

    def die(first_step, k):
        raise RuntimeError("killed")

    before_blocks(first, die)
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(first)
    assert not (tmp_path / "run" / "checkpoints").exists()
    result = loop.train(build(tmp_path / "run", "auto"))
    assert (result["compile"], len(chooses)) == ("xla_update", 1)


def test_a_choice_that_cannot_be_had_on_these_devices_is_made_again(tmp_path, chooses, monkeypatch):
    built = build(
        tmp_path / "run", "auto", **{"train.duration": "10 steps", "eval.every": "", "log.histograms_every": ""}
    )
    interrupt_at(built, 5)
    loop.train(built)
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "train.duration": "10 steps"}
    elsewhere = build(tmp_path / "run", "auto", **mirrored, **{"eval.every": "", "log.histograms_every": ""})

    def choose(block, modes, replicas, steps):
        chooses.append((modes, steps))
        return block.compiled_by(modes[0]), CompileChoice(modes[0], {}, "the first")

    monkeypatch.setattr(compile_choice, "choose", choose)
    assert loop.train(elsewhere)["compile"] == "graph"
    assert chooses[-1][0] == ("graph", "xla")


class Turning(keras.layers.Layer):
    """Adds a row of a table whose number is in a variable that each step moves on."""

    def __init__(self, take):
        super().__init__()
        self.take = take

    def build(self, shape):
        self.row = self.add_weight("row", [], dtype="int32", trainable=False, initializer="zeros")
        self.table = self.add_weight("table", [40, 6], trainable=False, initializer="zeros")

    def call(self, x, training=False):
        if training:
            self.row.assign((self.row + 1) % 40)
        return x + self.take(self.table, self.row.read_value())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="compilations cannot be seen without /proc")
def test_a_run_that_keeps_compiling_is_stopped_and_saved(tmp_path):
    def turning(workdir, take):
        functions = {"make_model": lambda cfg: keras.Sequential([Turning(take), keras.layers.Dense(3)])}
        settings = {
            "train.compile": "xla",
            "train.block_steps": 2,
            "train.duration": "40 steps",
            "log.every": "20 steps",
        }
        return small.build(workdir, functions=functions, **settings)

    trap = turning(tmp_path / "trap", lambda table, i: table[i])
    with pytest.raises(RunError) as error:
        loop.train(trap)
    calls = trap.train_block.compiled.calls
    step = int(trap.state.step)
    assert step < 20
    assert str(error.value) == (
        f"the training step keeps being compiled: 1 traces and {calls} compilations in {calls} calls"
        " (train.compile='xla'). In a compiled step x[i], with i read from a variable, compiles again for each i: write"
        " tf.gather(x, i). What cannot be changed, such as an LSTM on a CPU, needs --config.train.compile=graph, in"
        f" another folder. Step {step} is saved."
    )
    assert trap.checkpoints.steps() == [step]
    result = loop.train(turning(tmp_path / "healthy", tf.gather))
    assert (result["status"], result["traces"], result["compilations"]) == ("finished", 1, 1)


@pytest.mark.parametrize("name", ["status", "step", "updates", "skipped", "empty_terms", "final", "best"])
def test_a_result_that_lacks_what_is_read_of_it_is_damaged(name):
    """A flipped bit in the name of an entry leaves JSON that is whole."""
    whole = {"status": "finished", "step": 8, "updates": 8, "skipped": 0, "empty_terms": 0, "final": {}, "best": {}}
    assert whole_result(whole) == whole
    with pytest.raises(KeyError, match=name):
        whole_result({key: value for key, value in whole.items() if key != name})

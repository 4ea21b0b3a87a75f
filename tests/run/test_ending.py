"""How a run ends, and what outlives an interruption: early stopping, the best checkpoint, divergence, times."""

import json
import time

import numpy as np
import pytest

from framework.checkpoint.checkpoints import Checkpoints
from framework.config import UserError
from framework.run import evaluation, exporting, loop
from framework.run.nonfinite import NonFiniteError
from tests.run import tiny_runs
from tests.run.tiny_runs import interrupt_at, rows


def build(workdir, **overrides):
    """A run without histograms, whose gradients are a program of their own."""
    return tiny_runs.build(workdir, **{"log.histograms_every": "", **overrides})


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

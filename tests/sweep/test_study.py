"""framework/sweep/study.py: trials stay through kills, keep number and values, and are pruned by the rule."""

import math
import statistics
import threading
import time
from pathlib import Path

import pytest

from framework import files
from framework.errors import UserError
from framework.sweep.study import try_out
from tests.sweep.spaces import FACTS, layers, opened

pytest.importorskip("optuna", reason="needs the extra 'sweep'")


def interrupted(*arguments, **named):
    raise KeyboardInterrupt


def rate(trial):
    name, _, value = trial.overrides[0].partition("=")
    assert name == "--config.schedule.learning_rate"
    return float(value)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposals_are_those_of_a_sweep_that_was_not_stopped(tmp_path, sampler):
    whole = opened(tmp_path / "whole", sampler=sampler)
    expected = []
    for _ in range(14):  # from the eleventh on, tpe looks at the values
        trial = whole.ask()
        expected.append(rate(trial))
        whole.end(trial, -((rate(trial) - 0.3) ** 2))
    assert len(set(expected)) == 14
    found = []
    for _ in range(14):
        study = opened(tmp_path / "stopped", sampler=sampler)  # a start for each trial
        trial = study.ask()
        found.append(rate(trial))
        study.end(trial, -((rate(trial) - 0.3) ** 2))
    assert found == expected


def test_an_unfinished_trial_goes_on_with_its_number_values_and_reports(tmp_path):
    study = opened(tmp_path)
    first, second = study.ask(), study.ask()
    study.report(second, 1, 0.25)
    study.end(first, 0.5)
    again = opened(tmp_path)
    (unfinished,) = again.unfinished()
    assert (unfinished.number, unfinished.overrides, unfinished.reported) == (1, second.overrides, 1)
    again.end(unfinished, 0.75)
    assert [(row["number"], row["state"], row["value"]) for row in again.rows()] == [
        (0, "finished", 0.5),
        (1, "finished", 0.75),
    ]
    assert again.started == 2 and again.best()["number"] == 1 and again.unfinished() == []


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_kill_between_any_two_lines_of_a_beginning_trial_changes_none_of_its_values(tmp_path, sampler):
    def space(trial):
        return {
            "model.hidden": trial.suggest_categorical("hidden", [64, 128, 256]),
            "model.dropout": trial.suggest_float("dropout", 0.0, 0.9, step=0.1),
            "schedule.learning_rate": trial.suggest_float("rate", 0.0, 1.0, step=0.5),
        }

    study = opened(tmp_path, space, sampler=sampler)
    for value in range(11):  # from the eleventh on, tpe looks at the values
        study.end(study.ask(), value / 11)
    running, journal = study.ask(), tmp_path / "sweep.log"
    before = journal.read_bytes()
    expected = study.ask()
    lines = journal.read_bytes()[len(before) :].splitlines(keepends=True)
    for count in range(len(lines) + 1):
        journal.write_bytes(before + b"".join(lines[:count]))
        again = opened(tmp_path, space, sampler=sampler)
        assert again.unfinished()[0] == running
        if count:  # what has ended since must not count for a trial that had begun
            again.end(running, 0.99)
        assert (again.unfinished()[-1] if count else again.ask()) == expected, count
        assert again.started == 13


def test_a_trial_that_was_killed_while_it_failed_and_then_ended_has_no_error(tmp_path, monkeypatch):
    study = opened(tmp_path)
    trial = study.ask()
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(type(study._study), "tell", interrupted)
        study.fail(trial, "no memory")
    again = opened(tmp_path)
    again.end(again.unfinished()[0], 0.5)
    assert [(row["state"], row["error"]) for row in again.rows()] == [("finished", "")]


def test_a_trial_that_had_begun_keeps_its_values_when_the_space_changes(tmp_path):
    trial = opened(tmp_path).ask()
    (unfinished,) = opened(tmp_path, lambda trial: {"model.hidden": trial.suggest_int("hidden", 1, 9)}).unfinished()
    assert unfinished == trial


def test_a_grid_is_taken_in_order_and_ends(tmp_path):
    values = []
    while (trial := (study := opened(tmp_path, layers, sampler="grid")).ask()) is not None:
        values.append(trial.overrides)
        study.end(trial, 0.0)
    assert values == [
        (f"--config.model.hidden={hidden}", f"--config.model.dropout={dropout}")
        for hidden in (64, 128)
        for dropout in (0.0, 0.5)
    ]


def test_two_processes_that_begin_a_grid_at_once_begin_it_once(tmp_path, monkeypatch):
    import optuna

    enqueue = optuna.Study.enqueue_trial

    def slow(study, params):
        time.sleep(0.02)
        enqueue(study, params)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", slow)
    threads = [threading.Thread(target=opened, args=(tmp_path, layers), kwargs={"sampler": "grid"}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened(tmp_path, layers, sampler="grid")._trials()) == 4


def test_a_kill_before_the_plan_was_noted_keeps_the_direction(tmp_path, monkeypatch):
    def killed(study, name, value):
        raise KeyboardInterrupt

    import optuna

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(optuna.Study, "set_user_attr", killed)
        opened(tmp_path, mode="max")
    with pytest.raises(UserError, match="begun with mode='max', not 'min'"):
        opened(tmp_path, mode="min")
    assert opened(tmp_path, mode="max").started == 0


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_the_median_pruner_ends_what_is_below_the_median_of_as_many_evaluations(tmp_path, mode, sign):
    study = opened(tmp_path, mode=mode, pruner="median")
    firsts = [0.1, 0.4, 0.2, 0.3]
    for value in firsts:
        trial = study.ask()
        assert not study.report(trial, 1, sign * value)
        study.end(trial, sign * 0.9)
    median = statistics.median(firsts)
    for value in (median - 0.01, median + 0.01):
        trial = study.ask()
        assert study.report(trial, 1, sign * value) == (value < median)
        study.prune(trial)
    assert [row["state"] for row in study.rows()] == ["finished"] * 4 + ["ended early"] * 2


def test_without_a_pruner_no_trial_ends_early(tmp_path):
    study = opened(tmp_path)
    for value in (0.9, 0.9, 0.9, 0.9, 0.9, 0.1):
        trial = study.ask()
        assert not study.report(trial, 1, value)
        study.end(trial, value)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_metric_that_was_never_finite_is_a_failure_and_never_the_best(tmp_path, value):
    study = opened(tmp_path)
    study.end(study.ask(), value)
    assert study.best() is None
    assert [(row["state"], row["error"]) for row in study.rows()] == [("failed", "test/accuracy was never finite")]


@pytest.mark.parametrize(("mode", "number"), [("max", 1), ("min", 2)])
def test_the_best_is_of_the_trials_that_were_trained_to_their_end(tmp_path, mode, number):
    study = opened(tmp_path, mode=mode)
    for value in (0.5, 0.75, 0.25):
        study.end(study.ask(), value)
    pruned, failed = study.ask(), study.ask()
    study.report(pruned, 1, 0.99 if mode == "max" else 0.01)
    study.prune(pruned)
    study.fail(failed, "no memory")
    assert study.best()["number"] == number and study.rows()[4]["error"] == "no memory"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"mode": "min"}, "mode='max', not 'min'"),
        ({"sampler": "random"}, "sampler='tpe', not 'random'"),
        ({"facts": {**FACTS, "overrides": ["--config.seed=1"]}}, "overrides=[], not ['--config.seed=1']"),
    ],
)
def test_another_sweep_in_the_folder_is_refused(tmp_path, changed, line):
    opened(tmp_path)
    with pytest.raises(UserError) as caught:
        opened(tmp_path, **changed)
    assert str(caught.value) == (
        f"{tmp_path} has a sweep that was begun with {line}. Type what it was begun with, or use another --workdir."
    )


def test_code_that_changes_while_a_sweep_is_stopped_is_named(tmp_path):
    code = {"mnist.py": "sha 1", "code/helpers.py": "sha 2"}
    assert opened(tmp_path).changed(code) == opened(tmp_path).changed(code) == []
    assert opened(tmp_path).changed(code | {"code/helpers.py": "sha 3", "code/new.py": "sha 4"}) == ["code/helpers.py"]
    assert opened(tmp_path).changed(code) == []


def begun(folder):
    """The journal of a sweep with a finished trial and one that is not finished."""
    study = opened(folder)
    study.end(study.ask(), 0.5)
    study.ask()
    return folder / "sweep.log"


def test_a_last_line_that_a_kill_left_incomplete_is_taken_away(tmp_path):
    journal = begun(tmp_path)
    whole = journal.read_bytes()
    for cut in (1, 9):
        journal.write_bytes(whole[:-cut])
        study = opened(tmp_path)
        study.end(study.ask(), 0.75)
        assert [row["state"] for row in opened(tmp_path).rows()] == ["finished"] * 2  # the other was not begun


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: content.replace(b'"op_code"', b'"op_c', 1),
        lambda content: b"[]\n",
        lambda content: b"\xff\n\xff\n",
    ],
)
def test_a_damaged_journal_is_refused_in_one_line(tmp_path, damaged):
    journal = begun(tmp_path)
    journal.write_bytes(damaged(journal.read_bytes()))
    with pytest.raises(UserError, match=r"sweep\.log is damaged \([^\n]+\)\. Put back a copy of it, or use another"):
        opened(tmp_path)


def test_a_journal_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "sweep" / "sweep.log").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for folder, why in (("sweep", "Is a directory"), ("file", "File exists"), ("file/sweep", "Not a directory")):
        with pytest.raises(UserError) as caught:
            opened(tmp_path / folder)
        line = f"{tmp_path / folder / 'sweep.log'} cannot be written: {why}. Use another --workdir."
        assert str(caught.value) == line


def test_a_lock_that_a_kill_left_is_waited_for_three_seconds_and_not_thirty(tmp_path):
    opened(tmp_path).ask()
    (tmp_path / "sweep.log.lock").symlink_to(tmp_path / "sweep.log")
    begin = time.monotonic()
    study = opened(tmp_path)
    assert study.started == 1 and 3 <= time.monotonic() - begin < 20
    assert not (tmp_path / "sweep.log.lock").is_symlink() and files.holder(tmp_path / "sweep.log.held") == ""


def test_the_age_of_a_lock_that_a_kill_left_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = opened(Path("sweep"))  # a relative folder, as --workdir is typed
    lock = study._storage._backend._lock
    lock.acquire()
    assert Path("sweep/sweep.log.lock").stat().st_mtime > 0  # else Optuna would wait for ever
    lock.release()


def test_a_range_that_optuna_refuses_is_said_in_one_line(tmp_path):
    def empty(trial):
        return {"model.hidden": trial.suggest_int("hidden", 3, 2)}

    for ask in (lambda: try_out(empty), opened(tmp_path, empty).ask):
        with pytest.raises(UserError, match=r"^sweep\(trial\): .*low.*high[^\n]*$") as caught:
            ask()
        assert "folder" not in str(caught.value)


def test_choices_that_change_while_a_sweep_is_stopped_are_refused_in_one_line(tmp_path):
    def choosing(*choices):
        return lambda trial: {"model.hidden": trial.suggest_categorical("hidden", choices)}

    study = opened(tmp_path, choosing(8, 16))
    study.end(study.ask(), 0.5)
    with pytest.raises(UserError, match=r"^sweep\(trial\): [^\n]+ In all trials of a folder a name has the same"):
        opened(tmp_path, choosing(8, 16, 32)).ask()


def test_a_grid_that_changes_while_a_sweep_is_stopped_is_refused(tmp_path):
    def numbered(most):
        return lambda trial: {"model.hidden": trial.suggest_int("setting", 0, most)}

    study = opened(tmp_path, numbered(3), sampler="grid")
    study.end(study.ask(), 0.5)
    assert opened(tmp_path, numbered(3), sampler="grid").started == 1
    for most in (2, 4):  # a fifth combination would never be trained
        with pytest.raises(UserError) as caught:
            opened(tmp_path, numbered(most), sampler="grid")
        assert str(caught.value) == (
            f"{tmp_path} has a sweep that was begun with a grid of 4 combinations; sweep(trial) now has other ones,"
            f" {most + 1}. Use another --workdir."
        )

"""--mode=sweep: each trial ends in the bits of a run alone; a sweep that is killed loses none and runs none twice."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from framework import extras
from framework.checkpoint import digest, other_runs, read_arrays
from framework.config import flatten
from framework.config.overrides import override
from framework.folder import starts
from framework.modes import sweep
from framework.sweep import runner
from tests import tiny
from tests.distribute.test_lifeline import are_gone
from tests.sweep.spaces import opened

pytest.importorskip("optuna", reason="needs the extra 'sweep'")

ROOT = Path(__file__).resolve().parents[2]
SWEPT = "--config=tests/swept.py"
SWEEP = "--mode=sweep"


def sha(workdir):
    return digest(read_arrays(other_runs.find("resume_from", str(workdir))))


def best_accuracy(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return max(row["eval/test/accuracy"] for row in rows if "eval/test/accuracy" in row)


def table_of(printed):
    """{number of a trial: (value, state)} of the table that a sweep prints."""
    rows = re.findall(r"^ +(\d+)  (\S*) +(finished|failed|unfinished|ended early)  ", printed, re.MULTILINE)
    return {int(number): (value, state) for number, value, state in rows}


def no_worker(monkeypatch):
    """Makes the start of a process fail: what is bad is found before, or by the process that is not there."""

    class Absent:
        def __init__(self):
            self.is_usable = True

        def begin(self, task):
            raise AssertionError("the sweep began")

        def end(self):
            pass

    monkeypatch.setattr("framework.modes.sweep.Worker", Absent)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--config=tests/tiny.py"],
            "tests/tiny.py does not define sweep(trial), the space of the sweep, e.g. def sweep(trial): return"
            " {'model.hidden': trial.suggest_categorical('hidden', [64, 128])}.",
        ),
        (
            [SWEPT, "--config.runtime.strategy=multi_worker"],
            "--mode=sweep trains each trial in one process, but runtime.strategy='multi_worker' is several. Leave it"
            " out.",
        ),
        ([SWEPT, "--config.model.hidden=3"], "model.hidden=3 is refused."),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(tmp_path, capsys, monkeypatch, arguments, line):
    no_worker(monkeypatch)
    assert launch.main(["launch.py", *arguments, SWEEP, f"--workdir={tmp_path / 'sweep'}"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "sweep").exists()


def test_the_folder_of_a_run_is_no_folder_of_a_sweep(tmp_path, capsys, monkeypatch):
    no_worker(monkeypatch)
    (tmp_path / "config.json").write_text("{}")
    assert launch.main(["launch.py", SWEPT, SWEEP, f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: --workdir={tmp_path} is the folder of a run. Type a folder of its own for the sweep.\n"
    )


def test_trials_of_a_sweep_whose_journal_is_gone_are_not_taken_for_those_of_a_new_one(tmp_path, capsys, monkeypatch):
    no_worker(monkeypatch)
    (tmp_path / "trial-0003").mkdir()
    (tmp_path / "trial-0000.log").write_text("")
    assert launch.main(["launch.py", SWEPT, SWEEP, f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has trial-0003 of a sweep whose sweep.log is gone. Remove the folders of its trials too, or"
        " use another --workdir.\n"
    )


def test_without_optuna_the_first_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    no_worker(monkeypatch)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert launch.main(["launch.py", SWEPT, SWEEP, f"--workdir={tmp_path / 'sweep'}"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: optuna is not installed. Type python -m pip install {extras.pins('sweep')[0]}\n"
    )
    assert not (tmp_path / "sweep").exists()


def answers(monkeypatch, modes):
    """Makes the process that builds a run answer with these metrics, and no trial begin."""

    class Answering:
        is_usable = True

        def begin(self, task):
            self.left = [{"modes": modes}, {"status": "built"}]

        def answer(self):
            return self.left.pop(0)

        def end(self):
            pass

    monkeypatch.setattr("framework.modes.sweep.Worker", Answering)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--metric=test/acuracy"],
            "--metric=test/acuracy is not one of test/loss, test/accuracy. Did you mean 'test/accuracy'?",
        ),
        (
            ["--config.checkpoint.best_metric="],
            "--mode=sweep needs the metric that is best. Type e.g. --metric=test/loss.",
        ),
        (
            ["--config.model.hidden=32"],
            "--config.model.hidden is typed, but sweep(trial) sets model.hidden in each trial. Leave it out.",
        ),
    ],
)
def test_what_no_trial_can_use_is_refused_in_one_line(tmp_path, capsys, monkeypatch, arguments, line):
    answers(monkeypatch, {"test/loss": "min", "test/accuracy": "max"})
    assert launch.main(["launch.py", SWEPT, SWEEP, f"--workdir={tmp_path / 'sweep'}", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_journal_that_can_no_longer_be_written_ends_the_sweep_in_one_line(tmp_path, capsys, monkeypatch):
    class Full:
        def __init__(self, *arguments):
            pass

        def run(self):
            raise OSError(28, "No space left on device", "sweep.log")

    answers(monkeypatch, {"test/accuracy": "max"})
    monkeypatch.setattr("framework.modes.sweep.Runner", Full)
    assert launch.main(["launch.py", SWEPT, SWEEP, f"--workdir={tmp_path / 'sweep'}"]) == 1
    assert capsys.readouterr().err == (
        "error: the sweep stopped: [Errno 28] No space left on device: 'sweep.log'. Mend that and type the same command"
        " again.\n"
    )


SPACE = """
from tests.swept import get_config, make_data, make_loss, make_metrics, make_model, make_schedule


def sweep(trial):
    return {VALUES}
"""


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("'model.hiden': 8", "--config.model.hiden=8: there is no key 'model.hiden'. Did you mean 'model.hidden'?"),
        (
            "'early_stopping.metric': None",
            "--config.early_stopping.metric=None: 'None' is not of type str, but NoneType. ",
        ),
        ("'model.hidden': 8.0", "--config.model.hidden=8.0: '8.0' is not of type int."),
        ("'data.shuffle': [True]", "--config.data.shuffle=[True]: '[True]' is not of type bool, but list. "),
    ],
)
def test_a_value_that_no_config_can_have_is_refused_in_one_line(tmp_path, capsys, monkeypatch, values, line):
    answers(monkeypatch, {"test/accuracy": "max"})
    (tmp_path / "space.py").write_text(SPACE.replace("VALUES", values))
    arguments = [f"--config={tmp_path / 'space.py'}", SWEEP, f"--workdir={tmp_path / 'sweep'}"]
    assert launch.main(["launch.py", *arguments, "--metric=test/accuracy"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: sweep(trial): {line}") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "key"), [("--noconfig.data.shuffle", "data.shuffle"), ("--seed=1", "seed"), ("-config.seed=1", "seed")]
)
def test_a_key_that_is_typed_in_any_form_is_no_key_of_a_trial(tmp_path, capsys, monkeypatch, typed, key):
    answers(monkeypatch, {"test/accuracy": "max"})
    (tmp_path / "space.py").write_text(SPACE.replace("VALUES", f"'{key}': trial.suggest_int('value', 0, 1)"))
    arguments = [f"--config={tmp_path / 'space.py'}", SWEEP, f"--workdir={tmp_path / 'sweep'}", typed]
    assert launch.main(["launch.py", *arguments, "--metric=test/accuracy"]) == 2
    said = capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()  # where a sweep without the key may begin
    assert said == f"error: --config.{key} is typed, but sweep(trial) sets {key} in each trial. Leave it out.\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("early_stopping.metric", 'it\'s "a" = b '),
        ("schedule.warmup", 100),
        ("schedule.learning_rate", 1e-07),
        ("eval.splits", ("test", "a b=c", "it's")),
        ("model.hidden", 64),
        ("data.shuffle", False),
    ],
)
def test_the_text_of_a_value_gives_the_value_again(tmp_path, key, value):
    config = tiny.get_config("")
    study = opened(tmp_path, lambda trial: {key: value})
    assert flatten(override(config, study.ask().overrides))[key] == (str(value) if key == "schedule.warmup" else value)


@pytest.mark.parametrize("best_metric", ["test/accuracy", "test/loss", ""])
def test_the_export_of_the_best_trial_is_of_the_checkpoint_that_was_the_best(tmp_path, capsys, best_metric):
    study = opened(tmp_path)
    for value in (0.5, 0.75, 0.25):
        study.end(study.ask(), value)
    request = runner.Request("tests/swept.py", ["--config.eval.splits=('a b',)"], tmp_path)
    assert sweep._report(study, request, best_metric, is_exported=True) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'trial-0001'} is gone: only training again gives its weights." in printed
    assert "Export it" not in printed and "keeps it" not in printed and "Train it again" in printed
    request.folder(1).mkdir()
    study.fail(study.ask(), "no memory")
    assert sweep._report(study, request, best_metric, is_exported=False) == 0
    assert "Export it" not in capsys.readouterr().out
    assert sweep._report(study, request, best_metric, is_exported=True) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +3 +failed +schedule\.learning_rate=0\.\d+\ntrial 3 failed: no memory$", printed, re.MULTILINE)
    (export,) = re.findall(r"^Export it: +(.*)$", printed, re.MULTILINE)
    is_kept = best_metric == "test/accuracy"
    of_best = ["--checkpoint=best"] if is_kept else []
    folder = f"--workdir={tmp_path / 'trial-0001'}"
    assert shlex.split(export) == ["python", "launch.py", SWEPT, folder, "--mode=export", *of_best]
    assert ("--config.checkpoint.best_metric=test/accuracy keeps it." in printed) != is_kept
    (again,) = re.findall(r"^Train it again: +(.*)$", printed, re.MULTILINE)
    assert shlex.split(again)[3] == "--config.eval.splits=('a b',)"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_a_trial_ends_in_the_bits_of_a_run_alone(tmp_path, capsys, mode):
    compiled = f"--config.train.compile={mode}"
    assert launch.main(["launch.py", SWEPT, SWEEP, f"--workdir={tmp_path / 'sweep'}", "--trials=3", compiled]) == 0
    table = table_of(capsys.readouterr().out)
    for number in range(3):
        workdir = tmp_path / "sweep" / f"trial-{number:04d}"
        overrides = (workdir / "overrides.txt").read_text().splitlines()
        assert overrides[0] == compiled and len(overrides) == 3
        alone = [sys.executable, str(ROOT / "launch.py"), SWEPT, f"--workdir={tmp_path / str(number)}", *overrides]
        subprocess.run(alone, cwd=ROOT, check=True, capture_output=True)
        assert sha(workdir) == sha(tmp_path / str(number))
        assert table[number] == (f"{best_accuracy(workdir):.6g}", "finished")
    assert len({sha(tmp_path / str(number)) for number in range(3)}) == 3


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_is_killed_twice_loses_no_trial_and_runs_none_twice(tmp_path):
    workdir = tmp_path / "sweep"
    arguments = [SWEPT, SWEEP, f"--workdir={workdir}", "--trials=6", "--parallel=2"]
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    for kills in (1, 3):  # when so many trials have ended
        process = subprocess.Popen(command, cwd=ROOT)
        while sum((folder / "result.json").exists() for folder in workdir.glob("trial-????")) < kills:
            time.sleep(0.02)
            assert process.poll() is None
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert workers and are_gone(workers)
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    table = table_of(ended.stdout)
    assert [table[number][1] for number in range(6)] == ["finished"] * 6 and len(table) == 6
    folders = sorted(workdir.glob("trial-????"))
    assert len(folders) == 6 and all(len(starts(folder)) <= 3 for folder in folders)
    assert len({(folder / "overrides.txt").read_text() for folder in folders}) == 6
    for number, folder in enumerate(folders):
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps) and steps[-1] == 40  # no row twice, none lost
        assert table[number][0] == f"{best_accuracy(folder):.6g}"

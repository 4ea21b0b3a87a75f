"""The last table of a run beside that of the run before it, as --mode=train prints it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from framework.run import previous
from tests.modes.called import call
from tests.run.tiny_runs import build

SHORT = ("--config.train.duration=2 steps", "--config.export.process=own")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, whose recorded accuracy is 0 and whose loss is 0."""
    workdir = tmp_path_factory.mktemp("before") / "run"
    assert call(f"--workdir={workdir}", *SHORT) == 0
    path = workdir / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"final": {"test/loss": 0.0, "test/accuracy": 0.0}}))
    return workdir


@pytest.fixture
def before(finished, tmp_path):
    """A copy of it, which a test may change and remove."""
    return shutil.copytree(finished, tmp_path / "first")


def printed(capsys, *arguments):
    capsys.readouterr()
    assert call(*arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_metrics_stand_beside_those_of_the_run_before(before, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    out = printed(capsys, f"--workdir={tmp_path / 'second'}", *SHORT, "--seed=1")
    final = json.loads((tmp_path / "second/result.json").read_text())["final"]
    loss, accuracy = (f"{final[name]:.6g}" for name in ("test/loss", "test/accuracy"))
    assert out[1:4] == [
        f"  test/loss                {loss} (best {loss}), before 0 ({final['test/loss']:+.3g}, worse)",
        f"  test/accuracy            {accuracy} (best {accuracy}), before 0 ({final['test/accuracy']:+.3g}, better)",
        f"  before: {before}, with seed=0 (now 1)",
    ]


def test_what_else_differs_is_told(before, tmp_path, capsys):
    (before / "tiny.py").write_text("# as it was")
    path = before / "environment.json"
    known = json.loads(path.read_text())
    known["starts"][0]["git"] = {"commit": "0" * 40, "dirty": False}
    known["starts"][0]["data"]["test"] = "1 2"
    path.write_text(json.dumps(known))
    out = printed(capsys, f"--workdir={tmp_path / 'second'}", *SHORT, "--config.log.console=quiet")
    (line,) = (line for line in out if line.startswith("  before: "))
    said = f"  before: {before}, with the same config; other "
    names = line.removeprefix(said).split(", ")
    assert line.startswith(said) and Path(names[0]).name == "tiny.py"
    ours = json.loads((tmp_path / "second/environment.json").read_text())["starts"][0]
    assert names[1:] == [*(["framework"] if ours["git"]["commit"] else []), "data of 'test'"]


@pytest.mark.parametrize(
    ("variable", "colors"), [("", ["\x1b[31m", "\x1b[32m"]), pytest.param("1", [], marks=pytest.mark.slow)]
)
def test_a_terminal_has_colors(before, tmp_path, capsys, monkeypatch, variable, colors):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", variable)
    out = printed(capsys, f"--workdir={tmp_path / 'second'}", *SHORT)
    assert [color for color in ("\x1b[31m", "\x1b[32m") if any(color in line for line in out)] == colors
    assert f"  before: {before}, with the same config" in out


def test_only_an_ended_run_of_the_same_file_is_the_one_before(before, tmp_path):
    built = build(tmp_path / "second")
    found = previous.find(built)
    assert (found.workdir, found.result["step"]) == (before, 2)
    assert found.differing["train.duration"] == ("2 steps", "40 steps")
    for name, damage in (("other", "tiny.py"), ("stopped", ""), ("damaged", "config.json")):
        shutil.copytree(before, tmp_path / name)  # newer than the first
        if damage:
            (tmp_path / name / damage).unlink()
    path = tmp_path / "stopped/result.json"
    path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    (tmp_path / "damaged/result.json").write_text("{")
    assert previous.find(built).workdir == before
    shutil.rmtree(before)
    assert previous.find(built) is None


def test_a_run_in_the_working_folder_is_not_the_one_before_itself(before, monkeypatch):
    """The name of Path('.') is empty, and its parent is itself."""
    here = dataclasses.replace(build(before.with_name("built")), workdir=Path())
    monkeypatch.chdir(before)
    assert previous.find(here) is None
    second = before.with_name("second")
    shutil.copytree(before, second)
    assert previous.find(here).workdir == Path("../second")


def test_a_folder_that_cannot_be_read_does_not_end_the_run(before, tmp_path, monkeypatch):
    built = build(tmp_path / "second")
    locked = tmp_path / "locked"
    locked.mkdir()
    is_file = Path.is_file

    def refused(path):
        if path.parent == locked:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert previous.find(built).workdir == before
    monkeypatch.setattr(Path, "iterdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert previous.find(built) is None

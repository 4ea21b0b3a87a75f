"""Every experiment file: its config and presets are valid, it takes two steps, is saved, restored and exported."""

import ast
import shutil
from pathlib import Path

import pytest

from framework import config, paths
from framework.experiment import load
from framework.run import build, evaluation, exporting, loop
from tests.made_up import made_up, write_set
from tests.made_up_ratings import write_ratings

FILES = sorted(Path("experiments").glob("*.py"))
# Trained and exported in tests/test_NAME.py, because their data need a package.
OWN_TESTS = ("g2p_transformer", "translate_transformer")


def presets(path):
    """The keys of the file's PRESETS, read without executing it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PRESETS":
            return [key.value for key in node.value.keys]
    return []


CASES = [(path, preset) for path in FILES for preset in ["", *presets(path)]]


def test_there_are_experiments():
    assert FILES


@pytest.mark.parametrize(("path", "preset"), CASES)
def test_config_is_valid(path, preset):
    loaded = load.load(f"{path}:{preset}" if preset else str(path))
    final = config.finalize(loaded.get_config())
    assert config.resolve(final, steps_per_epoch=468.75).train.duration >= 1


@pytest.mark.parametrize("path", FILES, ids=str)
def test_header_has_the_command_and_what_to_expect(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python launch.py --config={path} --workdir=" in header
    assert "expect" in header


@pytest.fixture(scope="module")
def made_up_cifar10(tmp_path_factory):
    """A folder with records in place of CIFAR-10, whose download is large."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 128), ("test", 50)):
        write_set(folder / "cifar10", split, *made_up(split, count))
    return folder


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in OWN_TESTS], ids=str)
def test_two_steps_save_restore_export(path, tmp_path, made_up_cifar10):
    small = {"train.duration": "2 steps", "schedule.warmup": "", "export.examples": 100, "log.histograms_every": ""}
    small["export.process"] = "own"
    if load.load(str(path)).get_config().data.name == "cifar10":
        small |= {"data.dir": str(made_up_cifar10), "data.batch_size": 16}
    if load.load(str(path)).get_config().data.name == "ml-100k":
        small |= {"data.dir": str(write_ratings(tmp_path / "ratings")), "data.batch_size": 16}
    built = build.build(str(path), small, tmp_path / "run")
    before = {name: variable.numpy() for name, variable in paths.trainable(built.model).items()}
    result = loop.train(built)
    assert (result["status"], result["step"], result["updates"]) == ("finished", 2, 2)
    for name, variable in paths.trainable(built.model).items():
        assert (variable.numpy() != before[name]).any(), f"{name} did not move"
    reports = exporting.export_run(built)
    assert [report.failure for report in reports] == [""] * len(built.exports)

    again = build.build(str(path), small, tmp_path / "run")
    assert again.open() == 2
    assert {name: variable.numpy().tobytes() for name, variable in paths.variables(again.state).items()} == {
        name: variable.numpy().tobytes() for name, variable in paths.variables(built.state).items()
    }
    assert evaluation.evaluate(again) == result["final"]
    shutil.rmtree(tmp_path / "run")

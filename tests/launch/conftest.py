"""A folder with an experiment in which launch.py comes as far as the devices; what is refused leaves no trace."""

import sys
from pathlib import Path

import pytest

import launch
from framework.experiment import user_code
from tests.launch.started import EXPERIMENT, Reached


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An experiment in x.py; whoever comes as far as runtime.setup raises Reached with the final config."""

    def setup(final):
        raise Reached(final)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("framework.distribute.devices.setup", setup)
    is_own, here = user_code.is_own, str(Path(__file__).parent)
    monkeypatch.setattr(user_code, "is_own", lambda file: not file.startswith(here) and is_own(file))
    Path("x.py").write_text(EXPERIMENT)
    yield tmp_path
    sys.modules.pop("experiment_x", None)


@pytest.fixture
def refused(capsys):
    """refused(arguments): the line of the error, after all that is promised of an error has been checked."""

    def call(*arguments):
        assert launch.main(["launch.py", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert not Path("x.loaded").exists()
        assert not Path("runs").exists()
        return err.removeprefix("error: ").removesuffix("\n")

    return call

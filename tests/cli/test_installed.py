"""The package as `pip install -e .` installs it: the command `framework`, from any folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from framework.run import command

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "launch.py", "framework")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin folder of an environment with the package of a copy of the checkout, in which pip leaves its notes."""
    folder = tmp_path_factory.mktemp("installed")
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    bin_folder = folder / "env/bin"
    ask = [bin_folder / "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    Path(packages, "outer.pth").write_text(sysconfig.get_paths()["purelib"])  # TensorFlow is not installed once more
    install = [
        "pip",
        "--python",
        bin_folder / "python",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-e",
        ".",
    ]
    subprocess.run([sys.executable, "-m", *install], cwd=folder, check=True)
    return bin_folder


def run(program, *arguments, folder):
    return subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )


def test_the_command_is_launch_py(installed, tmp_path):
    for arguments in (["--help"], ["--mode=lst", "--config=x.py"], ["--mode=list", f"--workdir={tmp_path}"]):
        theirs = run(sys.executable, ROOT / "launch.py", *arguments, folder=tmp_path)
        ours = run(installed / "framework", *arguments, folder=tmp_path)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_the_package_names_its_requirements_and_extras(installed, tmp_path):
    code = (
        "import framework, importlib.metadata; from framework import extras;"
        " print(*importlib.metadata.requires('tf-research-framework'), sep='\\n');"
        " print(extras.pins('sweep')[0], framework.__file__)"
    )
    lines = run(installed / "python", "-c", code, folder=tmp_path).stdout.splitlines()
    pins = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert lines[: len(pins)] == pins
    assert 'optuna==5.0.0; extra == "sweep"' in lines
    assert lines[-1] == f"optuna==5.0.0 {installed.parents[1] / 'framework/__init__.py'}"


@pytest.mark.slow
def test_a_run_is_trained_and_resumed_from_any_folder(installed, tmp_path):
    blobs = re.search(r"```python experiments/blobs.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(blobs[1])
    arguments = ["--config=mine.py", "--workdir=runs/mine", "--config.train.duration=4 steps"]
    first = run(installed / "framework", *arguments, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "finished: step 4 in runs/mine" in first.stdout
    assert "finished: step 4 in runs/mine" in run(installed / "framework", *arguments, folder=tmp_path).stdout


@pytest.mark.parametrize(("program", "begin"), [("/x/bin/framework", "framework"), ("launch.py", "python launch.py")])
def test_lines_name_the_command_that_was_typed(monkeypatch, program, begin):
    monkeypatch.setattr(sys, "argv", [program])
    assert command.typed(["--workdir=my runs"]) == f"{begin} '--workdir=my runs'"


@pytest.mark.parametrize("arguments", [["--help"], ["--mode=list", "--workdir=."]])
def test_a_reader_that_has_left_is_no_traceback(arguments, tmp_path):
    """A long text fails while it is printed, a short one when it is flushed."""
    ours, theirs = os.pipe()
    os.close(ours)
    command_line = [sys.executable, ROOT / "launch.py", *arguments]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(command_line, cwd=tmp_path, env=buffered, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (141, b"")

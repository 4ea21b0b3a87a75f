"""framework/run/environment.py: the run header."""

import os
import platform
import re
import shlex
import subprocess
import sys

import pytest
import tensorflow as tf

from framework.run import environment


def test_environment_has_what_someone_needs(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch.py", "--config=experiments/a b.py", "--seed=3"])
    header = environment.environment()
    assert list(header) == ["command", "python", "packages", "platform", "cpu", "cores", "devices", "git"]
    program, *arguments = shlex.split(header["command"])
    assert program.startswith("python")
    assert arguments == ["launch.py", "--config=experiments/a b.py", "--seed=3"]
    assert header["python"] == platform.python_version()
    assert header["packages"]["tensorflow"] == tf.__version__
    assert set(header["packages"]) >= {"tf-keras", "numpy", "ml-collections", "ai-edge-litert"}
    assert 1 <= header["cores"] <= os.cpu_count()
    assert any(device.startswith("CPU: ") for device in header["devices"])
    assert header["cpu"]
    assert header["git"].keys() == {"commit", "dirty"}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one commit in which the framework seems to lie; returns a function that runs git in it."""
    (tmp_path / "framework" / "run").mkdir(parents=True)
    file = tmp_path / "framework" / "run" / "environment.py"
    file.write_text("")
    monkeypatch.setattr(environment, "__file__", str(file))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.check_output(["git", "-C", str(tmp_path), *who, *arguments], text=True).strip()

    return git


def test_git_commit_outside_a_checkout(checkout):
    assert environment.git_commit() == {"commit": "", "dirty": False}


def test_git_commit_of_a_checkout_and_whether_it_is_dirty(checkout, tmp_path):
    checkout("init", "-q")
    checkout("add", ".")
    checkout("commit", "-q", "-m", "one")
    found = environment.git_commit()
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])
    assert found == {"commit": checkout("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "framework" / "runtime.py").write_text("# changed\n")
    assert environment.git_commit() == {**found, "dirty": True}


@pytest.mark.parametrize("failure", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_git_commit_where_git_does_not_answer(monkeypatch, failure):
    def run(*_, **__):
        raise failure

    monkeypatch.setattr(environment.subprocess, "run", run)
    assert environment.git_commit() == {"commit": "", "dirty": False}

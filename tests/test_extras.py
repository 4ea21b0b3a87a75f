"""framework/extras.py: a package that is not installed is named with the command that installs it."""

import tomllib
from pathlib import Path

import pytest

from framework import extras
from framework.errors import UserError


def test_a_missing_package_is_named_with_its_command():
    pins = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras.pins("data") == pins["data"] and all("==" in pin for pin in pins["data"])
    with pytest.raises(UserError) as caught:
        extras.load("no_such_package.module", "data")
    assert str(caught.value) == (
        "no_such_package is not installed, but no_such_package.module needs it. Type python -m pip install"
        f" {' '.join(pins['data'])}"
    )
    with pytest.raises(UserError) as caught:
        extras.load("no_such_package", "data")
    assert str(caught.value).startswith("no_such_package is not installed. Type python -m pip install ")


def test_an_installed_package_is_imported():
    assert extras.load("os.path", "data").join("a", "b") == "a/b"

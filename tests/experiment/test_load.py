"""framework/experiment/load.py: what is wrong with a file is said before it is executed."""

import ast
import os
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from framework.config import UserError
from framework.experiment import load
from framework.experiment.returns import FUNCTIONS, OPTIONAL, REQUIRED

GOOD = """
from pathlib import Path
from ml_collections import ConfigDict

Path(__file__).with_suffix(".executed").touch()


def get_config(arg):
    return ConfigDict({"preset": arg})


def make_data(cfg, split): ...


def make_model(cfg): ...


def make_loss(cfg): ...


def make_schedule(cfg, total_steps): ...
"""
KNOWN = ", ".join(FUNCTIONS)
MAY = f"An experiment defines {', '.join(REQUIRED)} and may define {', '.join(OPTIONAL)}."
TYPE = "Type e.g. --config=experiments/mnist_mlp.py."


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Paths in messages are relative to it; modules that a test loads are gone after it."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("experiment_"):
            del sys.modules[name]


def write(source, name="x.py"):
    Path(name).write_text(source)
    return name


def message(name):
    with pytest.raises(UserError) as caught:
        load.load(name)
    return str(caught.value)


def test_load():
    loaded = load.load(write(GOOD) + ":small")
    assert (loaded.path, loaded.preset) == (Path("x.py"), "small")
    assert list(loaded.functions) == [*REQUIRED, "make_schedule"]
    assert loaded.get_config().preset == "small"
    assert Path("x.executed").exists()


@pytest.mark.parametrize(("name", "preset"), [("x.py", ""), ("x.py:", ""), ("x.py:a:b", "a:b")])
def test_preset(name, preset):
    write(GOOD)
    assert load.check(name) == (Path("x.py"), preset)
    assert load.load(name).get_config().preset == preset


def test_optional_functions():
    source = (
        GOOD
        + "def make_metrics(cfg): return 'm'\ndef check_config(cfg): ...\ndef _make_mine(): ...\ndef helper(): ...\n"
    )
    loaded = load.load(write(source))
    assert list(loaded.functions) == [*REQUIRED, "make_schedule", "check_config", "make_metrics"]
    assert loaded.functions["make_metrics"](None) == "m"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def make_model(cfg): ...", "def make_model(config): ..."),
        ("def make_model(cfg): ...", "def make_model(*args): ..."),
        ("def make_model(cfg): ...", "def make_model(cfg, /, width=3, *, depth=2, **more): ..."),
        ("def make_model(cfg): ...", "def make_model(cfg=None): ..."),
        ("def make_model(cfg): ...", "make_model = lambda cfg: None"),
        ("def make_model(cfg): ...", "make_model = print"),
        ("def make_model(cfg): ...", "make_model = dict"),
        ("def make_model(cfg): ...", "from os import fspath as make_model"),
        ("def make_model(cfg): ...", "class Model:\n    def __init__(self, cfg): ...\nmake_model = Model"),
        (
            "def make_model(cfg): ...",
            "from functools import partial\nmake_model = partial(lambda width, cfg: None, 3)",
        ),
        (
            "def make_model(cfg): ...",
            "def one(function):\n    return lambda cfg: function(cfg, 3)\n\n@one\ndef make_model(cfg, width): ...",
        ),
    ],
)
def test_ways_to_define_a_function(old, new):
    assert old in GOOD
    assert "make_model" in load.load(write(GOOD.replace(old, new))).functions


def test_a_file_with_annotations_as_text_and_a_dataclass():
    source = "from __future__ import annotations\nimport dataclasses\n" + GOOD
    source += "@dataclasses.dataclass\nclass Settings:\n    width: int = 3\n"
    assert load.load(write(source)).get_config().preset == ""


# --- the file itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", f"--config= cannot be read: {os.strerror(21)}. {TYPE}"),
        ("deep", f"--config=deep cannot be read: {os.strerror(21)}. {TYPE}"),
        ("zzzzzz.py", f"--config=zzzzzz.py cannot be read: {os.strerror(2)}. {TYPE}"),
        ("good.yp", f"--config=good.yp cannot be read: {os.strerror(2)}. Did you mean 'good.py'? {TYPE}"),
        ("godo.py:small", f"--config=godo.py cannot be read: {os.strerror(2)}. Did you mean 'good.py'? {TYPE}"),
        ("good.py/x.py", f"--config=good.py/x.py cannot be read: {os.strerror(20)}. {TYPE}"),
        ("nowhere/good.py", f"--config=nowhere/good.py cannot be read: {os.strerror(2)}. {TYPE}"),
        ("deep/gud.py", f"--config=deep/gud.py cannot be read: {os.strerror(2)}. Did you mean 'deep/good.py'? {TYPE}"),
        (f"{'x' * 300}.py", f"--config={'x' * 300}.py cannot be read: {os.strerror(36)}. {TYPE}"),
    ],
)
def test_no_such_file(name, expected):
    Path("deep").mkdir()
    write(GOOD, "good.py")
    write(GOOD, "deep/good.py")
    assert message(name) == expected


@pytest.mark.parametrize("source", [b"def make_model(cfg:\n", b"\xff\xfe", b"x = 1\0", b"if True:\nx = 1\n"])
def test_not_python(source):
    Path("x.py").write_bytes(source)
    with pytest.raises((SyntaxError, ValueError)) as caught:
        ast.parse(source, "x.py")
    assert message("x.py") == f"--config=x.py is not valid Python: {caught.value}."


def test_not_a_python_file_by_name():
    assert message(write(GOOD, "x.txt")) == f"--config=x.txt is not a Python file. {TYPE}"
    assert not Path("x.executed").exists()


def test_the_encoding_that_a_file_declares():
    source = "# -*- coding: latin-1 -*-\nNAME = 'é'\n" + GOOD
    Path("x.py").write_bytes(source.encode("latin-1"))
    assert load.load("x.py").preset == ""


# --- its functions ----------------------------------------------------------------------------------------------------

MISSING = {
    "get_config": "get_config(arg)",
    "make_data": "make_data(cfg, split)",
    "make_model": "make_model(cfg)",
    "make_loss": "make_loss(cfg)",
}


def test_required_functions_are_all_listed_here():
    assert {f"{name}({', '.join(FUNCTIONS[name].arguments)})" for name in REQUIRED} == set(MISSING.values())


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_function(name):
    source = re.sub(rf"def {name}\(.*\):.*\n(    .*\n)?", "", GOOD)
    assert message(write(source)) == f"x.py does not define {MISSING[name]}. {MAY}"
    assert not Path("x.executed").exists()


@pytest.mark.parametrize(
    ("name", "slip"),
    [
        ("get_config", "get_confg"),
        ("make_data", "mak_data"),
        ("make_model", "makemodel"),
        ("make_loss", "Make_Loss"),
    ],
)
def test_a_misspelt_function(name, slip):
    expected = f"x.py does not define {MISSING[name]}. Did you mean '{slip}'? {MAY}"
    assert message(write(GOOD.replace(f"def {name}", f"def {slip}"))) == expected
    assert not Path("x.executed").exists()


def test_an_empty_file():
    assert message(write("")) == f"x.py does not define get_config(arg). {MAY}"


def test_a_function_inside_another_is_not_found():
    nested = GOOD.replace("def make_model(cfg): ...", "def _outer():\n    def make_model(cfg): ...\n")
    assert message(write(nested)) == f"x.py does not define make_model(cfg). {MAY}"


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("make_scheduel", " Did you mean 'make_schedule'?"),
        ("make_metric", " Did you mean 'make_metrics'?"),
        ("makemetrics", " Did you mean 'make_metrics'?"),
        ("mke_exports", " Did you mean 'make_exports'?"),
        ("Make_Optimizer", " Did you mean 'make_optimizer'?"),
        ("chek_config", " Did you mean 'check_config'?"),
        ("get_zzzzzzzzzzzz", ""),
    ],
)
def test_a_function_that_is_never_called(unknown, hint):
    expected = (
        f"x.py defines {unknown}, which the framework never calls.{hint} Known: {KNOWN}."
        " Start a helper of your own with an underscore."
    )
    assert message(write(GOOD + f"def {unknown}(cfg): ...\n")) == expected
    assert not Path("x.executed").exists()


@pytest.mark.parametrize(
    ("old", "new", "shown", "called", "line"),
    [
        ("get_config(arg)", "get_config()", "get_config()", "get_config(arg)", 8),
        ("make_data(cfg, split)", "make_data(cfg)", "make_data(cfg)", "make_data(cfg, split)", 12),
        ("make_model(cfg)", "make_model(cfg, width)", "make_model(cfg, width)", "make_model(cfg)", 15),
        ("make_model(cfg)", "make_model(*, cfg)", "make_model(cfg)", "make_model(cfg)", 15),
        ("make_loss(cfg)", "make_loss(cfg, *, width)", "make_loss(cfg, width)", "make_loss(cfg)", 18),
        (
            "make_schedule(cfg, total_steps)",
            "make_schedule(a, /)",
            "make_schedule(a)",
            "make_schedule(cfg, total_steps)",
            21,
        ),
    ],
)
def test_wrong_arguments(old, new, shown, called, line):
    expected = f"x.py:{line}: {shown} is called as {called}. Give it those arguments."
    assert message(write(GOOD.replace(old, new))) == expected
    assert not Path("x.executed").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "make_metrics = lambda: None",
            "x.py: make_metrics() is called as make_metrics(cfg). Give it those arguments.",
        ),
        (
            "from os.path import join\nmake_optimizer = lambda a, b, c: join(a, b, c)",
            "x.py: make_optimizer(a, b, c) is called as make_optimizer(cfg, learning_rate). Give it those arguments.",
        ),
        (
            "import functools\n@functools.cache\ndef make_exports(): ...",
            "x.py: make_exports() is called as make_exports(cfg). Give it those arguments.",
        ),
        ("make_metrics = 3", "x.py: make_metrics is of type int, not a function."),
        ("from math import pi as make_exports", "x.py: make_exports is of type float, not a function."),
    ],
)
def test_wrong_arguments_that_only_execution_shows(source, expected):
    assert message(write(GOOD + source + "\n")) == expected


# --- what its execution shows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "kind"), [("None", "NoneType"), ("{'seed': 1}", "dict"), ("ConfigDict", "type"), ("...", "ellipsis")]
)
def test_get_config_returns_something_else(returned, kind):
    loaded = load.load(write(GOOD.replace('ConfigDict({"preset": arg})', returned)))
    with pytest.raises(UserError) as caught:
        loaded.get_config()
    assert str(caught.value) == (
        f"x.py: get_config returned {kind}, not a ConfigDict. Start from base_config() and return it."
    )


def test_get_config_returns_its_own():
    loaded = load.load(write(GOOD))
    assert loaded.get_config() == ConfigDict({"preset": ""})


@pytest.mark.parametrize("made", ["tf.constant(1.0)", "tf.Variable(1.0)"])
def test_a_tensor_at_module_level(made):
    expected = (
        "x.py: 'TABLE' is a tensor made at module level, before devices and seed are set."
        " Make it inside one of the functions."
    )
    assert message(write(GOOD + f"import tensorflow as tf\nTABLE = {made}\n")) == expected


def test_an_error_of_the_file_is_its_own():
    with pytest.raises(NameError, match="name 'undefined_name' is not defined") as caught:
        load.load(write(GOOD + "undefined_name\n"))
    assert Path(str(caught.traceback[-1].path)) == Path("x.py").resolve()
    assert caught.traceback[-1].lineno + 1 == len(GOOD.splitlines()) + 1

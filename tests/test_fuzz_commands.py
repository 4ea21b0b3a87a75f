"""Made-up command lines: each is one line with status 2 and leaves nothing behind, or it means what it says.

Hypothesis makes the values. What comes as far as the devices is compared with the values as Python reads them.
"""

import ast
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import launch
from framework.config import base_config, flatten
from framework.config.keys import KEYS
from framework.experiment import user_code

EXPERIMENT = """
from framework.config import base_config


def get_config(arg):
    if arg not in ("", "small"):
        raise ValueError(arg)
    return base_config()


def make_data(cfg, split): ...
def make_model(cfg): ...
def make_loss(cfg): ...
def make_schedule(cfg, total_steps): ...
"""
DEFAULTS = flatten(base_config())
# Types of a whole line: what is longer was cut.
MOST_CHARACTERS = 800


class Reached(Exception):
    """The first line that touches a device was about to run."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Whoever comes as far as runtime.setup, or other processes, raises Reached with the final config."""

    def setup(final):
        raise Reached(final)

    def run_local(*arguments):  # with processes, whose configs are not looked at
        raise Reached(None)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("framework.distribute.devices.setup", setup)
    monkeypatch.setattr("framework.cli.local_cluster.run_local", run_local)
    is_own = user_code.is_own
    monkeypatch.setattr("framework.experiment.user_code.is_own", lambda file: file != __file__ and is_own(file))
    Path("x.py").write_text(EXPERIMENT)
    Path("a folder").mkdir()
    Path("broken.py").write_text("def get_config(arg:\n")
    Path("text.py").write_text("hello\n")


words = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(), min_size=1, max_size=3).map(lambda text: text * 2000),
    st.sampled_from(
        ["", " ", "None", "nan", "inf", "-inf", "1e400", "-1", "0", "1_000", "１２", "0x10", "1e3", "True"]
    ),
    st.sampled_from(
        ["()", "(", "('a',)", "('a', 'a')", "[1]", "{}", "a,b", "*", "[", "(?P<", "..", "/", "~", "--", "="]
    ),
    st.integers().map(str),
    st.floats().map(str),
)
durations = st.one_of(
    words,
    st.builds(
        "{}{}{}".format, st.floats(0, 1e12), st.sampled_from(["", " "]), st.sampled_from(["steps", "epoch", "%", "s"])
    ),
)


def values(key):
    """Texts for a key: half of them such as its default, in another notation or just out of range."""
    default = DEFAULTS[key]
    if KEYS[key].choices:
        return st.one_of(st.sampled_from(sorted(KEYS[key].choices)), words)
    if KEYS[key].duration:
        return st.one_of(st.builds("{} {}s".format, st.integers(1, 99), st.sampled_from(["step", "epoch"])), durations)
    if isinstance(default, bool):
        return st.one_of(st.sampled_from(["true", "True", "0", "1", "false", "yes"]), words)
    if isinstance(default, int):
        return st.one_of(st.integers(-2, 2**63).map(str), st.integers(1, 300).map(str), words)
    if isinstance(default, float):
        return st.one_of(st.floats(0, 2).map(repr), words)
    if isinstance(default, tuple):
        return st.one_of(
            st.lists(st.text("ab.:@ =1", max_size=8), max_size=3).map(lambda each: repr(tuple(each))), words
        )
    return durations


overrides = st.sampled_from(sorted(DEFAULTS)).flatmap(
    lambda key: st.one_of(values(key).map(lambda text: f"--config.{key}={text}"), st.just(f"--noconfig.{key}"))
)
slips = st.one_of(
    words,
    st.builds("--config.{}={}".format, words, words),
    st.builds("--{}={}".format, st.text("abcdefg_", min_size=1, max_size=30), words),
    st.sampled_from(
        ["config", "mode", "workdir", "seed", "data_dir", "local_workers", "step", "kills", "debugs"]
    ).flatmap(lambda name: words.map(lambda text: f"--{name}={text}")),
    st.sampled_from(["train", "evaluate", "export", "check", "replay", "verify_resume"]).map("--mode={}".format),
    st.sampled_from(["a folder", "broken.py", "text.py", "x.py:small", "x.py:large", "x.py:", "."]).map(
        "--config={}".format
    ),
)
lines = st.one_of(
    st.lists(overrides, min_size=1, max_size=2).map(lambda typed: ["--config=x.py", *typed]),
    st.builds(lambda typed, slip: [*typed, "--config=x.py", slip], st.lists(overrides, max_size=1), slips),
    st.lists(slips, max_size=2),
)


def meant(default, text):
    """The value of a text that is right, as Python reads it."""
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(default, int | float):
        return type(default)(text)
    if isinstance(default, tuple):
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return None  # words without quotes
        return value if isinstance(value, tuple) else (value,)
    return text


def check(capsys, arguments):
    """Launches once; asserts that what was typed is in the config, or is refused in a line."""
    before = sorted(os.listdir())
    try:
        status = launch.main(["launch.py", *arguments])
    except Reached as reached:
        if reached.args[0] is not None:
            _check_values(flatten(reached.args[0]), arguments)
        capsys.readouterr()
        return "accepted"
    finally:
        after = sorted(os.listdir())
    out, err = capsys.readouterr()
    assert after == before, arguments
    if status == 0 and out.startswith("Trains, evaluates"):
        return "help"
    assert status == 2, (arguments, status, err)
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), (arguments, err)
    assert len(err) <= MOST_CHARACTERS + len("error: \n"), (arguments, err)
    assert err[:-1].isprintable(), (arguments, err)
    return "refused"


def _check_values(final, arguments):
    typed, short = {}, {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("-").removeprefix("-").partition("=")
        if name.removeprefix("config.") in DEFAULTS and name != "seed":
            typed.setdefault(name.removeprefix("config."), []).append(text if equals else "True")
        elif name.removeprefix("noconfig.") in DEFAULTS and "." in name:
            typed.setdefault(name.removeprefix("noconfig."), []).append("False")
        elif name in ("seed", "data_dir"):
            short["seed" if name == "seed" else "data.dir"] = [text]
    for key, texts in {**typed, **short}.items():
        value = meant(DEFAULTS[key], texts[-1])
        if value is not None and not isinstance(DEFAULTS[key], tuple):
            assert final[key] == value and type(final[key]) is type(DEFAULTS[key]), (key, texts, final[key])
        elif value is not None and len(texts) == 1:
            assert final[key] == value, (key, texts, final[key])
    for key, default in DEFAULTS.items():
        assert key in typed or key in short or final[key] == default, key


def fuzz(capsys, examples):
    """{how it ended: how often} of so many command lines."""
    ended = {}

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(lines)
    def each(arguments):
        how = check(capsys, arguments)
        ended[how] = ended.get(how, 0) + 1

    each()
    return ended


def test_some_command_lines(capsys):
    ended = fuzz(capsys, 25)
    assert ended["refused"] >= 10


@pytest.mark.slow
def test_many_command_lines(capsys):
    ended = fuzz(capsys, 400)
    assert ended["refused"] >= 150
    assert ended["accepted"] >= 20

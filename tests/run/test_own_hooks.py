"""Hooks of an experiment: what is refused, what a raise says, and that their states follow the run wherever it goes."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from framework import Hook, optim
from framework.checkpoint.checkpoints import digest, read_arrays
from framework.errors import UserError
from framework.modes import described
from framework.run import loop
from framework.run.hooks import Context
from framework.run.own_hooks import own_hooks
from framework.writers import MultiWriter
from tests import small

NOWHERE = {"train.duration": "4 steps", "checkpoint.every": "2 steps"}


def build(workdir, *hooks, heat=None, **overrides):
    """A run with a schedule that has a state, and with these hooks, made anew each time that they are asked for."""
    functions = {
        "make_hooks": lambda cfg, run: [make() for make in hooks],
        "make_schedule": lambda cfg, total: optim.ReduceOnPlateau(lambda update: 0.08, "test/loss", 0.5, 1, 0.0, 0.1),
    }
    return small.build(workdir, heat, functions, **overrides)


def rows(workdir, *without):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


class Track:
    """Keeps and writes what it has seen: a state that depends on each step and on each evaluation before it."""

    def __init__(self):
        self.seen = []

    def __call__(self, context):
        loss = context.block.row(len(context.block.rows) - 1)["loss"]
        self.seen.append((context.step, loss, context.results.get("test/loss")))
        context.writer.scalars(context.step, {"track/calls": len(self.seen)})

    def state(self):
        return {"seen": self.seen}

    def load(self, state):
        self.seen = state["seen"]


# What is refused


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    return small.build(tmp_path_factory.mktemp("idle"))


@contextlib.contextmanager
def having(run, *returned, make=None):
    """The hooks of a run whose `make_hooks` returns these."""
    functions = {**run.experiment.functions, "make_hooks": make or (lambda cfg, run: list(returned))}
    before, run.experiment = run.experiment, dataclasses.replace(run.experiment, functions=functions)
    try:
        yield own_hooks(run)
    finally:
        run.experiment = before


def act(context):
    pass


async def later(context):
    pass


class Half:
    def __call__(self, context):
        pass

    def state(self):
        return 0


class Keeps(Half):
    def __init__(self, value):
        self.value = value

    def state(self):
        return self.value

    def load(self, state):
        pass


PERIOD = "Write a number of steps, or a duration such as '1 epoch'."
JSON = "which is not JSON. Write numbers, text, None, lists and dicts; of an array, array.tolist()."


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "make_hooks returned None. It must return a list of hooks."),
        (
            [act],
            "make_hooks returned a list with act(context). A hook is framework.Hook(every, action): Hook(100, show).",
        ),
        (
            [Hook(1, lambda context: None)],
            "make_hooks returned a hook without a name: <lambda>(context). Write Hook(…, name='…').",
        ),
        (
            [Hook(1, functools.partial(print, 1))],
            "make_hooks returned a hook without a name: a value of type partial. Write Hook(…, name='…').",
        ),
        (
            [Hook(1, act), Hook(2, act)],
            "two hooks are called 'act' (make_hooks returned two). Write Hook(2, …, name='…').",
        ),
        ([Hook(5, act, "log")], "two hooks are called 'log' (each run has one). Write Hook(5, …, name='…')."),
        ([Hook(0.5, act)], f"hook 'act': every=0.5 is no duration. {PERIOD}"),
        ([Hook(True, act)], f"hook 'act': every=True is no duration. {PERIOD}"),
        ([Hook(-1, act)], f"hook 'act': every=-1 is no duration. {PERIOD}"),
        ([Hook("2 weeks", act)], f"hook 'act': every='2 weeks' is no duration. {PERIOD}"),
        ([Hook(0, act, at_end=False)], f"hook 'act' is never due: every=0 and at_end=False. {PERIOD}"),
        ([Hook(1, 7, "seven")], "hook 'seven': its action is 7. Write a function of the context."),
        ([Hook(1, later)], "hook 'later': its action is async later(context). Write a function of the context."),
        (
            [Hook(1, max, "x"), Hook(1, lambda a, b: 0, "y")],
            "hook 'y': its action is <lambda>(a, b). Write a function of the context.",
        ),
        ([Hook(1, Half())], "hook 'Half' has state() and no load(state). Write both, or neither."),
        ([Hook(1, Keeps(np.zeros(2)))], f"hook 'Keeps': state() is a value of type ndarray, {JSON}"),
        ([Hook(1, Keeps({"a": [1, {2}]}))], f"hook 'Keeps': state()['a'][1] is a value of type set, {JSON}"),
        (
            [Hook(1, Keeps({7: 1}))],
            "hook 'Keeps': state() has the key 7, and JSON has text as keys. Write str(…).",
        ),
    ],
)
def test_what_is_no_list_of_hooks_is_refused_in_a_line(idle, returned, message):
    with pytest.raises(UserError) as error, having(idle, make=lambda cfg, run: returned):
        pass
    assert str(error.value) == message


def test_a_duration_is_one_of_the_run(idle):
    """160 examples in batches of 16, for 10 steps."""
    periods = {"1 epoch": 10, "48 examples": 3, "25%": 3, "4 steps": 4, "": 0, 7: 7}
    with having(idle, *(Hook(every, act, f"hook {every}") for every in periods)) as own:
        assert [hook.every for hook in own.hooks] == list(periods.values())


def test_check_lists_the_hooks_and_refuses_what_training_refuses(idle, monkeypatch):
    functions = {**idle.experiment.functions, "make_hooks": lambda cfg, run: [Hook(3, act), Hook("", Track())]}
    monkeypatch.setattr(idle, "experiment", dataclasses.replace(idle.experiment, functions=functions))
    assert list(described.schedule(idle))[-2:] == ["Hook 'act' every 3 steps", "Hook 'Track' at the end"]
    functions["make_hooks"] = lambda cfg, run: [act]
    with pytest.raises(UserError, match="make_hooks returned a list with act"):
        list(described.schedule(idle))


# What a raise says


def burst(context):
    if context.step == 3:
        raise ValueError("too hot")


def refuse(context):
    raise UserError("write something else.")


class Broken(Track):
    def __call__(self, context):
        self.seen.append(context.step)

    def state(self):
        return {}["x"] if self.seen else {}


class Wrong(Track):
    def __call__(self, context):
        context.writer.images(context.step, {"kernel": np.zeros([2, 3])})


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: Hook(1, burst),
            r"hook 'burst': tests/run/test_own_hooks.py:\d+: burst: ValueError: too hot. The traceback is in X.",
        ),
        (
            lambda: Hook(1, json.loads, "parse"),
            r"hook 'parse': TypeError: the JSON object must be str, .* not Context. The traceback is in X.",
        ),
        (lambda: Hook(1, refuse), "hook 'refuse': write something else."),
        (
            lambda: Hook(1, Broken()),
            r"hook 'Broken': tests/run/test_own_hooks.py:\d+: state: KeyError: 'x'. The traceback is in X.",
        ),
        (
            lambda: Hook(1, Wrong()),
            r"hook 'Wrong': tests/run/test_own_hooks.py:\d+: __call__: ValueError: the pictures 'kernel' have shape"
            r" \[2, 3\]: write \[n, height, width\] .* channels. The traceback is in X.",
        ),
    ],
    ids=["a function", "a library's", "a refusal", "a state", "pictures"],
)
def test_a_hook_that_raises_is_a_line_with_its_name(idle, tmp_path, monkeypatch, make, line):
    (tmp_path / "config.json").write_text("{}")  # a run folder
    monkeypatch.setattr(idle, "workdir", tmp_path)
    with pytest.raises(UserError) as error, having(idle, make()) as own:
        own.hooks[0].action(Context(3, None, idle, MultiWriter([]), None))
        own.note()
    kept = tmp_path / "failure" / "traceback.txt"
    assert re.fullmatch(line.replace("X", re.escape(str(kept))), str(error.value))
    assert kept.exists() == ("X" in line)
    if kept.exists():
        assert kept.read_text().startswith("Traceback (most recent call last)")


def test_a_hook_that_raises_ends_a_run(tmp_path):
    with pytest.raises(UserError, match=r"^hook 'burst': tests/run/test_own_hooks\.py:\d+: burst: ValueError"):
        loop.train(build(tmp_path, lambda: Hook(1, burst), **NOWHERE))
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2, 3]
    assert (tmp_path / "failure" / "traceback.txt").exists()


# Due, and not due


def test_a_hook_that_is_not_due_costs_no_block(tmp_path, monkeypatch):
    taken, original = [], loop._block_length
    monkeypatch.setattr(loop, "_block_length", lambda *args: taken.append(original(*args)) or taken[-1])
    monkeypatch.setattr(loop.Progress, "step_seconds", 1e-6)
    calls = []
    hooks = [lambda: Hook(1000, lambda context: calls.append(context.step), "rare"), lambda: Hook(7, act)]
    loop.train(build(tmp_path, *hooks, **{"log.every": "10 steps"}))
    assert (taken, calls) == ([7, 3], [10])


# The state of hooks

BEST = {"eval.every": "2 steps", "checkpoint.best_metric": "test/loss", "train.duration": "8 steps"}
BEST |= {"train.block_steps": 4, "log.every": "4 steps"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped, in which each evaluation but the last is the best so far."""
    run = build(tmp_path_factory.mktemp("whole"), lambda: Hook(2, Track()), lambda: Hook(4, act), **BEST)
    loop.train(run)
    assert int(run.state.best.step) > 2 and float(run.state.schedule.scale) < 0.5
    return ended(run)


def ended(run):
    assert run.restore("last") == int(run.state.step)
    return small.snapshot(run), run.note["hooks"], rows(run.workdir, "examples_per_second")


def once(step, action=act):
    """A hook that dies at a step, the first time that a run comes by."""
    died = []

    def die(context):
        if context.step == step and not died:
            died.append(step)
            raise MemoryError("killed")
        action(context)

    return die


@pytest.mark.parametrize(
    ("step", "first"),
    [
        pytest.param(step, first, marks=() if (step, first) == (4, True) else pytest.mark.slow)
        for step in (2, 4, 6, 8)
        for first in (True, False)
    ],
)
def test_killed_between_the_best_evaluation_and_a_hook_of_its_step(tmp_path, whole, step, first):
    """The checkpoint of the new best would stand between them: resumed there, the hook would be left out."""
    dies = once(step)
    track = [lambda: Hook(2, Track()), lambda: Hook(4, act), lambda: Hook(2, dies, "dies")]
    hooks = [track[2], *track[:2]] if first else track
    with pytest.raises(UserError, match="killed"):
        loop.train(build(tmp_path, *hooks, **BEST))
    run = build(tmp_path, *hooks, **BEST)
    assert run.open() == step - 2
    loop.train(run)
    assert ended(run) == whole
    assert [seen[0] for seen in whole[1]["Track"]["seen"]] == [2, 4, 6, 8]


@pytest.mark.slow
def test_stopped_by_a_signal_wherever_it_comes(tmp_path, whole):
    for _ in range(4):
        interrupted = []

        def interrupt(context, interrupted=interrupted):
            if not interrupted:
                interrupted.append(context.step)
                os.kill(os.getpid(), signal.SIGTERM)

        hooks = [lambda: Hook(2, Track()), lambda: Hook(4, act), lambda i=interrupt: Hook(1, i, "stop")]
        run = build(tmp_path, *hooks, **BEST)
        loop.train(run)
    run = build(tmp_path, lambda: Hook(2, Track()), lambda: Hook(4, act), **BEST)
    assert run.open() == 4
    loop.train(run)
    assert ended(run) == whole


@pytest.mark.parametrize("period", ["5 steps", pytest.param("3 steps", marks=pytest.mark.slow)])
def test_going_back_takes_the_hooks_back_too(tmp_path, period):
    """Step 8 is not finite; the run goes back across the evaluation and the hook of step 6 (or ends beside them)."""
    settings = {"train.on_nonfinite": "rewind", "checkpoint.every": period, "eval.every": "2 steps"}
    run = build(tmp_path / "rewound", lambda: Hook(1, Track()), heat={(7, 3): small.HOT}, **settings)
    result = loop.train(run)
    other = build(tmp_path / "whole", lambda: Hook(1, Track()), heat={(7, 3): small.HOT}, **settings)
    other.state.skip_list.assign([7, *[-1] * (other.state.skip_list.shape[0] - 1)])
    expected = loop.train(other)
    assert ended(run) == ended(other)
    assert [seen[0] for seen in run.note["hooks"]["Track"]["seen"]] == list(range(1, 11))
    for key in ("final", "final_step", "best", "best_steps", "train", "step", "updates"):
        assert result[key] == expected[key]


class Other(Track):
    pass


def test_an_entry_and_a_hook_that_have_lost_each_other_are_named(idle, caplog, monkeypatch):
    """Track left and Other came; the state of Track is kept for the day on which it is back."""
    caplog.set_level("INFO")
    states = {"Track": {"seen": [[3, 0.5, None]]}}
    monkeypatch.setattr(idle, "note", {"wall_seconds": 1.0, "hooks": states})
    with having(idle, Hook(1, Other()), Hook(1, act)) as own:
        assert own.note() == {"hooks": {**states, "Other": {"seen": []}}}
    assert [record.getMessage() for record in caplog.records] == [
        "hook 'Other' has no state in the checkpoint of step 0: it starts fresh",
        "the checkpoint of step 0 has the state of a hook 'Track', which make_hooks does not return or which takes no"
        " state: it is kept",
    ]
    caplog.clear()
    track = Track()
    with having(idle, Hook(1, track)) as own:
        assert own.note() == {"hooks": states} and track.seen == [[3, 0.5, None]]
        track.seen.append([4, 0.25, None])
        assert len(own.note()["hooks"]["Track"]["seen"]) == 2 and len(states["Track"]["seen"]) == 1
    with having(idle, Hook(1, act)) as own:
        assert own.note() == {"hooks": states}
    monkeypatch.setattr(idle, "note", {})
    caplog.clear()
    with having(idle, Hook(1, Track())):
        assert not caplog.records  # a run from scratch: nothing is missing
    with having(idle, Hook(1, act)) as own:
        assert own.note() == {}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["first", "last"])
def test_killed_by_the_system_beside_a_best_evaluation(tmp_path, place):
    """tests/hooked.py under `kill -9`, at each step where an evaluation, a schedule and hooks meet."""

    def launch(workdir, kill):
        command = [sys.executable, "launch.py", "--config=tests/hooked.py", f"--workdir={workdir}"]
        return subprocess.run(command, env={**os.environ, "HOOKED_KILL": kill}, capture_output=True).returncode

    assert launch(tmp_path / "whole", "") == 0
    for step in (10, 20, 30, 40):
        assert launch(tmp_path / "run", f"{step} {place}") == -signal.SIGKILL
    assert launch(tmp_path / "run", "") == 0
    last = Path("checkpoints", "step-00000040")
    whole, run = (tmp_path / name / last for name in ("whole", "run"))
    assert digest(read_arrays(run)) == digest(read_arrays(whole))
    states = [json.loads((folder / "manifest.json").read_text())["note"]["hooks"] for folder in (run, whole)]
    assert states[0] == states[1] and [step for step, _ in states[1]["Seen"]] == [10, 20, 30, 40]
    kept = [rows(tmp_path / name, "examples_per_second") for name in ("whole", "run")]
    assert kept[0] == kept[1]

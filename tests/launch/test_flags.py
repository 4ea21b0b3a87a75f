"""Flags and the run folder are refused in one line, with status 2, before the experiment is executed."""

import datetime
import errno
import os
import types
from pathlib import Path

import pytest

from framework.experiment.returns import OPTIONAL, REQUIRED
from framework.folder import check_workdir
from framework.run import request
from tests.launch.started import EXPERIMENT, MODES

# --- flags: before TensorFlow, before the file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--config is missing. Type e.g. --config=experiments/mnist_mlp.py (--help shows more)."),
        (["--config.seed=1"], "--config is missing. Type e.g. --config=experiments/mnist_mlp.py (--help shows more)."),
        (
            ["--config=x.py", "--mode=trian"],
            f"--mode=trian is not one of {MODES}. Did you mean 'train'?",
        ),
        (
            ["--config=x.py", "--mode=Check"],
            f"--mode=Check is not one of {MODES}. Did you mean 'check'?",
        ),
        (["--config=x.py", "--mode=reply"], f"--mode=reply is not one of {MODES}. Did you mean 'replay'?"),
        (["--config=x.py", "--mode="], f"--mode= is not one of {MODES}."),
        *[
            (
                ["--config=x.py", f"--mode={mode}"],
                f"--mode={mode} needs the --workdir of a trained run, e.g. --workdir=runs/mnist.",
            )
            for mode in ("evaluate", "export")
        ],
        (
            ["--config=x.py", "--mode=replay", "--step=3"],
            "--mode=replay needs the --workdir of a trained run, e.g. --workdir=runs/mnist.",
        ),
        (
            ["--mode=serve"],
            "--mode=serve needs the --workdir of a trained run, e.g. --workdir=runs/mnist.",
        ),
        *[
            (
                ["--mode=serve", "--workdir=r", typed],
                f"{typed.partition('=')[0]} has no effect with --mode=serve, which takes the exports of --workdir."
                " Leave it out.",
            )
            for typed in ("--config=x.py", "--seed=1", "--data_dir=d", "--config.train.compile=graph")
        ],
        (
            ["--config=x.py", "--mode=sweep", "--sampler=tpw"],
            "--sampler=tpw is not one of tpe, random, grid. Did you mean 'tpe'?",
        ),
        (
            ["--config=x.py", "--mode=sweep", "--pruner=hyperband"],
            "--pruner=hyperband is not one of none, median, asha.",
        ),
        (["--config=x.py", "--mode=sweep", "--trials=0"], "--trials=0 is out of range: it must be at least 1."),
        (
            ["--config=x.py", "--trials=3"],
            "--trials has no effect with --mode=train. Use --mode=sweep, or leave it out.",
        ),
        (
            ["--mode=serve", "--workdir=r", "--rest_port=70000"],
            "--rest_port=70000 is out of range: a port is from 0 to 65535.",
        ),
        (
            ["--mode=serve", "--workdir=r"],
            "r/exports/saved_model does not exist. Export first: --mode=export, or name a folder: --export=….",
        ),
        (
            ["--config=x.py", "--trust"],
            "--trust has no effect with --mode=train. Use --mode=serve, or leave it out.",
        ),
        (
            ["--config=x.py", "--mode=replay", "--workdir=r", "--eager"],
            "--mode=replay needs the step to show. Type e.g. --step=120.",
        ),
        (
            ["--config=x.py", "--mode=replay", "--workdir=nothing", "--step=3"],
            "--workdir=nothing has no checkpoint. Train first: --mode=train.",
        ),
        *[
            (
                ["--config=x.py", *mode, flag],
                f"--{name} has no effect with --mode={shown}. Use --mode={owner}, or leave it out.",
            )
            for flag, name, mode, shown, owner in (
                ("--step=3", "step", [], "train", "replay"),
                ("--step=3", "step", ["--mode=check"], "check", "replay"),
                ("--eager", "eager", ["--mode=verify_resume"], "verify_resume", "replay"),
                ("--noeager", "eager", ["--mode=export"], "export", "replay"),
                ("--kills=3", "kills", ["--mode=replay"], "replay", "verify_resume"),
                ("--kills=3", "kills", [], "train", "verify_resume"),
                ("--local_workers=2", "local_workers", ["--mode=evaluate"], "evaluate", "train"),
                ("--formats=lite", "formats", ["--mode=evaluate"], "evaluate", "export"),
                ("--checkpoint=best", "checkpoint", [], "train", "evaluate or --mode=export"),
                ("--checkpoint=3", "checkpoint", ["--mode=replay", "--step=3"], "replay", "evaluate or --mode=export"),
            )
        ],
        *[
            (
                ["--config=x.py", "--mode=evaluate", "--workdir=r", f"--checkpoint={which}"],
                f"--checkpoint={which} is neither last nor best nor the number of a step.{hint}"
                " Type e.g. --checkpoint=best or --checkpoint=469.",
            )
            for which, hint in (
                ("bets", " Did you mean 'best'?"),
                *((text, "") for text in ("0", "-3", "1e3", "", "٣", "9" * 20)),
            )
        ],
        (
            ["--config=x.py", "--mode=export", "--checkpoint=3", "--config.export.checkpoint", "best"],
            "--checkpoint=3 and --config.export.checkpoint both say what is exported. Leave one of them out.",
        ),
        *[
            (
                ["--config=x.py", f"--mode={mode}", f"--{name}={value}"],
                f"--{name}={value} is out of range: it must be at least 1.",
            )
            for mode, name, value in (("replay", "step", 0), ("replay", "step", -3), ("verify_resume", "kills", 0))
        ],
        (
            ["--config=x.py", "--mode=verify_resume", "--kills=many"],
            "--kills=many: 'many' is not of type int. Type e.g. --kills=1.",
        ),
        (
            ["--config=x.py", "--workdir="],
            "--workdir='' is no folder. Type e.g. --workdir=runs/first, or leave it out.",
        ),
        (
            ["--config=x.py", "--workdir", "--mode=check"],
            "--workdir='--mode=check' is no folder. Type e.g. --workdir=runs/first, or leave it out.",
        ),
        (
            ["--config=x.py", "--workdir=", "--mode=export"],
            "--workdir='' is no folder. Type e.g. --workdir=runs/first, or leave it out.",
        ),
        (
            ["--config=x.py", "--workdir=nothing", "--mode=evaluate"],
            "--workdir=nothing has no checkpoint. Train first: --mode=train.",
        ),
        (["--confg=x.py"], "--confg: there is no such flag. Did you mean '--config'? --help lists them."),
        (["--config=x.py", "--seeds=1"], "--seeds: there is no such flag. Did you mean '--seed'? --help lists them."),
        (["--config=x.py", "--noseed"], "--noseed: there is no such flag. Did you mean '--seed'? --help lists them."),
        (
            ["--config=x.py", "--train.compile=xla"],
            "--train.compile: there is no such flag. Did you mean '--config.train.compile'? --help lists them.",
        ),
        (
            ["--config=x.py", "--learning_rate=1"],
            "--learning_rate: there is no such flag. Did you mean '--config.schedule.learning_rate'?"
            " --help lists them.",
        ),
        (["--config=x.py", "--zzzzzz"], "--zzzzzz: there is no such flag. --help lists them."),
        (["--flagfile=flags.txt"], "--flagfile=flags.txt: there is no such flag. --help lists them."),
        (["--flagfile"], "--flagfile: there is no such flag. --help lists them."),
        (["--undefok=wrong", "--wrong=1"], "--undefok=wrong: there is no such flag. --help lists them."),
        (["x.py"], "'x.py' is not a flag. Overrides look like --config.train.compile=graph."),
        (
            ["--config=x.py", "config.seed=1"],
            "'config.seed=1' is not a flag. Overrides look like --config.train.compile=graph.",
        ),
        (
            ["--config=x.py", "--", "--seed=1"],
            "'--seed=1' is not a flag. Overrides look like --config.train.compile=graph.",
        ),
        (["--config=x.py", "é\n"], "'é ' is not a flag. Overrides look like --config.train.compile=graph."),
        (["--config=x.py", "--seed=abc"], "--seed=abc: 'abc' is not of type int. Type e.g. --seed=1."),
        (["--config=x.py", "--seed", "1e3"], "--seed=1e3: '1e3' is not of type int. Type e.g. --seed=1."),
        (["--config=x.py", "--seed="], "--seed=: '' is not of type int. Type e.g. --seed=1."),
        (["--config=x.py", "--seed=a:b"], "--seed=a:b: 'a:b' is not of type int. Type e.g. --seed=1."),
        (["--config=x.py", "--nodebug=1"], "--nodebug=1 does not take an argument. --help shows examples."),
        (["--config=x.py", "--debug=maybe"], "--debug=maybe: 'maybe' is not of type bool. Type e.g. --debug."),
        (["--config=x.py", "--mode"], "Missing value for flag --mode. --help shows examples."),
        (
            ["--config="],
            f"--config= cannot be read: {os.strerror(errno.EISDIR)}. Type e.g. --config=experiments/mnist_mlp.py.",
        ),
        (
            ["--config=y.py:small"],
            f"--config=y.py cannot be read: {os.strerror(errno.ENOENT)}. Did you mean 'x.py'?"
            " Type e.g. --config=experiments/mnist_mlp.py.",
        ),
    ],
)
def test_flags(refused, arguments, expected):
    assert refused(*arguments) == expected
    assert not Path("x.executed").exists()


def test_a_function_is_missing(refused):
    Path("x.py").write_text(EXPERIMENT.replace("make_loss", "make_lose"))
    assert refused("--config=x.py") == (
        "x.py does not define make_loss(cfg). Did you mean 'make_lose'? An experiment defines"
        f" {', '.join(REQUIRED)} and may define {', '.join(OPTIONAL)}."
    )
    assert not Path("x.executed").exists()


# --- the run folder: before the file ----------------------------------------------------------------------------------


def cannot(workdir, code):
    return (
        f"--workdir={workdir} cannot be written: {os.strerror(code)}."
        " Type a folder of yours, e.g. --workdir=runs/first."
    )


@pytest.mark.parametrize(
    ("workdir", "code"),
    [
        ("x.py", errno.EEXIST),
        ("x.py/below", errno.ENOTDIR),
        pytest.param(
            "/proc/nothing/of/ours",
            errno.ENOENT,
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc"),
        ),
    ],
)
def test_workdir_that_cannot_be_made(refused, workdir, code):
    assert refused("--config=x.py", f"--workdir={workdir}") == cannot(workdir, code)
    assert not Path("x.executed").exists()
    assert sorted(os.listdir()) == ["x.py"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_workdir_that_cannot_be_written(refused, monkeypatch, code):
    def refuse(path, data):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert refused("--config=x.py", "--workdir=deep/run") == cannot("deep/run", code)
    assert not Path("x.executed").exists()
    assert sorted(os.listdir()) == ["x.py"]


def test_check_workdir_leaves_nothing_behind():
    check_workdir(Path("some/deep/run"))
    assert not Path("some").exists()
    Path("mine").mkdir()
    Path("mine/kept").write_text("")
    check_workdir(Path("mine"))
    check_workdir(Path("mine/new"))
    assert os.listdir("mine") == ["kept"]


def test_fresh_workdir(monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 3, 4, 5, 6, 7)

    monkeypatch.setattr(request, "datetime", types.SimpleNamespace(datetime=Clock))
    monkeypatch.setattr(request.secrets, "token_hex", lambda count: "ab" * count)
    workdir = request.fresh_workdir("experiments/mnist_mlp.py:small")
    assert workdir == Path("runs", "mnist_mlp-small-20260304-050607-abab")
    assert not workdir.exists()
    differing = {"train.duration": "1 epoch", "data.dir": "/x", "optimizer.groups": "ab*" * 20, "seed": 3}
    workdir = request.fresh_workdir("experiments/mnist_mlp.py", differing)
    assert workdir == Path("runs", "mnist_mlp-duration=1_epoch-seed=3-20260304-050607-abab")

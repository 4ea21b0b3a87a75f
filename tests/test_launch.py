"""launch.py and the early checks of run/build.py: one line, exit status 2, and nothing has been touched yet."""

import datetime
import errno
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import launch
from framework import config
from framework.config import UserError
from framework.config.overrides import override
from framework.experiment import load, user_code
from framework.experiment.returns import OPTIONAL, REQUIRED
from framework.folder import check_workdir
from framework.run import build, request

ROOT = Path(launch.__file__).parent
EXPERIMENT = """
from pathlib import Path
from framework.config import base_config
from framework.config.overrides import apply_preset

Path(__file__).with_suffix(".executed").touch()
PRESETS = {"small": {"model.width": 4}, "typo": {"model.widht": 4}}


def get_config(arg):
    config = base_config()
    config.model.width = 8
    return apply_preset(config, arg, PRESETS)


def make_data(cfg, split):
    Path(__file__).with_suffix(".loaded").touch()


def make_model(cfg): ...


def make_loss(cfg): ...


def make_schedule(cfg, total_steps): ...
"""
CHECK = "--mode=check prints every key."
ELSEWHERE = " Use another folder; there, --config.resume_from=r continues this run."
MODES = "train, evaluate, export, check, replay, verify_resume"


class Reached(Exception):
    """The first line that touches a device was about to run."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An experiment in x.py; whoever comes as far as runtime.setup raises Reached with the final config."""

    def setup(final):
        raise Reached(final)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("framework.distribute.devices.setup", setup)
    is_own = user_code.is_own
    monkeypatch.setattr("framework.experiment.user_code.is_own", lambda file: file != __file__ and is_own(file))
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


def accepted(*arguments):
    """The config with which a launch comes as far as the devices."""
    with pytest.raises(Reached) as caught:
        launch.main(["launch.py", *arguments])
    return caught.value.args[0]


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
    assert workdir == Path("runs", "mnist_mlp-20260304-050607-abab")
    assert not workdir.exists()


# --- the config: before a device --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=x.py:smal"], "there is no preset 'smal'. Did you mean 'small'? Presets: small, typo."),
        (
            ["--config=x.py:typo"],
            "preset 'typo' sets 'model.widht', which get_config did not set before. Did you mean 'model.width'?",
        ),
        (
            ["--config=x.py", "--config.model.widht=3"],
            f"--config.model.widht=3: there is no key 'model.widht'. Did you mean 'model.width'? {CHECK}",
        ),
        (
            ["--config=x.py", "--config.batch_size", "3"],
            "--config.batch_size=3: there is no key 'batch_size'."
            f" Did you mean 'data.batch_size' or 'eval.batch_size'? {CHECK}",
        ),
        (["--config=x.py", "--config."], f"--config.: there is no key ''. {CHECK}"),
        (
            ["--config=x.py", "--config.train"],
            "--config.train is a section, not a value. Set one of its keys:"
            " train.block_steps, train.compile, train.duration, train.micro_batches, train.nonfinite_limit,"
            " train.on_nonfinite, train.precision, train.remat.",
        ),
        (
            ["--config=x.py", "--config.model.width=wide"],
            "--config.model.width=wide: 'wide' is not of type int. Type e.g. --config.model.width=8.",
        ),
        (
            ["--config=x.py", "--config.model.width"],
            "--config.model.width: 'model.width' is not a switch and needs a value. Type e.g. --config.model.width=8.",
        ),
        (
            ["--config=x.py", "--config.model.width", "--seed=1"],
            "--config.model.width: 'model.width' is not a switch and needs a value. Type e.g. --config.model.width=8.",
        ),
        (
            ["--config=x.py", "--config.data.batch_size", "-1"],
            "data.batch_size=-1 is out of range: it must be at least 1 and at most 2147483647."
            " Use --config.data.batch_size=N.",
        ),
        (
            ["--config=x.py", "--seed=-1"],
            "seed=-1 is out of range: it must be at least 0 and at most 9223372036854775807. Use --config.seed=N.",
        ),
        (
            ["--config=x.py", "--config.schedule.learning_rate=nan"],
            "schedule.learning_rate=nan is out of range: it must be finite and at least 0."
            " Use --config.schedule.learning_rate=N.",
        ),
        (
            ["--config=x.py", "--config.train.duration=5\nparsecs"],
            "train.duration='5 parsecs' is not a duration."
            " Type e.g. --config.train.duration='2 epochs' (steps, epochs, examples or %).",
        ),
        (
            ["--config=x.py", "--config.train.compile=fast"],
            "train.compile='fast' is not one of auto, graph, xla, xla_gradients, xla_update, eager."
            " Use --config.train.compile=auto.",
        ),
        (
            ["--config=x.py", "--config.eval.splits=()"],
            "eval.splits=() names no split, but a run is judged and its exports are verified on one."
            " Use --config.eval.splits=test.",
        ),
        (
            ["--config=x.py", "--config.optimizer.weight_decay=0.1"],
            "optimizer.weight_decay=0.1 has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=adamw or --config.optimizer.weight_decay=0.0.",
        ),
    ],
)
def test_config(refused, arguments, expected):
    assert refused(*arguments) == expected
    assert Path("x.executed").exists()


@pytest.mark.parametrize(("returned", "kind"), [("None", "NoneType"), ("config.to_dict()", "dict")])
def test_get_config_returns_no_config(refused, returned, kind):
    Path("x.py").write_text(EXPERIMENT.replace("return apply_preset(config, arg, PRESETS)", f"return {returned}"))
    expected = f"x.py: get_config returned {kind}, not a ConfigDict. Start from base_config() and return it."
    assert refused("--config=x.py") == expected


def test_a_check_of_the_experiment(refused):
    check = "def check_config(cfg): check_range('model.width', cfg.model.width, 1, 9)\n"
    Path("x.py").write_text(f"{EXPERIMENT}from framework.config import check_range\n{check}")
    expected = "model.width=10 is out of range: it must be at least 1 and at most 9. Use --config.model.width=N."
    assert refused("--config=x.py", "--config.model.width=10") == expected
    assert accepted("--config=x.py", "--config.model.width=9").model.width == 9


# --- arguments that are no names of anything --------------------------------------------------------------------------

LONG, SHORT = "x" * 5000, f"{'x' * 120}…{'x' * 40}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([f"--config={LONG}"], "cannot be read"),
        ([f"--config={'/'.join(['x' * 200] * 40)}"], "is too long for the name of a file"),
        (["--config=x.py", f"--workdir={LONG}"], "cannot be written"),
        (["--config=x.py", f"--workdir={LONG}", "--mode=evaluate"], "has no checkpoint"),
        (["--config=x.py", f"--mode={LONG}"], "is not one of"),
        (["--config=x.py", f"--seed={'1' * 5000}"], "is not of type int"),
        (["--config=x.py", f"--config.seed={'1' * 5000}"], "is not of type int"),
        (["--config=x.py", f"--config.{LONG}=1"], "there is no key"),
        (["--config=x.py", f"--config.train.duration={LONG}"], "is not a duration"),
        (["--config=x.py", f"--{LONG}"], "there is no such flag"),
        (["--config=x.py", f"--config.eval.splits={LONG}"], "a name of 5000 characters: it must be at most 100"),
        (["--config=x.py", f"--config.resume_from={LONG}"], "is too long for the name of a file"),
        (["--config=x.py", f"--config.init_from={LONG}"], "is too long for the name of a file"),
        (["--config=x.py", "--config.init_from=nowhere"], "is neither a checkpoint nor a run folder that has one"),
        (["--config=a\0b.py"], r"--config=a\x00b.py has a NUL character"),
        (["--config=x.py", "--workdir=a\0b", "--mode=evaluate"], "has a NUL character"),
        (["--config=x.py", "--config.resume_from=\0"], "has a NUL character"),
        (["--config=\udce9.py"], r"--config=\udce9.py has bytes that are not UTF-8"),
        (["--config=x.py", "--config.data.name=\udce9"], "has bytes that are not UTF-8"),
        (["--config=x.py", "--seed=1.5"], "is not of type int"),
        (["--config=pipe.py"], "is no experiment, but a device, a pipe or a file of more than 5 MB"),
        (["--config=/dev/zero"], "is no experiment"),
        (["--config=large.py"], "is no experiment"),
        (["--config=deep.py"], "is not valid Python: it is nested too deeply"),
        (["--config=return.py"], "return.py:1: SyntaxError: 'return' outside function"),
        (["--config=utf.py"], "is not valid Python"),
    ],
)
def test_arguments_that_are_no_names(refused, arguments, said):
    os.mkfifo("pipe.py")
    Path("large.py").write_bytes(b"#" * 5_000_001)
    Path("deep.py").write_text(f"x = {'-' * 200_000}1\n")
    Path("return.py").write_text(f"return\n{EXPERIMENT}")
    Path("utf.py").write_bytes(b"\xe9 = 1\n")
    message = refused(*arguments)
    assert said in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (({},), "build takes the experiment file, e.g. 'experiments/mnist_mlp.py', not a value of type dict."),
        ((None,), "build takes the experiment file, e.g. 'experiments/mnist_mlp.py', not a value of type NoneType."),
        (("x.py", 3), "overrides=3 is neither {'train.compile': 'graph'} nor ['--config.train.compile=graph']."),
        (
            ("x.py", "seed"),
            "overrides='seed' is neither {'train.compile': 'graph'} nor ['--config.train.compile=graph'].",
        ),
        (
            ("x.py", {1: 2}),
            "overrides={1: 2} is neither {'train.compile': 'graph'} nor ['--config.train.compile=graph'].",
        ),
        (("x.py", [3]), "overrides=(3,) is neither {'train.compile': 'graph'} nor ['--config.train.compile=graph']."),
        (("x.py", {}, 3), "workdir is a folder, e.g. 'runs/first', not a value of type int."),
        (("a\0b",), "the experiment's name has a NUL character. Type it again."),
        (("x.py", {}, "a\udce9"), "workdir has bytes that are not UTF-8. Type it again."),
    ],
)
def test_what_build_cannot_take(arguments, said):
    with pytest.raises(UserError) as caught:
        build.build(*arguments)
    assert str(caught.value) == said


def test_build_takes_a_path_and_any_list_of_overrides():
    with pytest.raises(Reached) as reached:
        build.build(Path("x.py"), (text for text in ["--config.seed=4"]), Path("r"))
    assert reached.value.args[0].seed == 4


# --- what is right comes through --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--config=x.py"], {}),
        (["--config", "x.py"], {}),
        (["-config=x.py", "-workdir=a"], {}),
        (["--config=x.py:small"], {"model.width": 4}),
        (["--config.model.width=3", "--config=x.py:small"], {"model.width": 3}),
        (["--config=zzz.py", "--config=x.py"], {}),
        (["--config=x.py", "--seed=3"], {"seed": 3}),
        (["--config=x.py", "--seed=3", "--config.seed=4"], {"seed": 3}),
        (["--config=x.py", "--config.seed=3", "--config.seed=4"], {"seed": 4}),
        (["--config=x.py", "--data_dir=/some where"], {"data.dir": "/some where"}),
        (["--config=x.py", "--data_dir="], {}),
        (["--config=x.py", "--config.train.duration", "3 epochs"], {"train.duration": "3 epochs"}),
        (["--config=x.py", "--config.eval.splits=a", "--config.eval.splits=b"], {"eval.splits": ("a", "b")}),
        (["--config=x.py", "--config.data.shuffle", "false"], {"data.shuffle": False}),
        (["--config=x.py", "--noconfig.data.shuffle", "--seed=3"], {"data.shuffle": False, "seed": 3}),
        (["--config=x.py", "--noconfig.data.shuffle", "--config.data.shuffle"], {}),
        (["--config=x.py", "--config.data.shuffle", "--seed=3"], {"seed": 3}),
        (["--config=x.py", "--config.data.name=--help"], {"data.name": "--help"}),
    ],
)
def test_arguments_that_are_right(arguments, changed):
    plain = config.base_config()
    plain.model.width = 8
    expected = config.flatten(plain) | changed
    assert config.flatten(accepted(*arguments)) == expected
    assert not Path("runs").exists()


@pytest.mark.parametrize(("mode", "status"), [("train", 0), ("check", 1), ("evaluate", 0), ("export", 3)])
def test_a_mode_gets_the_run_and_what_was_typed(monkeypatch, mode, status):
    seen = []
    built = types.SimpleNamespace(restore=lambda: built.restored.append(True), restored=[], recall=lambda: None)
    built.workdir = Path("r")

    def build_run(loaded, final, workdir, started):
        built.all = (loaded.preset, final, workdir)
        return built

    monkeypatch.setattr("framework.run.build.build_run", build_run)
    monkeypatch.setattr(f"framework.modes.{mode}.main", lambda *given: seen.append(given) or status)
    Path("r").mkdir()
    Path("r/config.json").write_text(json.dumps(small_config()))
    Path("r/x.py").write_text(EXPERIMENT)
    arguments = ["--config=x.py:small", "--workdir=r", f"--mode={mode}", "--config.data.dir", "/d", "--seed=0"]
    assert launch.main(["launch.py", *arguments]) == status
    [(given, overrides)] = seen
    preset, final, workdir = given.all
    assert given.restored == []  # the mode knows which checkpoint
    assert (preset, final.data.dir, final.model.width, workdir) == ("small", "/d", 4, Path("r"))
    assert overrides == ["--config.data.dir=/d", "--config.seed=0"]


# --- another run in the same folder -----------------------------------------------------------------------------------


def small_config(**changed):
    """What config.json of a run of x.py:small holds."""
    created = config.base_config()
    created.model.width = 4
    created.update_from_flattened_dict({key.replace("__", "."): value for key, value in changed.items()})
    return created.to_dict()


def started_run(stored, copy="x.py"):
    Path("r").mkdir()
    Path("r/config.json").write_text(json.dumps(stored))
    Path("r", copy).write_text(EXPERIMENT)


def without(stored, section, key):
    return {**stored, section: {name: value for name, value in stored[section].items() if name != key}}


@pytest.mark.parametrize(
    ("stored", "listed"),
    [
        (small_config(seed=3), "seed: 3 there, 0 now"),
        (
            small_config(train__compile="graph", model__width=9, eval__splits=("a", "b")),
            "eval.splits: ['a', 'b'] there, ['test'] now; model.width: 9 there, 4 now;"
            " train.compile: 'graph' there, 'auto' now",
        ),
        (small_config(data__dir="/elsewhere", seed=3), "seed: 3 there, 0 now"),
        (without(small_config(), "model", "width"), "model.width: 'absent' there, 4 now"),
        ({**small_config(), "old": 1}, "old: 1 there, 'absent' now"),
        (
            {**small_config(), **{f"old{number}": 1 for number in range(7)}},
            "; ".join(f"old{number}: 1 there, 'absent' now" for number in range(5)) + "; and 2 more",
        ),
    ],
)
def test_another_config_in_the_same_folder(refused, stored, listed):
    started_run(stored)
    before = {path.name: path.read_bytes() for path in Path("r").iterdir()}
    expected = f"--workdir=r holds a run of another config ({listed}).{ELSEWHERE}"
    assert refused("--config=x.py:small", "--workdir=r") == expected
    assert {path.name: path.read_bytes() for path in Path("r").iterdir()} == before


def test_another_duration_and_more_in_the_same_folder(refused):
    started_run(small_config(train__duration="3 epochs", seed=3))
    said = refused("--config=x.py:small", "--workdir=r", "--config.train.duration=4 epochs")
    assert said == (
        "--workdir=r holds a run of another config (seed: 3 there, 0 now; train.duration: '3 epochs' there, '4 epochs'"
        " now). To train longer, type the rest as it is there. Else use another folder; there,"
        " --config.resume_from=r continues this run."
    )


def test_another_experiment_in_the_same_folder(refused):
    started_run(small_config(), copy="y.py")
    expected = f"--workdir=r holds a run of another config (experiment: x.py now, another file there).{ELSEWHERE}"
    assert refused("--config=x.py:small", "--workdir=r") == expected


@pytest.mark.parametrize("moved", [{}, {"data__dir": "/elsewhere"}])
def test_the_same_config_goes_on(moved):
    started_run(small_config(**moved))
    assert accepted("--config=x.py:small", "--workdir=r").model.width == 4


def test_an_edited_experiment_goes_on_with_a_warning(caplog):
    started_run(small_config())
    Path("x.py").write_text(EXPERIMENT + "# a note\n")
    with caplog.at_level("WARNING", "absl"):
        accepted("--config=x.py:small", "--workdir=r")
    assert [record.getMessage() for record in caplog.records] == ["x.py has changed since r was started"]


@pytest.mark.parametrize("mode", ["evaluate", "export", "replay"])
def test_looking_back_takes_the_config_of_the_run(mode):
    started_run(small_config(seed=3, eval__splits=("a", "b")))
    step = ["--step=3"] if mode == "replay" else []
    key = "data.batch_size" if mode == "replay" else "eval.batch_size"
    own = ["--config.seed=3", "--config.train.duration=5 epochs"]  # as the run has them
    final = accepted("--config=x.py", "--workdir=r", f"--mode={mode}", f"--config.{key}=7", *own, *step)
    assert (final.seed, final.model.width, final.eval.splits, config.flatten(final)[key]) == (3, 4, ("a", "b"), 7)


@pytest.mark.parametrize(
    ("mode", "key", "value", "own"),
    [
        *((mode, "train.duration", "'9 steps'", "'5 epochs'") for mode in ("evaluate", "export")),
        ("evaluate", "data.batch_size", "64", "128"),
        ("evaluate", "export.examples", "7", "10000"),
        ("export", "schedule.learning_rate", "0.5", "0.001"),
        ("export", "seed", "4", "0"),
        *(("replay", key, value, own) for key, value, own in (
            ("eval.batch_size", "7", "1000"), ("log.every", "'9 steps'", "'100 steps'"),
            ("checkpoint.keep", "9", "3"), ("export.examples", "9", "10000"),
        )),
    ],
)  # fmt: skip
def test_what_a_look_at_a_run_does_not_read_is_refused(refused, mode, key, value, own):
    started_run(small_config())
    arguments = ["--config=x.py", "--workdir=r", f"--mode={mode}", f"--config.{key}={value.strip(chr(39))}"]
    assert refused(*arguments, *(["--step=3"] if mode == "replay" else [])) == (
        f"--config.{key}={value} has no effect with --mode={mode}, which takes the {key} of the run ({own})."
        " Leave it out."
    )


def test_which_checkpoint_is_evaluated_is_said_by_the_flag(refused):
    started_run(small_config(checkpoint__best_metric="test/loss"))
    arguments = ["--config=x.py", "--workdir=r", "--config.export.checkpoint=best"]
    assert refused(*arguments, "--mode=evaluate") == (
        "--config.export.checkpoint=best has no effect with --mode=evaluate, which takes the export.checkpoint of the"
        " run (last). Type --checkpoint=best, or leave it out."
    )
    assert accepted(*arguments, "--mode=export").export.checkpoint == "best"


def test_looking_back_at_a_run_of_an_older_file(refused):
    started_run(small_config() | {"model": {"width": 4, "depth": 2}})
    expected = "the run's config.json sets 'model.depth', which its experiment file no longer has. Put it back."
    assert refused("--config=x.py", "--workdir=r", "--mode=evaluate") == expected


def test_build_from_python_says_the_same():
    with pytest.raises(UserError) as caught:
        build.build("x.py", {"model.widht": 3}, "r")
    assert (
        str(caught.value)
        == f"--config.model.widht=3: there is no key 'model.widht'. Did you mean 'model.width'? {CHECK}"
    )
    with pytest.raises(Reached) as reached:
        build.build("x.py:small", {"seed": 3}, Path("r"))
    assert config.flatten(reached.value.args[0]) == config.flatten(ConfigDict(small_config(seed=3)))
    assert not Path("r").exists()


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--debug", "-debug", "--debug=true"])
def test_debug_shows_a_traceback(capsys, flag):
    assert launch.main(["launch.py", "--config=x.py", flag, "--config.sed=1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    last = f"framework.errors.UserError: --config.sed=1: there is no key 'sed'. Did you mean 'seed'? {CHECK}\n"
    assert err.endswith(last)


def test_an_experiments_own_error_is_one_line(refused, capsys):
    Path("x.py").write_text(EXPERIMENT.replace("config.model.width = 8", "config.model.width = width"))
    line = line_of("config.model.width = 8")
    expected = f"x.py:{line}: get_config: NameError: name 'width' is not defined. --debug shows the traceback."
    assert refused("--config=x.py") == expected
    assert launch.main(["launch.py", "--config=x.py", "--debug"]) == 2
    assert f'x.py", line {line}, in get_config' in capsys.readouterr().err
    with pytest.raises(UserError, match="name 'width' is not defined") as caught:
        build.build("x.py")
    assert isinstance(caught.value.__cause__, NameError)


def line_of(text):
    return 1 + EXPERIMENT[: EXPERIMENT.index(text)].count("\n")


def test_a_key_that_get_config_may_not_set(refused):
    Path("x.py").write_text(EXPERIMENT.replace("config.model.width = 8", "config.sed = 8"))
    line = line_of("config.model.width = 8")
    assert refused("--config=x.py") == (
        f"x.py:{line}: config.sed = 8: there is no such key. Did you mean config.seed? Own keys belong in"
        " config.data or config.model."
    )


@pytest.mark.parametrize("error", [ZeroDivisionError, OverflowError, FloatingPointError])
def test_arithmetic_of_an_experiment_is_not_a_loss_that_diverged(refused, error):
    Path("x.py").write_text(EXPERIMENT.replace("config.model.width = 8", f"raise {error.__name__}('its own')"))
    assert f": {error.__name__}: its own. " in refused("--config=x.py")


def test_a_fault_of_the_framework_shows_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr("framework.config.finalize", len)
    monkeypatch.setattr("framework.run.request.override", lambda config, overrides: 3)
    with pytest.raises(TypeError):
        launch.main(["launch.py", "--config=x.py"])
    assert capsys.readouterr().err == ""


def test_a_loss_that_diverged_is_one_line_and_status_1(monkeypatch, capsys):
    from framework.errors import NonFiniteError

    def diverge(*given):
        raise NonFiniteError("step 3: loss=nan")

    monkeypatch.setattr("framework.run.build.build_run", lambda *given: types.SimpleNamespace(workdir=Path("r")))
    monkeypatch.setattr("framework.modes.train.main", diverge)
    assert launch.main(["launch.py", "--config=x.py"]) == 1
    assert capsys.readouterr().err == "error: step 3: loss=nan\n"
    assert launch.main(["launch.py", "--config=x.py", "--debug"]) == 1
    assert capsys.readouterr().err.endswith("framework.errors.NonFiniteError: step 3: loss=nan\n")


def test_an_interrupt_is_status_130(monkeypatch, capsys):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("framework.run.build.build_run", interrupt)
    assert launch.main(["launch.py", "--config=x.py"]) == 130
    assert capsys.readouterr() == ("", "interrupted; checkpoints, if there are any, stay\n")


# --- as a process -----------------------------------------------------------------------------------------------------


def process(*arguments, script=("launch.py",)):
    command = [sys.executable, *script, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # what launch.py sets by itself
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("level", "printed"), [(None, ""), ("3", ""), ("0", "a note of TensorFlow's\n")])
def test_notes_of_the_start_are_for_who_asks_for_them(monkeypatch, capfd, level, printed):
    # "3" is what the workers of --local_workers inherit from a launch that was given nothing.
    monkeypatch.setattr(launch.importlib, "import_module", lambda name: os.write(2, b"a note of TensorFlow's\n"))
    monkeypatch.setattr(launch.Path, "glob", lambda *_: iter(()))  # no GPU
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level or "")
    if level is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    launch._import_silently()
    assert capfd.readouterr().err == printed


def test_loading_looks_for_garbage_only_afterwards():
    """What TensorFlow's modules make is not looked through again, and what the run makes is."""
    said = "import gc; import launch; launch._import_run(); print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    done = process("-c", said, script=())
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr


def test_help():
    done = process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Trains, evaluates, exports or checks an experiment, replays a step of a run, or proves")
    examples = [line.strip() for line in lines if line.startswith("    python launch.py --config=experiments/")]
    assert len(examples) == 7
    for wanted in ("--workdir=", "--mode=check", "--mode=evaluate", "--config.train.duration='2 epochs'", "--seed=1"):
        assert any(wanted in example for example in examples), wanted
    assert lines[lines.index("Flags:") + 1 :] == [
        "  --config        Experiment file, FILE.py or FILE.py:PRESET.",
        "  --workdir       Run folder; a fresh one below runs/ by default.",
        f"  --mode          What to do: {MODES}. [train]",
        "  --local_workers train: number of worker processes on this machine that share each step.",
        "  --checkpoint    evaluate, export: last, best, or the number of a step. [last]",
        "  --step          replay: the step to show.",
        "  --eager         replay: compute the step eagerly as well, and check every layer for NaN.",
        "  --kills         verify_resume: how often a short run is killed. [5]",
        "  --data_dir      Folder with the data; short for --config.data.dir.",
        "  --seed          Short for --config.seed.",
        "  --help_config   List the keys of the config, or of one section: --help_config=train.",
        "  --debug         Show the traceback of an error.",
        "  --config.KEY=VALUE  Overrides a value of the config; --help_config lists the keys.",
    ]
    assert max(map(len, lines)) <= 120
    assert "2 bad input" in done.stdout


def test_examples_of_the_help_are_right(monkeypatch):
    """Each names a file, preset and keys that exist."""
    examples = re.findall(r"python launch\.py (.*)", launch.__doc__)
    monkeypatch.chdir(ROOT)
    for example in examples:
        name = re.search(r"--config=(\S+)", example)[1]
        loaded = load.load(name)
        overrides = [argument for argument in shlex.split(example) if argument.startswith("--config.")]
        config.finalize(override(loaded.get_config(), overrides))


def test_nothing_of_the_command_line_waits_for_tensorflow(folder):
    """--help, wrong flags and an experiment file with a missing function: in a fraction of a second."""
    Path("y.py").write_text("def get_config(arg): ...\n")
    source = f"""
import sys, launch
files = [["--config={folder}/y.py"], ["--config={folder}/z.py"]]
for arguments in (["--help"], ["-h"], ["--help_config"], ["--mode=x"], *files):
    print(launch.main(["launch.py", *arguments]))
print({{"tensorflow", "tf_keras", "numpy"}} & set(sys.modules))
"""
    done = process(script=("-c", source))
    statuses = [line for line in done.stdout.splitlines() if re.fullmatch(r"\d|set\(\)|\{.*\}", line)]
    assert statuses == ["0", "0", "0", "2", "2", "2", "set()"], done.stderr


def test_bad_input_as_a_process(folder):
    done = process(f"--config={folder}/x.py", f"--workdir={folder}/r", "--config.train.compile=fast")
    expected = (
        "error: train.compile='fast' is not one of auto, graph, xla, xla_gradients, xla_update, eager."
        " Use --config.train.compile=auto.\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert Path("x.executed").exists()
    assert not Path("x.loaded").exists()
    assert not Path("r").exists()


def test_launch_is_short():
    assert len(Path(launch.__file__).read_text().splitlines()) < 150

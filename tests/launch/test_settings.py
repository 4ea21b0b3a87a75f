"""Configs and arguments are refused in one line, with status 2, before a device; what is right comes through."""

import json
import os
import types
from pathlib import Path

import pytest

import launch
from framework import config
from framework.config import UserError
from framework.run import build
from tests.launch.started import CHECK, EXPERIMENT, Reached, accepted, small_config

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
    built.close = lambda: None

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

"""How launch.py ends: errors of an experiment and of the framework, exit statuses, and launch.py as a process."""

import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import launch
from framework import config
from framework.cli import quiet_import
from framework.config import UserError
from framework.config.overrides import override
from framework.experiment import load
from framework.run import build
from tests.launch.started import CHECK, EXPERIMENT, MODES

ROOT = Path(launch.__file__).parent


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

    monkeypatch.setattr(
        "framework.run.build.build_run", lambda *given: types.SimpleNamespace(workdir=Path("r"), close=lambda: None)
    )
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
    monkeypatch.setattr(quiet_import.importlib, "import_module", lambda name: os.write(2, b"a note of TensorFlow's\n"))
    monkeypatch.setattr(quiet_import.Path, "glob", lambda *_: iter(()))  # no GPU
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level or "")
    if level is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    quiet_import._silently("framework.run.build")
    assert capfd.readouterr().err == printed


def test_loading_looks_for_garbage_only_afterwards():
    """What TensorFlow's modules make is not looked through again, and what the run makes is."""
    said = (
        "import gc; from framework.cli import quiet_import; quiet_import.run_build();"
        " print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    done = process("-c", said, script=())
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr


def test_help():
    done = process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "Trains, evaluates, exports, serves, checks, sweeps or compares runs, replays a step, or proves exact resumes."
    )
    examples = [line.strip() for line in lines if line.startswith("    python launch.py --config=experiments/")]
    assert len(examples) == 10
    for wanted in ("--workdir=", "--mode=check", "--mode=evaluate", "--config.train.duration='2 epochs'", "--seed=1"):
        assert any(wanted in example for example in examples), wanted
    flags = lines[lines.index("Flags:") + 1 :]
    of_mode = next(index for index, line in enumerate(flags) if line.startswith("  --mode "))
    rest = next(line for line in flags[of_mode + 1 :] if line.startswith("  --"))
    wrapped = flags[of_mode : flags.index(rest)]
    assert all(line.startswith(18 * " ") for line in wrapped[1:])
    assert " ".join(line.strip() for line in wrapped) == f"--mode          {MODES}. [train]"
    assert flags[:of_mode] + flags[flags.index(rest) :] == [
        "  --config        Experiment file, FILE.py or FILE.py:PRESET.",
        "  --workdir       Run folder, or its address; a fresh one below runs/ by default.",
        "  --local_workers train: number of worker processes on this machine that share each step.",
        "  --checkpoint    evaluate, export: last, best, or the number of a step. [last]",
        "  --formats       export: names of formats, e.g. saved_model,lite_int8. [all of make_exports]",
        "  --steps         overfit, lr_find: number of steps. [200]",
        "  --low           lr_find: the learning rate of the first step. [1e-7]",
        "  --high          lr_find: the learning rate of the last step. [10]",
        "  --step          replay: the step to show.",
        "  --eager         replay: compute the step eagerly as well, and check every layer for NaN.",
        "  --kills         verify_resume: how often a short run is killed. [5]",
        "  --trials        sweep: number of trials in all. [20; of a grid, all]",
        "  --parallel      sweep: trials that train at the same time. [1]",
        "  --metric        sweep: what is best, e.g. test/accuracy. [checkpoint.best_metric]",
        "  --sampler       sweep: what proposes the values: tpe, random or grid. [tpe]",
        "  --pruner        sweep: what ends trials early: none, median or asha. [none]",
        "  --development   serve: a small server on 127.0.0.1, not for production.",
        "  --export        serve: folder of exports/ that is served. [saved_model]",
        "  --model_name    serve: name of the model in requests. [of models.config, or model]",
        "  --host          serve: address at which docker publishes the ports. [127.0.0.1]",
        "  --port          serve: port of gRPC. [8500]",
        "  --rest_port     serve: port of REST. [8501]",
        "  --runs          compare: a run folder; or type the folders alone, after the mode.",
        "  --out           compare, lr_find: file of the page. [compare.html, with the CSV beside it; lr_find.html]",
        "  --trust         serve: serve versions too that are not as an export of a run wrote them.",
        "  --data_dir      Folder with the data, or its address; short for --config.data.dir.",
        "  --seed          Short for --config.seed.",
        "  --help_config   List the keys of the config, or of one section: --help_config=train.",
        "  --debug         Show the traceback of an error.",
        "  --config.KEY=VALUE  Overrides a value of the config; --help_config lists the keys.",
    ]
    assert max(map(len, lines)) <= 120
    assert "2 bad input" in done.stdout


def test_examples_of_the_help_are_right(monkeypatch):
    """Each names a file, preset and keys that exist."""
    examples = re.findall(r"python launch\.py (.*--config=.*)", launch.__doc__)
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


def test_a_python_without_the_packages_says_what_to_activate():
    done = subprocess.run([sys.executable, "-S", "launch.py", "--mode=list"], cwd=ROOT, capture_output=True, text=True)
    said = f"error: {sys.executable} lacks absl. Type . .venv/bin/activate first; make run makes .venv.\n"
    assert (done.returncode, done.stderr) == (2, said)

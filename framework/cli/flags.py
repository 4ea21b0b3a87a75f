"""The flags and modes of `launch.py`, checked before an experiment or TensorFlow is loaded.

    values, overrides = parse(['launch.py', '--config=tests/tiny.py', '--config.train.compile=graph', '--seed=1'])
    values.mode, overrides                # 'train', ['--config.train.compile=graph', '--config.seed=1']
    own_flags(values)                     # arguments of the mode beside run and overrides, e.g. {'step': 120}

Nothing here imports TensorFlow.
"""

import os
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from framework import folder
from framework.config import base_config, flatten
from framework.config.keys import KEYS
from framework.config.listing import listing
from framework.errors import UserError, near
from framework.experiment.user_code import check_text
from framework.remote.address import check, is_address
from framework.run.arguments import LOOK_BACK
from framework.sweep.study import PRUNERS, SAMPLERS

# {mode: its flags that not every mode takes}
MODES: dict[str, tuple[str, ...]] = {
    "train": ("local_workers",),
    "evaluate": ("checkpoint",),
    "export": ("checkpoint", "formats"),
    "check": (),
    "overfit": ("steps",),
    "lr_find": ("steps", "low", "high", "out"),
    "replay": ("step", "eager"),
    "verify_resume": ("kills",),
    "sweep": ("trials", "parallel", "metric", "sampler", "pruner"),
    "serve": ("development", "export", "model_name", "host", "port", "rest_port", "trust"),
    "report": (),
    "list": (),
    "compare": ("runs", "out"),
}
OF_EXPERIMENT = ("sweep",)  # modes that build runs of their own
# {mode: what it takes}: modes of a folder alone, which take --workdir and no experiment
WITHOUT_RUN = {
    "serve": "the exports of --workdir",
    "report": "the files of --workdir",
    "list": "the runs below --workdir",
    "compare": "the run folders that are typed after it",
}
LOCAL = ("verify_resume", "sweep")  # modes that write several run folders, none of them at an address
WITHOUT_FOLDER = ("overfit", "lr_find")  # modes of a run that write no run folder
CHECKPOINTS = KEYS["export.checkpoint"].choices
FLAGS: tuple[tuple[Callable[..., Any], str, Any, str], ...] = (
    (flags.DEFINE_string, "config", None, "Experiment file, FILE.py or FILE.py:PRESET."),
    (flags.DEFINE_string, "workdir", None, "Run folder, or its address; a fresh one below runs/ by default."),
    (flags.DEFINE_string, "mode", "train", f"{', '.join(MODES)}. [train]"),
    (
        flags.DEFINE_integer,
        "local_workers",
        None,
        "train: number of worker processes on this machine that share each step.",
    ),
    (flags.DEFINE_string, "checkpoint", None, "evaluate, export: last, best, or the number of a step. [last]"),
    (
        flags.DEFINE_string,
        "formats",
        None,
        "export: names of formats, e.g. saved_model,lite_int8. [all of make_exports]",
    ),
    (flags.DEFINE_integer, "steps", None, "overfit, lr_find: number of steps. [200]"),
    (flags.DEFINE_float, "low", None, "lr_find: the learning rate of the first step. [1e-7]"),
    (flags.DEFINE_float, "high", None, "lr_find: the learning rate of the last step. [10]"),
    (flags.DEFINE_integer, "step", None, "replay: the step to show."),
    (flags.DEFINE_bool, "eager", None, "replay: compute the step eagerly as well, and check every layer for NaN."),
    (flags.DEFINE_integer, "kills", None, "verify_resume: how often a short run is killed. [5]"),
    (flags.DEFINE_integer, "trials", None, "sweep: number of trials in all. [20; of a grid, all]"),
    (flags.DEFINE_integer, "parallel", None, "sweep: trials that train at the same time. [1]"),
    (flags.DEFINE_string, "metric", None, "sweep: what is best, e.g. test/accuracy. [checkpoint.best_metric]"),
    (flags.DEFINE_string, "sampler", None, "sweep: what proposes the values: tpe, random or grid. [tpe]"),
    (flags.DEFINE_string, "pruner", None, "sweep: what ends trials early: none, median or asha. [none]"),
    (flags.DEFINE_bool, "development", None, "serve: a small server on 127.0.0.1, not for production."),
    (flags.DEFINE_string, "export", None, "serve: folder of exports/ that is served. [saved_model]"),
    (flags.DEFINE_string, "model_name", None, "serve: name of the model in requests. [of models.config, or model]"),
    (flags.DEFINE_string, "host", None, "serve: address at which docker publishes the ports. [127.0.0.1]"),
    (flags.DEFINE_integer, "port", None, "serve: port of gRPC. [8500]"),
    (flags.DEFINE_integer, "rest_port", None, "serve: port of REST. [8501]"),
    (flags.DEFINE_multi_string, "runs", [], "compare: a run folder; or type the folders alone, after the mode."),
    (
        flags.DEFINE_string,
        "out",
        None,
        "compare, lr_find: file of the page. [compare.html, with the CSV beside it; lr_find.html]",
    ),
    (flags.DEFINE_bool, "trust", None, "serve: serve versions too that are not as an export of a run wrote them."),
    (flags.DEFINE_string, "data_dir", None, "Folder with the data, or its address; short for --config.data.dir."),
    (flags.DEFINE_integer, "seed", None, "Short for --config.seed."),
    (flags.DEFINE_string, "help_config", None, "List the keys of the config, or of one section: --help_config=train."),
    (flags.DEFINE_bool, "debug", False, "Show the traceback of an error."),
)
_PORTS = ("port", "rest_port")
_CHOICES = {"sampler": SAMPLERS, "pruner": PRUNERS}
_LAST_PORT = 65535
_LONGEST_FLAG = 100
_WIDTH = 120


def help_text(argv: Sequence[str], introduction: str) -> str:
    """Returns the text that --help or --help_config asks for; '' if neither was typed.

    Raises:
      UserError: --help_config names no section and no key.
    """
    own = _split(argv)[0]
    if {"--help", "-h", "-help"} & set(own):
        wrap = textwrap.TextWrapper(_WIDTH, subsequent_indent=18 * " ", break_on_hyphens=False)
        flag_lines = (line for _, name, _, text in FLAGS for line in wrap.wrap(f"  --{name:<13} {text}"))
        lines = [introduction.strip(), "", "Flags:", *flag_lines]
        lines.append("  --config.KEY=VALUE  Overrides a value of the config; --help_config lists the keys.")
        return "\n".join(lines)
    for argument, after in zip(own, [*own[1:], ""], strict=True):
        flag, _, name = argument.partition("=")
        if flag in ("--help_config", "-help_config"):
            return listing(name or ("" if after.startswith("-") else after))
    return ""


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Returns the values of the flags, and the overrides of the config as typed, --seed and --data_dir among them.

    Raises:
      UserError: an unknown flag, a wrong value, or flags that do not go together.
    """
    values = flags.FlagValues()  # not absl's process-wide ones: a process may launch any number of times
    values.set_gnu_getopt(True)  # folders to compare may stand before other flags
    for define, name, default, text in FLAGS:
        define(name, default, text, flag_values=values)
    for argument in argv:
        check_text(argument, argument)
    own, overrides = _split(argv)
    _parse(values, own)
    _check_checkpoint(values, overrides)
    _check(values, overrides)
    short = {"data.dir": values.data_dir, "seed": values.seed}
    return values, overrides + [f"--config.{key}={value}" for key, value in short.items() if value is not None]


def own_flags(values: flags.FlagValues) -> dict[str, Any]:
    """Returns {name: value} of the typed flags that not every mode takes; a step is an int."""
    typed = {name: values[name].value for name in MODES[values.mode] if values[name].present}
    return {name: int(value) if name == "checkpoint" and value.isdecimal() else value for name, value in typed.items()}


def _check(values: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Raises UserError for flags that do not go together."""
    mode, workdir = values.mode, values.workdir
    if mode in WITHOUT_RUN:
        _check_without_run(values, overrides)
    elif values.config is None:
        raise UserError("--config is missing. Type e.g. --config=experiments/mnist_mlp.py (--help shows more).")
    if mode not in MODES:
        raise UserError(f"--mode={mode} is not one of {', '.join(MODES)}.{near(mode, MODES)}")
    for name in dict.fromkeys(name for names in MODES.values() for name in names if values[name].present):
        if name not in MODES[mode]:
            owners = " or ".join(f"--mode={owner}" for owner, names in MODES.items() if name in names)
            raise UserError(f"--{name} has no effect with --mode={mode}. Use {owners}, or leave it out.")
        if name in _PORTS:
            if not 0 <= values[name].value <= _LAST_PORT:
                raise UserError(f"--{name}={values[name].value} is out of range: a port is from 0 to {_LAST_PORT}.")
        elif values[name].flag_type() == "int" and values[name].value < 1:
            raise UserError(f"--{name}={values[name].value} is out of range: it must be at least 1.")
        elif name in _CHOICES and values[name].value not in _CHOICES[name]:
            known = _CHOICES[name]
            hint = near(values[name].value, known)
            raise UserError(f"--{name}={values[name].value} is not one of {', '.join(known)}.{hint}")
    if mode == "replay" and values.step is None:
        raise UserError("--mode=replay needs the step to show. Type e.g. --step=120.")
    if (mode in LOOK_BACK or mode in WITHOUT_RUN) and workdir is None and mode != "compare":
        is_list = mode == "list"
        whose = "folder with runs in it, e.g. --workdir=runs" if is_list else "trained run, e.g. --workdir=runs/mnist"
        raise UserError(f"--mode={mode} needs the --workdir of a {whose}.")
    if workdir is not None and (not workdir or workdir.startswith("--")):
        raise UserError(f"--workdir='{workdir}' is no folder. Type e.g. --workdir=runs/first, or leave it out.")
    if workdir is not None and mode in WITHOUT_FOLDER:
        raise UserError(
            f"--workdir={workdir} has no effect with --mode={mode}, which writes no run folder. Leave it out."
        )
    if is_address(workdir):
        _check_address(values)
    elif mode in LOOK_BACK and not os.path.lexists(Path(str(workdir), folder.CONFIG)):
        if os.path.lexists(Path(str(workdir), folder.CHECKPOINTS)):
            raise UserError(f"--workdir={workdir} has checkpoints but no {folder.CONFIG}. Put it back.")
        raise UserError(f"--workdir={workdir} has no checkpoint. Train first: --mode=train.")


def _check_address(values: flags.FlagValues) -> None:
    """Raises UserError for an address of a run folder where only a folder will do."""
    check(values.workdir)
    several = "--local_workers" if values.local_workers else ""
    if several or values.mode in LOCAL:
        raise UserError(
            f"--workdir={values.workdir} is an address, and {several or f'--mode={values.mode}'} works in a folder of"
            " this machine. Type a folder, e.g. --workdir=runs/first."
        )


def _check_without_run(values: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Raises UserError for flags of an experiment, which the mode would ignore."""
    names = ("config", "seed", "data_dir", *(["workdir"] if values.mode == "compare" else []))
    typed = [f"--{name}" for name in names if values[name].value is not None]
    for flag in (*typed, *(override.partition("=")[0] for override in overrides)):
        raise UserError(
            f"{flag} has no effect with --mode={values.mode}, which takes {WITHOUT_RUN[values.mode]}. Leave it out."
        )


def _check_checkpoint(values: flags.FlagValues, overrides: Sequence[str]) -> None:
    """Raises UserError for a --checkpoint that is no checkpoint, or that an override contradicts."""
    which = values.checkpoint
    if which is None:
        return
    if which not in CHECKPOINTS and not re.fullmatch(r"0*[1-9][0-9]{0,15}", which):
        raise UserError(
            f"--checkpoint={which} is neither last nor best nor the number of a step.{near(which, CHECKPOINTS)}"
            " Type e.g. --checkpoint=best or --checkpoint=469."
        )
    if any("config.export.checkpoint" in text.partition("=")[0] for text in overrides):
        raise UserError(
            f"--checkpoint={which} and --config.export.checkpoint both say what is exported. Leave one of them out."
        )


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates flags from overrides (--config.KEY=VALUE, --config.KEY VALUE, --noconfig.KEY)."""
    own, overrides = list(argv[:1]), []
    rest = list(argv[1:])
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(("-config.", "--config.", "-noconfig.", "--noconfig.")):
            own.append(argument)
        elif "=" in argument or "noconfig." in argument or not rest or rest[0].startswith("--"):
            overrides.append(argument)
        else:
            overrides.append(f"{argument}={rest.pop(0)}")
    return own, overrides


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    for argument in argv[1:]:
        if not argument.startswith("-"):  # the folder of a run, whose name may have '=' in it
            continue
        if argument.lstrip("-").startswith(("flagfile", "undefok")):  # flags of absl that would bypass these checks
            raise UserError(f"{argument}: there is no such flag. --help lists them.")
        if len(argument.partition("=")[0]) > _LONGEST_FLAG:  # absl would search for a similar one for minutes
            raise UserError(f"{argument.partition('=')[0]}: there is no such flag. --help lists them.")
    try:
        left = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known = [f"--{name}" for name in (*values, *(f"config.{key}" for key in flatten(base_config())))]
        hint = near(f"--{error.flagname}", known)
        raise UserError(f"--{error.flagname}: there is no such flag.{hint} --help lists them.") from error
    except flags.IllegalFlagValueError as error:
        name, _, value = str(error).removeprefix("flag --").partition(": ")[0].partition("=")
        kind = values[name].flag_type()
        typed = "=1" if kind == "int" else ""
        raise UserError(f"--{name}={value}: '{value}' is not of type {kind}. Type e.g. --{name}{typed}.") from error
    except (flags.Error, ValueError) as error:
        raise UserError(f"{' '.join(str(error).split())}. --help shows examples.") from error
    if left and values.mode == "compare":
        values["runs"].parse(left)
    elif left:
        raise UserError(f"'{left[0]}' is not a flag. Overrides look like --config.train.compile=graph.")

"""Trains, evaluates, exports or checks an experiment.

    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist
    python launch.py --config=experiments/mnist_mlp.py:adamw --config.train.duration='2 epochs' --seed=1
    python launch.py --config=experiments/mnist_mlp.py --mode=check
    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist --mode=evaluate

The same command again resumes the run, or says that it is finished. Exit status: 0 done (or stopped and saved),
1 an export that failed its checks or a run that broke, 2 bad input.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags, logging

from framework import experiment
from framework.config import DataError, UserError, base_config, flatten, near

MODES = ("train", "evaluate", "export", "check")
EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def _define_flags() -> flags.FlagValues:
    """Flags of our own, not absl's process-wide ones: `main` can be called any number of times."""
    values = flags.FlagValues()
    for define, name, default, text in (
        (flags.DEFINE_string, "config", None, "Experiment file, FILE.py or FILE.py:PRESET."),
        (flags.DEFINE_string, "workdir", None, "Run folder; a fresh one below runs/ by default."),
        (flags.DEFINE_string, "mode", "train", f"What to do: {', '.join(MODES)}. [train]"),
        (flags.DEFINE_string, "data_dir", None, "Folder with the data; short for --config.data.dir."),
        (flags.DEFINE_integer, "seed", None, "Short for --config.seed."),
        (flags.DEFINE_bool, "debug", False, "Show the traceback of an error."),
    ):
        define(name, default, text, flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    try:
        return _launch(argv)
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint stays", file=sys.stderr)
        return 128 + 2
    except (ZeroDivisionError, OverflowError, FloatingPointError):
        raise  # a slip in somebody's code, unlike a loss that is not finite
    except (UserError, ArithmeticError, DataError) as error:
        if {"--debug", "-debug", "--debug=true", "--debug=1"} & {argument.lower() for argument in argv}:
            traceback.print_exc()
        else:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, UserError) else EXIT_FAILED


def _launch(argv: Sequence[str]) -> int:
    values = _define_flags()
    own, overrides = _split(argv)
    if {"--help", "-h", "-help"} & set(own):
        print(_help(values))
        return 0
    _parse(values, own)
    if values.config is None:
        raise UserError("--config is missing. Type e.g. --config=experiments/mnist_mlp.py (--help shows more).")
    if values.mode not in MODES:
        raise UserError(f"--mode={values.mode} is not one of {', '.join(MODES)}.{near(values.mode, MODES)}")
    looks_back = values.mode in ("evaluate", "export")
    if looks_back and values.workdir is None:
        raise UserError(f"--mode={values.mode} needs the --workdir of a trained run, e.g. --workdir=runs/mnist.")
    if values.workdir is not None and (not values.workdir or values.workdir.startswith("--")):
        raise UserError(f"--workdir='{values.workdir}' is no folder. Type e.g. --workdir=runs/first, or leave it out.")
    if looks_back and not Path(str(values.workdir), "config.json").is_file():
        raise UserError(f"--workdir={values.workdir} has no checkpoint. Train first: --mode=train.")
    experiment.check(values.config)
    short = {"data.dir": values.data_dir, "seed": values.seed}
    overrides += [f"--config.{key}={value}" for key, value in short.items() if value is not None]

    flags.FLAGS(argv[:1])  # absl's own flags stay as they are; unparsed, they make its log complain
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    built = _import_run().build(values.config, overrides, values.workdir, of_workdir=looks_back)
    return importlib.import_module(f"framework.modes.{values.mode}").main(built, overrides)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates our own flags from overrides (--config.KEY=VALUE, --config.KEY VALUE, --noconfig.KEY)."""
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
        if argument.lstrip("-").startswith(("flagfile", "undefok")):  # absl's own ways round these checks
            raise UserError(f"{argument}: there is no such flag. --help lists them.")
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
    if left:
        raise UserError(f"'{left[0]}' is not a flag. Overrides look like --config.train.compile=graph.")


def _help(values: flags.FlagValues) -> str:
    names = ("config", "workdir", "mode", "data_dir", "seed", "debug")
    lines = [__doc__.strip(), "", "Flags:", *(f"  --{name:<9} {values[name].help}" for name in names)]
    lines.append("  --config.KEY=VALUE  Overrides a value of the config; --mode=check prints all of them.")
    return "\n".join(lines)


def _import_run() -> ModuleType:
    """framework.run, which loads TensorFlow, without the C++ notes of that: no log level silences all of them."""
    if any(Path("/dev").glob("nvidia[0-9]*")) or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return importlib.import_module("framework.run")  # here the notes may matter
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        return importlib.import_module("framework.run")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

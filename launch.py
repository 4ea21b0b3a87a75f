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
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging

from framework import experiment
from framework.config import UserError, base_config, flatten, near

MODES = ("train", "evaluate", "export", "check")
EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def _define_flags() -> flags.FlagValues:
    """Flags of our own, not absl's process-wide ones: `main` can be called any number of times."""
    values = flags.FlagValues()

    def define(kind: Callable[..., object], name: str, default: object, text: str) -> None:
        kind(name, default, text, flag_values=values)

    define(flags.DEFINE_string, "config", None, "Experiment file, FILE.py or FILE.py:PRESET.")
    define(flags.DEFINE_string, "workdir", None, "Run folder; a fresh one below runs/ by default.")
    define(flags.DEFINE_string, "mode", "train", f"What to do: {', '.join(MODES)}.")
    define(flags.DEFINE_string, "data_dir", None, "Folder with the data; short for --config.data.dir.")
    define(flags.DEFINE_integer, "seed", None, "Short for --config.seed.")
    define(flags.DEFINE_bool, "debug", False, "Show the traceback of an error.")
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
    except (UserError, ArithmeticError) as error:
        if {"--debug", "-debug", "--debug=true"} & set(argv):
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
    if values.workdir == "":
        raise UserError("--workdir is empty. Type e.g. --workdir=runs/first, or leave it out.")
    if looks_back and not Path(values.workdir, "config.json").is_file():
        raise UserError(f"--workdir={values.workdir} holds no run. Train first: --mode=train.")
    experiment.check(values.config)
    if values.seed is not None:
        overrides.append(f"--config.seed={values.seed}")
    if values.data_dir is not None:
        overrides.append(f"--config.data.dir={values.data_dir}")

    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    _quiet_tensorflow()
    from framework import run  # loads TensorFlow, which takes seconds; flag errors did not wait for it

    built = run.build(values.config, overrides, values.workdir, of_workdir=looks_back)
    mode = importlib.import_module(f"framework.modes.{values.mode}")
    return mode.main(built, overrides)


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
        known = [*values, *(f"config.{key}" for key in flatten(base_config()))]
        hint = near(error.flagname, known).replace("'", "'--", 1)
        raise UserError(f"--{error.flagname}: there is no such flag.{hint} --help lists them.") from error
    except flags.IllegalFlagValueError as error:
        name, _, value = str(error).removeprefix("flag --").partition(": ")[0].partition("=")
        kind = values[name].flag_type()
        typed = f"--{name}=1" if kind == "int" else f"--{name}"
        raise UserError(f"--{name}={value}: '{value}' is not of type {kind}. Type e.g. {typed}.") from error
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}. --help shows examples.") from error
    if left:
        raise UserError(f"'{left[0]}' is not a flag. Overrides look like --config.train.compile=graph.")


def _help(values: flags.FlagValues) -> str:
    lines = [__doc__.strip(), "", "Flags:"]
    for name in ("config", "workdir", "mode", "data_dir", "seed", "debug"):
        flag = values[name]
        lines.append(f"  --{name:<9} {flag.help}{f' [{flag.default}]' if flag.default else ''}")
    lines.append("  --config.KEY=VALUE  Overrides a value of the config; --mode=check prints all of them.")
    return "\n".join(lines)


def _quiet_tensorflow() -> None:
    """Leaves out TensorFlow's start-up notes; on a machine without a GPU also its complaint that there is none."""
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if has_gpu else "3")


if __name__ == "__main__":
    sys.exit(main(sys.argv))

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
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging

from framework.config import UserError, near

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
    except (UserError, ArithmeticError) as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
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
    if values.mode in ("evaluate", "export") and values.workdir is None:
        raise UserError(f"--mode={values.mode} needs the --workdir of a trained run, e.g. --workdir=runs/mnist.")
    if values.seed is not None:
        overrides.append(f"--config.seed={values.seed}")
    if values.data_dir is not None:
        overrides.append(f"--config.data.dir={values.data_dir}")

    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    _quiet_tensorflow()
    from framework import run  # loads TensorFlow, which takes seconds; flag errors did not wait for it

    looks_back = values.mode in ("evaluate", "export")
    built = run.build(values.config, overrides, values.workdir, of_workdir=looks_back)
    mode = importlib.import_module(f"framework.modes.{values.mode}")
    return mode.main(built, overrides)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates our own flags from overrides (--config.KEY=VALUE, --config.KEY VALUE, --noconfig.KEY)."""
    own, overrides = list(argv[:1]), []
    rest = iter(argv[1:])
    for argument in rest:
        if not argument.lstrip("-").startswith(("config.", "noconfig.")) or not argument.startswith("-"):
            own.append(argument)
        elif "=" in argument or argument.lstrip("-").startswith("no"):
            overrides.append(argument)
        else:
            value = next(rest, None)
            if value is None:
                raise UserError(f"{argument} has no value. Type {argument}=VALUE.")
            overrides.append(f"{argument}={value}")
    return own, overrides


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    try:
        left = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f"--{error.flagname}: there is no such flag.{near(error.flagname, values)} --help lists them."
        ) from error
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
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

"""Trains, evaluates, exports, serves, checks, sweeps or compares runs, replays a step, or proves exact resumes.

    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist
    python launch.py --config=experiments/mnist_mlp.py:adamw --config.train.duration='2 epochs' --seed=1
    python launch.py --config=experiments/mnist_mlp.py --mode=check
    python launch.py --config=experiments/mnist_mlp.py --mode=overfit --steps=200
    python launch.py --config=experiments/mnist_mlp.py --mode=lr_find --out=lr_find.html
    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist --mode=evaluate --checkpoint=best
    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist --mode=replay --step=120 --eager
    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/sweep --mode=sweep --trials=20 --parallel=2
    python launch.py --mode=report --workdir=runs/mnist
    python launch.py --mode=list --workdir=runs
    python launch.py --mode=compare runs/a runs/b --out=compare.html
    python launch.py --mode=serve --workdir=runs/mnist --development
    python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist --local_workers=2
    python launch.py --config=experiments/mnist_mlp.py --mode=verify_resume --kills=5 --config.train.duration='1 epoch'

The same command again resumes the run, or says that it is finished. Exit status: 0 done (or stopped and saved),
1 a check that failed or a run that broke, 2 bad input.
"""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

try:
    from absl import flags, logging
except ModuleNotFoundError as missing:  # `python` is not that of the environment
    print(
        f"error: {sys.executable} lacks {missing.name}. Type . .venv/bin/activate first; make run makes .venv.",
        file=sys.stderr,
    )
    sys.exit(2)

from framework.cli import flags as command
from framework.cli import quiet_import
from framework.distribute import lifeline
from framework.errors import RunError, UserError
from framework.experiment import load, user_code
from framework.remote import mirror
from framework.remote.address import as_typed
from framework.run.arguments import LOOK_BACK

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


def main(argv: Sequence[str]) -> int:
    """Runs one launch and returns its exit status."""
    try:
        with user_code.explained():
            status = _launch(argv)
        sys.stdout.flush()  # here, where a reader that has left is no surprise
        return status
    except KeyboardInterrupt:
        print("interrupted; checkpoints, if there are any, stay", file=sys.stderr)
        return 128 + 2
    except BrokenPipeError:  # whoever read the output has left: --mode=list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain once more when it exits
        return 128 + 13
    except (UserError, RunError) as error:
        if {"--debug", "-debug", "--debug=true", "--debug=1"} & {argument.lower() for argument in argv}:
            traceback.print_exc()
        else:
            print(f"error: {user_code.one_line(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, UserError) else EXIT_FAILED


def _launch(argv: Sequence[str]) -> int:
    if text := command.help_text(argv, str(__doc__)):
        print(text)
        return 0
    values, overrides = command.parse(argv)
    if values.mode in command.WITHOUT_RUN:
        if values.development:
            quiet_import.module("framework.serving.development")
        of_folder = importlib.import_module(f"framework.modes.{values.mode}")
        folders = [] if values.workdir is None else [mirror.looked_at(values.workdir)]
        own = command.own_flags(values)
        if "runs" in own:
            own["runs"] = [str(mirror.looked_at(run)) for run in own["runs"]]
        return of_folder.main(*folders, **own)
    load.check(values.config)

    flags.FLAGS(argv[:1])  # absl's own flags stay as they are; unparsed, they make its log complain
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    if values.local_workers:
        quiet_import.run_build()
        return importlib.import_module("framework.cli.local_cluster").main(values, overrides)
    if values.mode in command.OF_EXPERIMENT:
        quiet_import.run_build()
        return importlib.import_module(f"framework.modes.{values.mode}").main(values, overrides)
    if values.mode == "train" and "TF_CONFIG" in os.environ:
        quiet_import.run_build()
        if importlib.import_module("framework.cli.server").main(values, overrides):
            return 0
    looks_back = values.mode in LOOK_BACK
    purpose = values.mode if looks_back else ""
    built = quiet_import.run_build().build(
        values.config, overrides, values.workdir, looks_back, restore=False, mode=purpose
    )
    mode = importlib.import_module(f"framework.modes.{values.mode}")
    explained = user_code.explained(built.workdir if values.mode == "train" else None)
    with contextlib.closing(built), explained, as_typed(values.workdir):
        return mode.main(built, overrides, **command.own_flags(values))


def _leave_at_once() -> NoReturn:
    """Runs `main` and exits without teardown: TensorFlow's may wait for ever for a lost worker of parameter servers."""
    status = EXIT_FAILED
    try:
        status = main(sys.argv)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command_line() -> NoReturn:
    """Runs the process of `python launch.py`, and of the command `framework` that `pip install -e .` makes."""
    lifeline.hold()
    if '"ps"' in os.environ.get("TF_CONFIG", ""):
        _leave_at_once()
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    command_line()

"""--mode=sweep: many runs of an experiment, whose values its `sweep(trial)` and Optuna choose.

    python launch.py --config=experiments/mnist_mlp.py --mode=sweep --workdir=runs/sweep --trials=20 --parallel=2

The folder gets a run folder for each trial, `sweep.log`, which Optuna's dashboard reads, and the output of the trials.
The same command goes on after any end, and does nothing once there are so many trials. Trials are not exported.
"""

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from framework import extras, folder
from framework.config.keys.runtime import SEVERAL_PROCESSES
from framework.config.overrides import override
from framework.distribute import lifeline
from framework.errors import RunError, UserError, near
from framework.experiment import returns
from framework.pages import listing
from framework.run import code_copies, command
from framework.run.request import Request as RunRequest
from framework.run.request import fresh_workdir, resolve_request
from framework.sweep.runner import TRIAL, Request, Runner
from framework.sweep.study import JOURNAL, PRUNERS, SAMPLERS, Plan, Study, open_study, try_out
from framework.sweep.worker import Task, Worker

TRIALS = 20
_EXAMPLE = "def sweep(trial): return {'model.hidden': trial.suggest_categorical('hidden', [64, 128])}"
_POLL_SECONDS = 0.05


def main(values: flags.FlagValues, overrides: Sequence[str]) -> int:
    """Runs the trials that are missing and prints a table; returns 1 if no trial was trained to its end.

    Raises:
      UserError: bad input, a folder of another sweep or of a run, or no `sweep` in the experiment.
      RunError: the first trials failed; or a disk or the network did, and the same command goes on.
    """
    workdir = Path(values.workdir) if values.workdir else fresh_workdir(values.config)
    if (workdir / folder.CONFIG).exists():
        raise UserError(f"--workdir={workdir} is the folder of a run. Type a folder of its own for the sweep.")
    left = [path.name for path in sorted(workdir.glob(f"{TRIAL}*")) if path.is_dir()]
    if left and not (workdir / JOURNAL).exists():  # a new trial of the same values would take an old run for its own
        raise UserError(
            f"{workdir} has {left[0]} of a sweep whose {JOURNAL} is gone. Remove the folders of its trials too, or use"
            " another --workdir."
        )
    extras.load("optuna", "sweep")  # or a minute would pass before it is found missing
    request = Request(values.config, overrides, workdir)
    with lifeline.terminated_as_interrupted(), contextlib.ExitStack() as workers:
        worker = Worker()  # it loads TensorFlow meanwhile
        workers.callback(worker.end)
        run = resolve_request(values.config, overrides, workdir)
        sweep = _sweep(run, overrides)
        try_out(sweep)
        workdir.mkdir(parents=True, exist_ok=True)
        plan = _plan(values, run.config, _modes(worker, request))
        study = open_study(workdir, sweep, plan, {"config": values.config, "overrides": list(overrides)})
        if changed := study.changed(code_copies.hashes(run.experiment)):
            logging.warning(
                "%s: changed since the sweep began, so trials before and after are of different code. To compare all"
                " trials, use another --workdir.",
                ", ".join(changed),
            )
        trials = values.trials or (TRIALS if plan.sampler != "grid" else sys.maxsize)
        try:
            Runner(study, request, trials, values.parallel or 1, [worker]).run()
        except OSError as error:  # of the journal, for example on a full disk
            raise RunError(f"the sweep stopped: {error}. Mend that and type the same command again.") from error
    return _report(study, request, run.config.checkpoint.best_metric, "make_exports" in run.experiment.functions)


def _sweep(run: RunRequest, overrides: Sequence[str]) -> Callable[[Any], Mapping[str, Any]]:
    """Returns the experiment's `sweep`, which refuses keys that were typed, and values that the config cannot take.

    Raises:
      UserError: the experiment has none, or trains in several processes.
    """
    if "sweep" not in run.experiment.functions:
        raise UserError(f"{run.experiment.path} does not define sweep(trial), the space of the sweep, e.g. {_EXAMPLE}.")
    if run.config.runtime.strategy in SEVERAL_PROCESSES:
        raise UserError(
            f"--mode=sweep trains each trial in one process, but runtime.strategy='{run.config.runtime.strategy}' is"
            " several. Leave it out."
        )
    checked = returns.checked({"sweep": run.experiment.functions["sweep"]})["sweep"]
    fitting: set[tuple[str, str]] = set()
    typed = {text.partition("=")[0].lstrip("-").removeprefix("no").removeprefix("config.") for text in overrides}

    def sweep(trial: Any) -> Mapping[str, Any]:
        values: Mapping[str, Any] = checked(trial)
        for key, value in values.items():
            if key in typed:
                raise UserError(f"--config.{key} is typed, but sweep(trial) sets {key} in each trial. Leave it out.")
            if (key, repr(value)) not in fitting:  # a grid asks for the same values again and again
                _check_value(run.config, key, value)
                fitting.add((key, repr(value)))
        return values

    return sweep


def _check_value(config: ConfigDict, key: str, value: Any) -> None:
    """Raises UserError for a value that a key cannot have; trials get its text, where None would become 'None'."""
    try:
        override(config, {key: str(value) if type(value) in (int, float) else value})
    except UserError as error:
        raise UserError(f"sweep(trial): {error}") from error


def _modes(worker: Worker, request: Request) -> Mapping[str, str]:
    """Builds a run without the values of a trial; returns whether the least or most of each metric is best.

    Raises:
      UserError: the run cannot be built.
      RunError: its process broke.
    """
    worker.begin(Task(request.config, request.overrides, str(request.workdir / "check"), is_trained=False))
    modes: Mapping[str, str] = {}
    while (answer := worker.answer()) is None or "status" not in answer:
        if answer is None:
            time.sleep(_POLL_SECONDS)
        elif "error" in answer:
            raise (UserError if answer.get("is_bad_input") else RunError)(answer["error"])
        else:
            modes = answer["modes"]
    return modes


def _plan(values: flags.FlagValues, config: ConfigDict, modes: Mapping[str, str]) -> Plan:
    """Returns how trials are compared and proposed.

    Raises:
      UserError: no metric is chosen, or there is no such metric.
    """
    metric = values.metric or config.checkpoint.best_metric or config.early_stopping.metric
    if not metric:
        raise UserError(f"--mode=sweep needs the metric that is best. Type e.g. --metric={next(iter(modes))}.")
    if metric not in modes:
        raise UserError(f"--metric={metric} is not one of {', '.join(modes)}.{near(metric, modes)}")
    sampler, pruner = values.sampler or SAMPLERS[0], values.pruner or PRUNERS[0]
    return Plan(metric, modes[metric], sampler, pruner, config.seed)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Returns number, value, state and overrides of a trial as texts."""
    value = "" if row["value"] is None else f"{row['value']:.6g}"
    values = " ".join(text.removeprefix("--config.") for text in row["overrides"])
    return f"{row['number']:5d}", value, row["state"], values


def _report(study: Study, request: Request, best_metric: str, is_exported: bool) -> int:
    """Prints a table of the trials, the best first, and the commands of the best; returns the exit status.

    Args:
      study: of the sweep.
      request: what the trials share.
      best_metric: `checkpoint.best_metric`, whose best checkpoint each trial has kept.
      is_exported: whether the experiment has exports.
    """
    rows, best = study.rows(), study.best()
    sign = -1 if study.plan.mode == "max" else 1
    rows.sort(key=lambda row: (row["value"] is None, sign * (row["value"] or 0.0), row["number"]))
    states = Counter(row["state"] for row in rows)
    print(f"{len(rows)} trials: {', '.join(f'{count} {state}' for state, count in states.items())}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print(listing.aligned([("trial", study.plan.metric, "state", "values"), *map(_cells, rows)], width))
    for row in sorted(rows, key=lambda row: int(row["number"])):
        if row["error"]:
            print(f"trial {row['number']} failed: {row['error']}")
    if best is None:
        return 1
    number = best["number"]
    again = [f"--config={request.config}", *request.overrides, *best["overrides"]]
    export = [f"--config={request.config}", f"--workdir={request.folder(number)}", "--mode=export"]
    print(f"\nThe best is trial {number}. It was chosen by this value, so expect a worse one on other data.")
    if not request.folder(number).is_dir():
        print(f"{request.folder(number)} is gone: only training again gives its weights.")
        is_exported = False
    elif best_metric == study.plan.metric:
        export.append("--checkpoint=best")  # the value is that of this checkpoint, and not of the last one
    else:
        print(
            f"No trial has kept the checkpoint of its best {study.plan.metric}: its last one may be worse. A sweep with"
            f" --config.checkpoint.best_metric={study.plan.metric} keeps it."
        )
    if is_exported:
        print(f"Export it:      {command.typed(export)}")
    print(f"Train it again: {command.typed(again)}")
    return 0

"""--mode=train: trains to the end, exports, and prints where everything is."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from framework.distribute.cluster import LOCAL_WORKERS
from framework.export import report
from framework.folder import EXPORTS
from framework.modes.export import print_reports
from framework.run import command, lookback, previous
from framework.run.loop import train
from framework.run.previous import Previous
from framework.run.run import Run

_GREEN, _RED = 32, 31  # of a terminal
_MOST_KEYS = 4  # of the config


def main(run: Run, overrides: Sequence[str]) -> int:
    """Returns 0, or 1 if an export failed its verification."""
    with run.copying():
        result = train(run, overrides)
        status = _report(run, overrides, result) if run.replicas.is_chief else 0
    if run.replicas.is_chief and result["status"] != "interrupted":
        exports = ", exports/" if run.exports else ""
        copied = "" if run.remote is None else f", and in {run.workdir}"
        files = f"report.html, result.json, metrics.jsonl, checkpoints/{exports}"
        print(f"\nEverything is in {run.typed_workdir}{copied}: {files}. Next:")
        print(f"  tensorboard --logdir {run.workdir}")
    run.replicas.all_workers(0, most=True)  # to the chief, a worker that leaves early is a lost one
    return status


def _report(run: Run, overrides: Sequence[str], result: dict[str, Any]) -> int:
    if result["status"] == "interrupted":
        print(f"stopped at step {result['step']} of {run.total_steps} and saved; the same command goes on from there:")
        print(f"  {_command(run, overrides)}")
        return 0
    print(f"{result['status']}: step {result['step']} in {run.typed_workdir}")
    before = previous.find(run)
    for name, value in result["final"].items():
        best = f" (best {_shown(result['best'].get(name))})" if name in result["best"] or value is None else ""
        print(f"  {name:<24} {_shown(value)}{best}{_beside(before, name, value, run.modes.get(name))}")
    if before:
        print(f"  before: {before.workdir}, {_differing(before)}")
    status = 0
    if run.exports and not _is_exported(run):
        which, average = run.resolved.export.checkpoint, run.resolved.checkpoint.average
        if which == "best" or average > 1:
            run.restore(which, average=average)
        for line in lookback.mean_lines(run):
            print(f"  {line}")
        status = print_reports(run)
    return status


def _shown(value: float | None) -> str:
    """Returns a metric as text; None, the null of result.json, was not finite."""
    return "nan" if value is None else f"{value:.6g}"


def _beside(before: Previous | None, name: str, value: float | None, mode: str | None) -> str:
    """Returns the same metric of the run before, and whether this one is better."""
    other = before.result["final"].get(name) if before else None
    if other is None or value is None:
        return ""
    change = value - other
    verdict, color = "better" if (change > 0) == (mode == "max") else "worse", 0
    if not change or mode is None:
        verdict = ""
    elif sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        color = _GREEN if verdict == "better" else _RED
    told = ", ".join(filter(None, [f"{change:+.3g}", verdict]))
    colored = f"\x1b[{color}m{told}\x1b[0m" if color else told
    return f", before {_shown(other)} ({colored})"


def _differing(before: Previous) -> str:
    """Returns which keys of the config, and what else, differ from those of the run before."""
    shown = [f"{key}={old!r} (now {new!r})" for key, (old, new) in before.differing.items()]
    more = f" and {len(shown) - _MOST_KEYS} more keys" if len(shown) > _MOST_KEYS else ""
    keys = f"with {', '.join(shown[:_MOST_KEYS])}{more}" if shown else "with the same config"
    return f"{keys}; other {', '.join(before.others)}" if before.others else keys


def _is_exported(run: Run) -> bool:
    """Returns whether an earlier start of this command exported this state, and every artefact passed."""
    which = run.resolved.export.checkpoint
    averaged = run.to_average(which, run.resolved.checkpoint.average)
    step = averaged[-1] if averaged else int(run.state.best.step if which == "best" else run.state.step)
    names = [hook.name for hook in run.exports]
    return report.is_current(run.workdir / EXPORTS, names, step, averaged, run.resolved.export.weights)


def _command(run: Run, overrides: Sequence[str]) -> str:
    """Returns the command that continues the run."""
    workers = os.environ.get(LOCAL_WORKERS)
    flags = [f"--config={run.experiment.name}", f"--workdir={run.typed_workdir}"]
    if workers:
        flags.append(f"--local_workers={workers}")
    return command.typed([*flags, *overrides])

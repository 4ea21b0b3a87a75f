"""A process of launch.py, watched from outside by the files of its run folder; for --mode=verify_resume."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from framework.distribute import lifeline
from framework.folder import CHECKPOINTS, RESULT, starts, step_of

_POLL_SECONDS = 0.002


@contextlib.contextmanager
def process(command: Sequence[str], workdir: Path) -> Iterator[lifeline.Process]:
    """Runs a command in a process that ends with the context or this process; its output goes to <workdir>.log."""
    with workdir.with_suffix(".log").open("ab") as log:
        process = lifeline.Process(
            [*command, f"--workdir={workdir}"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.end()


def is_saving(process: lifeline.Process, workdir: Path) -> bool:
    """Waits for a change in the folder of the checkpoints; returns False if the process ended before."""
    before = _checkpoint_files(workdir)
    while process.poll() is None:
        if _checkpoint_files(workdir) != before:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def has_saved(process: lifeline.Process, workdir: Path, before: int) -> bool:
    """Waits for a complete checkpoint of a step after `before`; returns False if the process ended before."""
    while process.poll() is None:
        if newest(workdir) > before:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def newest(workdir: Path) -> int:
    """Returns the step of the newest complete checkpoint, from which a start resumes; 0 without one."""
    return max((step for step in map(step_of, _checkpoint_files(workdir)) if step is not None), default=0)


def start_steps(workdir: Path) -> list[int]:
    """Returns the step at which each start of a run began to train."""
    return [start["step"] for start in starts(workdir)]


def _checkpoint_files(workdir: Path) -> set[str]:
    try:
        return set(os.listdir(workdir / CHECKPOINTS))
    except FileNotFoundError:
        return set()


def is_running_after(process: lifeline.Process, seconds: float) -> bool:
    """Waits; returns whether the process still runs."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def has_ended(workdir: Path) -> bool:
    """Returns whether result.json says that training is over: finished or stopped early, even if an export failed."""
    result = workdir / RESULT
    return result.exists() and json.loads(result.read_text())["status"] != "interrupted"


def last_line(workdir: Path) -> str:
    """Returns the last line that the processes of a run printed."""
    lines = workdir.with_suffix(".log").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

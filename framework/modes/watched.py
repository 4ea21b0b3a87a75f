"""A process of launch.py, watched from outside by the files of its run folder."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from framework.distribute import lifeline
from framework.folder import starts

_POLL_SECONDS = 0.002


@contextlib.contextmanager
def process(command: Sequence[str], workdir: Path) -> Iterator[lifeline.Process]:
    """launch.py in a process that outlives neither the context nor this process; what it says is in a file beside."""
    with workdir.with_suffix(".log").open("ab") as log:
        process = lifeline.Process(
            [*command, f"--workdir={workdir}"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.end()


def is_saving(process: lifeline.Process, workdir: Path) -> bool:
    """Waits until something changes among the checkpoints; False if the process ended before."""
    before = _checkpoint_files(workdir)
    while process.poll() is None:
        if _checkpoint_files(workdir) != before:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def has_saved(process: lifeline.Process, workdir: Path, before: int) -> bool:
    """Waits for a complete checkpoint of a later step; False if the process ended before."""
    while process.poll() is None:
        if newest(workdir) > before:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def newest(workdir: Path) -> int:
    """The step of the newest complete checkpoint, which a start goes on from; 0 without one."""
    names = (re.fullmatch(r"step-(\d+)", name) for name in _checkpoint_files(workdir))
    return max((int(match[1]) for match in names if match), default=0)


def start_steps(workdir: Path) -> list[int]:
    """The step at which each start of a run began to train."""
    return [start["step"] for start in starts(workdir)]


def _checkpoint_files(workdir: Path) -> set[str]:
    try:
        return set(os.listdir(workdir / "checkpoints"))
    except FileNotFoundError:
        return set()


def is_running_after(process: lifeline.Process, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def has_ended(workdir: Path) -> bool:
    """Whether the run came to its end; that of a process may also be an error, or an export that failed."""
    result = workdir / "result.json"
    return result.exists() and json.loads(result.read_text())["status"] != "interrupted"


def last_line(workdir: Path) -> str:
    lines = workdir.with_suffix(".log").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

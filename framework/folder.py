"""The run folder: the names of its files, and checks that it can be used.

    check_workdir(workdir)                  # can the folder be written, and is nothing in the way?
    refuse_lost(workdir, every)             # before a start from scratch: has a run lost its checkpoints?
    starts(workdir)                         # the starts of the run so far, by environment.json

A run may start from scratch in a folder that has a config and rows, because it may have been killed before its first
checkpoint. If it was trained for longer, a start from scratch is refused: its checkpoints must be somewhere.
"""

import contextlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.files import CorruptError, read_json, rows, unreachable, write_json

CONFIG = "config.json"
OVERRIDES = "overrides.txt"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
TUNING = "tuning.json"
INIT = "init.json"
LOCK = ".lock"

CHECKPOINTS = "checkpoints"
CURVES = "tensorboard"
EXPORTS = "exports"
PREFIX = "step-"  # of the name of a checkpoint's folder
FILES = "files"
MANIFEST = "manifest.json"  # of a checkpoint
REPORT = "report.json"  # in exports/
PAGE = "report.html"  # beside it, and in the run folder
FAILURE = "failure"
WORKERS = "workers"

_FILES = (CONFIG, OVERRIDES, ENVIRONMENT, METRICS, RESULT, TUNING, INIT, PAGE)
_FOLDERS = (CHECKPOINTS, CURVES, EXPORTS, FILES, FAILURE, WORKERS)


def check_workdir(workdir: Path) -> None:
    """Raises UserError if the run folder cannot be made or written, or something is in its way; leaves no trace."""
    made: list[Path] = []
    trial = workdir / f".trial-{secrets.token_hex(4)}"  # the name is unique: several processes may start at once
    try:
        if (why := unreachable(workdir)) and workdir.is_symlink():
            raise UserError(f"--workdir={workdir} cannot be reached: {why}. Type a folder of yours.")
        made = [path for path in (workdir, *workdir.parents) if not path.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written: {error.strerror}."
            " Type a folder of yours, e.g. --workdir=runs/first."
        ) from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # the folder was not made, or another process uses it
                path.rmdir()
    _check_places(workdir)


def _check_places(workdir: Path) -> None:
    """Raises UserError if a file of the run cannot be reached, or is a folder or a pipe; or if a folder is a file."""
    for name in (*_FILES, *_FOLDERS):
        path = workdir / name
        is_folder = name in _FOLDERS
        if why := unreachable(path):
            raise UserError(f"{path} cannot be reached: {why}. Put it back, or use another --workdir.")
        if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "file"
            raise UserError(f"{path} is not a {kind}, and the run needs one there. Move it, or use another --workdir.")


def refuse_lost(workdir: Path, every: int) -> None:
    """Raises UserError if a run folder has no checkpoint but must have had one.

    Args:
      workdir: the run folder.
      every: steps between two checkpoints; 0 if there is only one, at the end.
    """
    for sign in _signs(workdir, every):
        raise UserError(
            f"{workdir / CHECKPOINTS} has no checkpoint, but {sign}. A start from scratch would lose what was trained."
            " Put the checkpoints back, or use another --workdir."
        )


def _signs(workdir: Path, every: int) -> Iterator[str]:
    """Yields the signs that a checkpoint was there once."""
    step = read_json(workdir / RESULT, lambda value: int(value["step"]), 0, "it is ignored")
    if step > 0:
        yield f"{RESULT} is of step {step}"
    for start in starts(workdir):
        if start["step"] > 0:
            yield f"the run has resumed at step {start['step']} before ({ENVIRONMENT})"
    report = workdir / EXPORTS / REPORT
    exported = read_json(report, lambda value: max(int(of["step"]) for of in value), 0, "it is ignored")
    if exported > 0:
        yield f"step {exported} was exported"
    # A save waits for the one before it, so after the second save the first checkpoint is complete.
    last = max((row["step"] for row in rows(workdir / METRICS)), default=0)
    if every and last > 2 * every:
        yield f"{METRICS} has rows up to step {last}, and a checkpoint was due every {every} steps"


def starts(workdir: Path) -> list[dict[str, Any]]:
    """Returns the starts of a run from environment.json, oldest first; [], with a warning, if it is damaged."""

    def take(value: Any) -> list[dict[str, Any]]:
        if any(type(start["step"]) is not int for start in value["starts"]):
            raise CorruptError("a start has no step")
        return list(value["starts"])

    return read_json(workdir / ENVIRONMENT, take, [], "the starts before this one are not known")


def add_start(workdir: Path, start: dict[str, Any]) -> None:
    """Adds a start to environment.json; renames a damaged file to environment.damaged.json, for people to read."""
    earlier = starts(workdir)
    path = workdir / ENVIRONMENT
    if not earlier and path.exists():
        path.replace(path.with_suffix(".damaged.json"))
    write_json(path, {"starts": [*earlier, start]})


def name_of(step: int) -> str:
    """Returns the name of a checkpoint's folder: 'step-00000469'."""
    return f"{PREFIX}{step:08d}"


def step_of(name: str) -> int | None:
    """Returns the step that the name of a checkpoint's folder says; None for other names, such as 'step-50'."""
    match = re.fullmatch(rf"{PREFIX}([0-9]+)", name)
    return int(match[1]) if match and name == name_of(int(match[1])) else None

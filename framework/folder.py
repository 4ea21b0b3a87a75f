"""The run folder: what stands where, and whether all of it can be reached.

    check_workdir(workdir)                  # can it be written, and is nothing in the way?
    refuse_lost(workdir, every)             # before a start from scratch: was anything trained here before?

A run may start from scratch in a folder that has a config and rows: it was killed before its first checkpoint. But what
was trained for longer is never thrown away because its checkpoints cannot be found.
"""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.files import CorruptError, read_json, rows, unreachable, write_json

CONFIG, OVERRIDES, ENVIRONMENT = "config.json", "overrides.txt", "environment.json"
METRICS, RESULT, TUNING, INIT = "metrics.jsonl", "result.json", "tuning.json", "init.json"
CHECKPOINTS, CURVES, EXPORTS, FAILURE, WORKERS = "checkpoints", "tensorboard", "exports", "failure", "workers"
LOCK = ".lock"
REPORT = "report.json"  # of exports/

_FILES = (CONFIG, OVERRIDES, ENVIRONMENT, METRICS, RESULT, TUNING, INIT)
_FOLDERS = (CHECKPOINTS, CURVES, EXPORTS, FAILURE, WORKERS)


def check_workdir(workdir: Path) -> None:
    """Raises UserError if the run folder cannot be made or written, or something is in its way. Leaves nothing."""
    made: list[Path] = []
    trial = workdir / f".trial-{secrets.token_hex(4)}"  # of this process: several may start at once
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
            with contextlib.suppress(OSError):  # not made after all, or in use by someone else already
                path.rmdir()
    _check_places(workdir)


def _check_places(workdir: Path) -> None:
    """Nothing that cannot be reached, no folder in the place of a file, no pipe, no file in the place of a folder."""
    for name in (*_FILES, *_FOLDERS):
        path, is_folder = workdir / name, name in _FOLDERS
        if why := unreachable(path):
            raise UserError(f"{path} cannot be reached: {why}. Put it back, or use another --workdir.")
        if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "file"
            raise UserError(f"{path} is not a {kind}, and the run needs one there. Move it, or use another --workdir.")


def refuse_lost(workdir: Path, every: int) -> None:
    """Raises UserError if a run folder without a checkpoint is one that must have had one.

    Args:
      every: steps between two checkpoints; 0 if there is one at the end alone.
    """
    for sign in _signs(workdir, every):
        raise UserError(
            f"{workdir / CHECKPOINTS} has no checkpoint, but {sign}. A start from scratch would throw away what was"
            " trained. Put the checkpoints back, or use another --workdir."
        )


def _signs(workdir: Path, every: int) -> Iterator[str]:
    """What says that a checkpoint was there once."""
    result = read_json(workdir / RESULT, lambda value: int(value["step"]), 0, "it is not looked at")
    if result > 0:
        yield f"{RESULT} is of step {result}"
    for start in starts(workdir):
        if start["step"] > 0:
            yield f"the run went on at step {start['step']} before ({ENVIRONMENT})"
    report = workdir / EXPORTS / REPORT
    exported = read_json(report, lambda value: max(int(of["step"]) for of in value), 0, "it is not looked at")
    if exported > 0:
        yield f"step {exported} was exported"
    # A save waits for the one before it: after the second, the first is complete.
    last = max((row["step"] for row in rows(workdir / METRICS)), default=0)
    if every and last > 2 * every:
        yield f"{METRICS} has come to step {last}, and checkpoints were due every {every} steps"


def starts(workdir: Path) -> list[dict[str, Any]]:
    """The starts of a run as environment.json has them, oldest first; [], with a warning, if it is damaged."""

    def take(value: Any) -> list[dict[str, Any]]:
        if any(type(start["step"]) is not int for start in value["starts"]):
            raise CorruptError("a start has no step")
        return list(value["starts"])

    return read_json(workdir / ENVIRONMENT, take, [], "the starts before this one are not known")


def add_start(workdir: Path, start: dict[str, Any]) -> None:
    """Adds a start to environment.json; one that is damaged is kept beside it, for people to read."""
    earlier, path = starts(workdir), workdir / ENVIRONMENT
    if not earlier and path.exists():
        path.replace(path.with_suffix(".damaged.json"))
    write_json(path, {"starts": [*earlier, start]})

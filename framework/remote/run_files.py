"""The files of a run folder as they are copied to an address: which, in which order, and as they were at one moment.

names, changed = staged(folder, known, stage)       # links to or copies of what differs from {name: signature}
sorted(changed, key=rank)                           # rows, arrays, manifests, pointers, results
newest(names)                                       # the step of the newest whole checkpoint
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework import folder
from framework.files import remove

_SAVED = f"{folder.CHECKPOINTS}/{folder.PREFIX}"  # begins the names of the files of checkpoints
_OF_THE_END = (folder.RESULT, folder.PAGE, f"{folder.EXPORTS}/{folder.REPORT}")
_ROWS, _ARRAYS, _MANIFESTS, _POINTERS, _RESULTS = range(5)  # the order in which files are copied


def is_shown(name: str) -> bool:
    """Returns whether a name is of a file of a run, not of a lock or of this room."""
    return not Path(name).name.startswith(".")


def files_of(run: Path) -> dict[str, Path]:
    """Returns {name: path} of the files of a run folder, without locks, pipes and what is being written."""
    found = {}
    for parent, folders, names in os.walk(run):
        folders[:] = [name for name in folders if is_shown(name)]
        paths = (Path(parent, name) for name in names if is_shown(name))
        found.update({path.relative_to(run).as_posix(): path for path in paths if path.is_file()})
    return found


def rank(name: str) -> int:
    """Returns when a file of a run folder is copied."""
    if name.startswith(_SAVED):
        return _MANIFESTS if name.endswith(f"/{folder.MANIFEST}") else _ARRAYS
    if name.startswith(folder.CHECKPOINTS):
        return _POINTERS
    return _RESULTS if name in _OF_THE_END else _ROWS


def newest(names: Iterable[str]) -> int:
    """Returns the step of the newest checkpoint that has a manifest; 0 if there is none."""
    steps = (folder.step_of(Path(name).parent.name) for name in names if rank(name) == _MANIFESTS)
    return max((step for step in steps if step is not None), default=0)


def signature(path: Path) -> list[int]:
    """Returns size and time of the last change of a file, in bytes and nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def staged(run: Path, known: Mapping[str, Sequence[int]], stage: Path) -> tuple[set[str], dict[str, list[int]]]:
    """Sets the changed files aside, as they are now; returns the names of all files, and {name: signature} of these.

    A checkpoint is set aside whole, or not at all if it is deleted meanwhile.
    """
    changed = {}
    remove(stage)
    there = files_of(run)
    for name, path in there.items():
        with contextlib.suppress(FileNotFoundError):
            now = signature(path)
            if known.get(name) != now:
                _set_aside(path, stage / name, name.startswith((folder.CHECKPOINTS, folder.EXPORTS)))
                changed[name] = now
    whole = {Path(name).parent for name in {*known, *changed} if rank(name) == _MANIFESTS}
    return set(there), {
        name: now for name, now in changed.items() if not name.startswith(_SAVED) or Path(name).parent in whole
    }


def state_of(value: Any) -> dict[str, Any]:
    """Returns what a machine knows of its copy, as read from a file.

    Its keys, each of which may be missing: 'run', the id of the run; 'ids', those of changes at the address that this
    machine made or read; 'files', {name: signature of what is there, or () if nobody knows what}; 'token', of the last
    holder; 'is_fetching', whether the folder is half of what is at the address.

    Raises:
      ValueError, TypeError, AttributeError: it is something else.
    """
    files = value.get("files", {})
    if not all(len(seen) in (0, 2) and all(type(number) is int for number in seen) for seen in files.values()):
        raise ValueError("its 'files' are no sizes and times")
    if type(value.get("ids", [])) is not list or not isinstance(value.get("run"), str | None):
        raise ValueError("its 'ids' or 'run' are no ids")
    return dict(value)


def _set_aside(path: Path, target: Path, is_final: bool) -> None:
    """Gives a file a second name, or copies it if it may still grow, or the disk has no second names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_final:
        try:
            os.link(path, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            pass
    shutil.copyfile(path, target)

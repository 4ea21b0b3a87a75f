"""The run before this one: the newest that ended, of the same experiment file, in a folder beside this run's.

before = find(run)
before.result["final"]["test/accuracy"], before.differing     # 0.979, {'seed': (0, 1)}
"""

from pathlib import Path
from typing import Any, NamedTuple

from framework.errors import UserError
from framework.files import read_json
from framework.folder import RESULT
from framework.run import stored_config
from framework.run.result import whole_result
from framework.run.run import Run

_ENDED = ("finished", "stopped early")


class Previous(NamedTuple):
    """Holds the folder of a run, its result.json, and {key: (its value, this run's)} of the config keys that differ."""

    workdir: Path
    result: dict[str, Any]
    differing: dict[str, tuple[Any, Any]]


def find(run: Run) -> Previous | None:
    """Returns the run before this one; None if there is none, or its files are damaged."""
    results = []
    for folder in run.workdir.absolute().parent.iterdir():
        path = folder / RESULT
        if folder.name != run.workdir.name and path.is_file() and (folder / run.experiment.path.name).is_file():
            results.append((path.stat().st_mtime, path))
    for _, path in sorted(results, reverse=True):
        result = read_json(path, whole_result, None, "it is compared with no other run")
        if result and result["status"] in _ENDED:
            try:
                stored = stored_config.read(path.parent)
            except UserError:
                return None
            workdir = run.workdir.parent / path.parent.name
            return None if stored is None else Previous(workdir, result, stored.differing(run.config))
    return None

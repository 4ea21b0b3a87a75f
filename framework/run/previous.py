"""The run before this one: the newest that ended, of the same experiment file, in a folder beside this run's.

before = find(run)
before.result["final"]["test/accuracy"], before.differing     # 0.979, {'seed': (0, 1)}
"""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from framework.config.handling import HANDLING
from framework.errors import UserError
from framework.files import read_json
from framework.folder import RESULT, starts
from framework.pages.stored import StoredRun
from framework.run import code_copies, stored_config
from framework.run.result import whole_result
from framework.run.run import Run

_ENDED = ("finished", "stopped early")


class Previous(NamedTuple):
    """Holds what is known of the run before.

    Attributes:
      workdir: its folder.
      result: its result.json.
      differing: {key: (its value, this run's)} of the config keys that differ, but for those of handling.HANDLING.
      others: what else differs: files of the experiment, 'framework', "data of 'train'".
    """

    workdir: Path
    result: dict[str, Any]
    differing: dict[str, tuple[Any, Any]]
    others: list[str]


def find(run: Run) -> Previous | None:
    """Returns the run before this one; None if there is none, or its files are damaged.

    Folders that cannot be read, or that go meanwhile, are no runs: the run at whose end this is called goes on.
    """
    for _, path in sorted(_results(run), reverse=True):
        result = read_json(path, whole_result, None, "it is compared with no other run")
        if result and result["status"] in _ENDED:
            try:
                stored = stored_config.read(path.parent)
            except UserError:
                return None
            if stored is None:
                return None
            differing = {key: pair for key, pair in stored.differing(run.config).items() if key not in HANDLING}
            return Previous(_typed(run, path), result, differing, _others(run, path.parent))
    return None


def _others(run: Run, workdir: Path) -> list[str]:
    """Returns which files of the experiment, and which of the facts that both runs know, are others in another run."""
    ours, theirs = (StoredRun(path, starts=starts(path)).facts for path in (run.workdir, workdir))
    facts = [name for name, value in ours.items() if theirs.get(name, value) != value]
    return [*code_copies.changed(workdir, run.experiment), *facts]


def _results(run: Run) -> list[tuple[float, Path]]:
    """Returns (time, path) of the result.json of each run of the same experiment file in the folders beside the run."""
    found = []
    own = _own(run)
    with contextlib.suppress(OSError):
        for folder in own.parent.iterdir():
            path = folder / RESULT
            with contextlib.suppress(OSError):
                if folder.name != own.name and path.is_file() and (folder / run.experiment.path.name).is_file():
                    found.append((path.stat().st_mtime, path))
    return found


def _own(run: Run) -> Path:
    """Returns the run folder with a name and a parent, which '.' and 'runs/..' have not."""
    return Path(os.path.abspath(run.workdir))


def _typed(run: Run, result: Path) -> Path:
    """Returns the folder of a run beside this one, relative if this one's was typed so."""
    return result.parent if run.workdir.is_absolute() else Path(os.path.relpath(result.parent))

"""The copies of an experiment's code in its run folder.

    write(workdir, loaded, step=0)               # x.py and code/helpers.py; later x.step-120.py, code.step-120/
    changed(workdir, loaded)                     # ['helpers.py']: the files that changed since the run was started
    hashes(loaded)                               # {'x.py': …, 'code/helpers.py': …}, for each checkpoint
    refuse_damaged(workdir, loaded, hashes)      # UserError: a copy is not what a checkpoint was trained with

A copy is never replaced: code that changed during a run is written beside it, under the first step that it trained.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from framework.errors import UserError
from framework.experiment.load import Experiment
from framework.experiment.user_code import shown_path
from framework.files import CorruptError, read_bytes, write_bytes

_MOST_BYTES = 5_000_000


def hashes(loaded: Experiment) -> dict[str, str]:
    """Returns {name of the copy: SHA-256} of the experiment file and of the modules that it has imported so far."""
    return {name: hashlib.sha256(data).hexdigest() for name, (_, data) in loaded.sources().items()}


def write(workdir: Path, loaded: Experiment, step: int) -> None:
    """Copies the code into a run folder; code that changed since the run was started goes beside the first copy."""
    is_first = not (workdir / loaded.path.name).exists()
    is_changed = not is_first and bool(changed(workdir, loaded))
    size = 0
    for name, (path, data) in loaded.sources().items():
        size += len(data)
        if size > _MOST_BYTES:
            logging.warning("the code of the run has more than 5 MB: %s and what follows is not copied", path)
            return
        _write(workdir / (_versioned(name, step) if is_changed else name), data)


def changed(workdir: Path, loaded: Experiment) -> list[str]:
    """Returns the files that changed since the run was started, as one would type their paths."""
    return [shown_path(path) for name, (path, data) in loaded.sources().items() if _content(workdir / name) != data]


def refuse_damaged(workdir: Path, loaded: Experiment, trained: Mapping[str, str]) -> None:
    """Raises UserError if neither the copies nor the code at hand are what a checkpoint was trained with.

    Args:
      workdir: the run folder.
      loaded: the experiment at hand.
      trained: the hashes that the checkpoint records.
    """
    ours = hashes(loaded)
    for name, digest in trained.items():
        copies = [hashlib.sha256(_content(copy) or b"").hexdigest() for copy in _copies(workdir, name)]
        if not copies or digest in copies:  # without a copy, `changed` warned
            continue
        if ours.get(name) != digest:
            raise UserError(
                f"{workdir / name} is not the code that the checkpoint was trained with: their SHA-256 differ. Put it"
                f" back as it was; to continue with other code, use another folder and --config.resume_from={workdir}."
            )
        logging.warning("%s was changed or damaged; the experiment itself is what was trained with", workdir / name)


def _copies(workdir: Path, name: str) -> list[Path]:
    """Returns the copies of one file in a run folder: the first, and those of later steps."""
    top, _, rest = name.partition("/")
    if rest:
        return [path for folder in (workdir / top, *workdir.glob(f"{top}.step-*")) if (path := folder / rest).is_file()]
    stem, suffix = Path(name).stem, Path(name).suffix
    return [path for path in (workdir / name, *workdir.glob(f"{stem}.step-*{suffix}")) if path.is_file()]


def _versioned(name: str, step: int) -> str:
    """Returns 'x.step-120.py' for 'x.py', 'code.step-120/helpers.py' for 'code/helpers.py'."""
    top, slash, rest = name.partition("/")
    return f"{top}.step-{step}/{rest}" if slash else f"{Path(name).stem}.step-{step}{Path(name).suffix}"


def _write(path: Path, data: bytes) -> None:
    if _content(path) == data:  # the experiment may be the copy itself
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)


def _content(path: Path) -> bytes | None:
    """Returns the bytes of a file; None if it is missing or cannot be read."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, CorruptError):
        return None

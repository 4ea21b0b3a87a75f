"""The copies that a run folder has of the code of its run: written, and compared with what would go on.

    write(workdir, loaded, step=0)               # x.py and code/helpers.py; later x.step-120.py, code.step-120/
    changed(workdir, loaded)                     # ['helpers.py']: what is not as the run was started with
    hashes(loaded)                               # {'x.py': …, 'code/helpers.py': …}, for each checkpoint
    refuse_damaged(workdir, loaded, hashes)      # the copies are not what a checkpoint was trained with

What the steps so far were made by stays: a changed experiment is written beside it, under the step from which on it
counts.
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
    """{name of the copy: SHA-256} of the experiment file and the modules that it has imported so far."""
    return {name: hashlib.sha256(data).hexdigest() for name, (_, data) in loaded.sources().items()}


def write(workdir: Path, loaded: Experiment, step: int) -> None:
    """Copies the code into a run folder; code that has changed since the run was started goes beside the first."""
    is_first = not (workdir / loaded.path.name).exists()
    is_changed, size = not is_first and bool(changed(workdir, loaded)), 0
    for name, (path, data) in loaded.sources().items():
        size += len(data)
        if size > _MOST_BYTES:
            logging.warning("the code of the run has more than 5 MB: %s and what follows is not copied", path)
            return
        _write(workdir / (_versioned(name, step) if is_changed else name), data)


def changed(workdir: Path, loaded: Experiment) -> list[str]:
    """The files that are not as the run was started with them, as they would be typed."""
    found = []
    for name, (path, data) in loaded.sources().items():
        if _content(workdir / name) != data:
            found.append(shown_path(path))
    return found


def refuse_damaged(workdir: Path, loaded: Experiment, trained: Mapping[str, str]) -> None:
    """Compares the copies with the hashes that a checkpoint holds.

    Raises:
      UserError: a copy is another, and the code at hand is not what was trained with either.
    """
    ours = hashes(loaded)
    for name, digest in trained.items():
        copies = [hashlib.sha256(_content(copy) or b"").hexdigest() for copy in _copies(workdir, name)]
        if not copies or digest in copies:  # without a copy, `changed` has told
            continue
        if ours.get(name) != digest:
            raise UserError(
                f"{workdir / name} is not the code that the checkpoint was trained with: their SHA-256 differ. Put it"
                f" back as it was; to go on with other code, use another folder and --config.resume_from={workdir}."
            )
        logging.warning("%s was changed or damaged: the experiment itself is what was trained with", workdir / name)


def _copies(workdir: Path, name: str) -> list[Path]:
    """All files of a run folder that may be the copy: the first, and those of later steps."""
    top, _, rest = name.partition("/")
    if rest:
        return [path for folder in (workdir / top, *workdir.glob(f"{top}.step-*")) if (path := folder / rest).is_file()]
    stem, suffix = Path(name).stem, Path(name).suffix
    return [path for path in (workdir / name, *workdir.glob(f"{stem}.step-*{suffix}")) if path.is_file()]


def _versioned(name: str, step: int) -> str:
    """'x.step-120.py' of 'x.py', 'code.step-120/helpers.py' of 'code/helpers.py'."""
    top, slash, rest = name.partition("/")
    return f"{top}.step-{step}/{rest}" if slash else f"{Path(name).stem}.step-{step}{Path(name).suffix}"


def _write(path: Path, data: bytes) -> None:
    if _content(path) == data:  # such as a copy that is run itself
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)


def _content(path: Path) -> bytes | None:
    """What a file holds; None if there is none that can be read."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, CorruptError):
        return None

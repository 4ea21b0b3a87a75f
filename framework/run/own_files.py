"""Files of an experiment's own, such as a vocabulary: {name: text} of `make_files`, written beside config.json.

write(workdir / "files", files)             # at each start of training; exports have them in exports/files/
facts(files)                                # {"files": {"vocabulary.json": SHA-256}}, for each checkpoint
refuse_other(workdir, files, facts)         # UserError: a checkpoint was trained with another vocabulary
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.files import write_text

_FACT = "files"


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Writes the files into a folder, which is made if there is a file."""
    for name, text in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)


def facts(files: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns {'files': {name: SHA-256}}, which checkpoints record; {} without a file."""
    return {_FACT: {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}} if files else {}


def refuse_other(workdir: Path, files: Mapping[str, str], trained: Mapping[str, Any]) -> None:
    """Raises UserError if the files are not those that a checkpoint was trained with.

    Args:
      workdir: the run folder.
      files: {name: text} of `make_files`.
      trained: what the checkpoint records; nothing of an experiment that had no make_files then.
    """
    if (then := trained.get(_FACT)) is None:
        return
    now = facts(files).get(_FACT, {})
    if differing := sorted(name for name in {*then, *now} if then.get(name) != now.get(name)):
        raise UserError(
            f"{', '.join(differing)} of make_files: changed since {workdir} was begun, so its checkpoints do not fit."
            f" Did a corpus or a size change? {workdir / 'files'} has what it was trained with; for another file, use"
            " another folder."
        )

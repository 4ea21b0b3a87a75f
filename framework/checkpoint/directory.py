"""The folder of a run's checkpoints: which steps it has, and which of them is the last and the best.

    directory = Directory(workdir / 'checkpoints')
    directory.complete()                # [400, 469]: steps with a manifest, oldest first
    directory.point('last', 469)        # last.json
    directory.pointer('best')           # 400; None without best.json

A step has a folder step-00000469. A folder whose name starts with a dot is incomplete, one that starts with `damaged-`
was found damaged.
"""

import itertools
import os
from pathlib import Path
from typing import Any

from absl import logging

from framework.checkpoint.snapshot import manifest_of
from framework.checkpoint.storage import MANIFEST, CorruptError
from framework.errors import UserError
from framework.files import load_json, remove, unreachable, write_json
from framework.folder import PREFIX, name_of, step_of

PUT_BACK = "Put it back, or use another --workdir."


class Directory:
    """Lists, names and renames the checkpoints in a folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Returns the folder of the checkpoint of a step."""
        return self.folder / name_of(step)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoint folders, complete or not, oldest first."""
        return sorted(step for step in map(step_of, self._names()) if step is not None)

    def complete(self) -> list[int]:
        """Returns the steps of the checkpoints that have a manifest, oldest first."""
        return [step for step in self.steps() if os.path.isfile(self.path(step) / MANIFEST)]

    def manifest(self, step: int) -> dict[str, Any]:
        """Returns the manifest of a step; raises CorruptError if it is damaged."""
        return manifest_of(self.path(step))

    def has_manifest(self, step: int) -> bool:
        """Returns whether a step has an undamaged manifest."""
        try:
            return bool(self.manifest(step))
        except CorruptError:
            return False

    def pointer(self, name: str) -> int | None:
        """Returns the step that last.json or best.json names; None if the file is missing or contradicts itself.

        The file names the step twice, because a flipped bit turns one step into another.
        """
        try:
            pointer = load_json(self.folder / f"{name}.json")
            step = int(pointer["step"])
            return step if pointer["checkpoint"] == name_of(step) else None
        except (OSError, CorruptError, LookupError, TypeError, ValueError, OverflowError):
            return None

    def point(self, name: str, step: int) -> None:
        """Writes last.json or best.json, unless it names the step already."""
        if self.pointer(name) != step:
            write_json(self.folder / f"{name}.json", {"step": step, "checkpoint": self.path(step).name})

    def delete(self, step: int) -> None:
        """Deletes a checkpoint; it is renamed first, so that a crash leaves nothing that looks like a checkpoint."""
        path = self.path(step)
        remove(path.rename(self.folder / f".{path.name}.tmp"))

    def set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, or whatever else has its name, to damaged-step-…; deletes nothing."""
        path = self.path(step)
        free = self.folder / f"damaged-{path.name}"
        numbers = itertools.count(2)
        while os.path.lexists(free):
            free = self.folder / f"damaged-{path.name}-{next(numbers)}"
        path.rename(free)

    def remove_leftovers(self) -> None:
        """Removes the incomplete checkpoints that killed processes have left."""
        for name in self._names():
            if name.startswith(f".{PREFIX}") and name.endswith(".tmp"):
                remove(self.folder / name)

    def warn_of_other_names(self) -> None:
        """Warns of folders such as step-50, which look like checkpoints but are not named as one."""
        for name in self._names():
            digits = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and digits.isascii() and digits.isdecimal() and step_of(name) is None:
                logging.warning(
                    "%s is not the name of a checkpoint and is left alone. If it is a checkpoint, name it %s.",
                    self.folder / name,
                    name_of(int(digits)),
                )

    def _names(self) -> list[str]:
        """Returns the names of all that is in the folder; [] if there is no folder.

        Raises:
          UserError: the folder cannot be reached, which must not be taken for a folder without checkpoints.
        """
        problem = unreachable(self.folder)
        try:
            if not problem:
                return os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            problem = "it is not a folder" if isinstance(error, NotADirectoryError) else str(error.strerror)
        raise UserError(f"{self.folder} cannot be reached: {problem}. {PUT_BACK}")

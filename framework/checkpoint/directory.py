"""The folder of a run's checkpoints: which there are, which of them is the last and the best."""

import itertools
import os
from pathlib import Path
from typing import Any

from absl import logging

from framework.checkpoint.snapshot import PREFIX, manifest_of, name_of, step_of
from framework.checkpoint.storage import MANIFEST, CorruptError
from framework.config import UserError
from framework.files import load_json, remove, unreachable, write_json

PUT_BACK = "Put it back, or use another --workdir."


class Directory:
    """The folder of the checkpoints of one run, which may not be there yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def point(self, name: str, step: int) -> None:
        if self.pointer(name) != step:
            write_json(self.folder / f"{name}.json", {"step": step, "checkpoint": self.path(step).name})

    def complete(self) -> list[int]:
        return [step for step in self.steps() if os.path.isfile(self.path(step) / MANIFEST)]

    def has_manifest(self, step: int) -> bool:
        try:
            return bool(self.manifest(step))
        except CorruptError:
            return False

    def steps(self) -> list[int]:
        """Steps of all checkpoint folders, also of those in which something is missing."""
        return sorted(step for step in map(step_of, self.names()) if step is not None)

    def names(self) -> list[str]:
        """What is in the folder; [] if there is none.

        Raises:
          UserError: it cannot be reached. That must not look as if nothing had been saved.
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

    def manifest(self, step: int) -> dict[str, Any]:
        return manifest_of(self.path(step))

    def path(self, step: int) -> Path:
        return self.folder / name_of(step)

    def remove_leftovers(self) -> None:
        for name in self.names():
            if name.startswith(f".{PREFIX}") and name.endswith(".tmp"):
                remove(self.folder / name)

    def pointer(self, name: str) -> int | None:
        """What a pointer file says; None without one that says the same twice: a flipped bit names another step."""
        try:
            pointer = load_json(self.folder / f"{name}.json")
            step = int(pointer["step"])
            return step if pointer["checkpoint"] == name_of(step) else None
        except (OSError, CorruptError, LookupError, TypeError, ValueError, OverflowError):
            return None

    def set_aside(self, step: int) -> None:
        """Renames what is no checkpoint, whoever made it; nothing is deleted."""
        path = self.path(step)
        free = self.folder / f"damaged-{path.name}"
        numbers = itertools.count(2)
        while os.path.lexists(free):
            free = self.folder / f"damaged-{path.name}-{next(numbers)}"
        path.rename(free)

    def warn_of_other_names(self) -> None:
        for name in self.names():
            digits = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and digits.isascii() and digits.isdecimal() and step_of(name) is None:
                logging.warning(
                    "%s is not the name of a checkpoint and is left alone. If it is one, name it %s.",
                    self.folder / name,
                    name_of(int(digits)),
                )

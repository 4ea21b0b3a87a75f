"""The batches of an epoch, in files that peers of every framework read.

    write(path, batches)                             # [{name: array}, …]
    for number in Turns(len(read(path))).take(10): …

Nothing here imports a framework.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def write(path: Path, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Writes batches, each of a shape of its own."""
    np.savez(
        path, **{f"{number}/{name}": array for number, batch in enumerate(batches) for name, array in batch.items()}
    )


def read(path: str) -> list[dict[str, np.ndarray]]:
    """Returns the batches in their order."""
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = file[key]
    return [found[number] for number in range(len(found))]


class Turns:
    """Numbers of batches, over and over: a turn goes on where the last one ended."""

    def __init__(self, count: int) -> None:
        self._count, self._next = count, 0

    def take(self, count: int) -> list[int]:
        """The next `count` numbers."""
        first, self._next = self._next, self._next + count
        return [number % self._count for number in range(first, self._next)]

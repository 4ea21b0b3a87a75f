"""The shards of a data set: files that are found by a folder, a pattern or a list, and read as one row of records.

paths = find("cifar10/train-*.tfrecord", ".tfrecord")       # UserError that names a missing shard
places = Places([index.count for index in indexes])
shard, number = places.of(np.array([3, 20_000]))            # which shard each record is in, and where
"""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framework.errors import UserError
from framework.remote.address import refuse

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(.*)")


def find(paths: Paths, suffix: str) -> list[Path]:
    """Returns the shards of a data set, sorted by name.

    Args:
      paths: a file, a folder, a pattern such as 'train-*.tfrecord', or a list of files.
      suffix: the end of the files' names in a folder: '.tfrecord'.

    Raises:
      UserError: there is no such file, a file is given twice, or shards are missing: 'x-00001-of-00004' stands for one
        of four.
    """
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        refuse(path, "a data set of files")
    if isinstance(paths, str | os.PathLike):
        shards = _matching(Path(paths).expanduser(), suffix)
    else:
        shards = [Path(path).expanduser() for path in paths]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{shard} does not exist, or is not a file. Put the shard back, or correct the path.")
    if not shards:
        raise UserError(f"no file matches {paths}. Give a file, a folder of *{suffix}, or a pattern.")
    if len(set(shards)) < len(shards):
        twice = next(shard for place, shard in enumerate(shards) if shard in shards[:place])
        raise UserError(
            f"{twice} is given twice, so its examples would count twice. If that is meant, give shares of a mixture:"
            " make_batches([(source, 2), (other, 1)], cfg, …)."
        )
    _check_complete(shards)
    return shards


def origin_of(shards: Sequence[Path]) -> str:
    """Returns a name of the shards for logs: 'cifar10/train-00000-of-00004.tfrecord and 3 more'."""
    return str(shards[0]) + (f" and {len(shards) - 1} more" if len(shards) > 1 else "")


def _matching(path: Path, suffix: str) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(suffix) and not file.name.startswith("."))
    if path.is_file() or not glob.has_magic(str(path)):
        return [path]
    return sorted(Path(name) for name in glob.glob(str(path)) if not name.endswith(".index"))


def _check_complete(shards: Sequence[Path]) -> None:
    """Raises UserError for the first shard that is missing, by the numbers in the names of the others."""
    names = {str(shard) for shard in shards}
    for shard in shards:
        match = _NUMBERED.fullmatch(str(shard))
        if match is None:
            continue
        start, number, count, end = match.groups()
        for other in range(int(count)):
            name = f"{start}-{other:0{len(number)}d}-of-{count}{end}"
            if name not in names:
                raise UserError(f"the shard {name} is missing: {shard.name} is one of {int(count)}. Put the file back.")


class Places:
    """Tells which shard a record of the whole data set is in.

    Args:
      counts: how many records each shard has.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shard of each record, and its number in that shard (int64 [n] each).

        Raises:
          IndexError: a record is not one of the data set.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} … {rows.max()} of {len(self)} records")
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        return shard, rows - self._starts[shard]

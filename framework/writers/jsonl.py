"""metrics.jsonl: one JSON object a row.

writer = Jsonl('run/metrics.jsonl', resume_step=0)
writer.scalars(400, {'loss': 0.2134})       # {"step": 400, "loss": 0.2134}
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from framework.errors import MachineError
from framework.files import CorruptError, lines_and_rows, write_bytes
from framework.writers.base import Writer


class Jsonl(Writer):
    """Writes one JSON object a row: {"step": 400, "loss": 0.2134, …}; NaN and infinity are null.

    Args:
      path: of the file, which is appended to.
      resume_step: rows of later steps are dropped, all rows at 0; None keeps the file. A torn last line is dropped.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self._path = Path(path)
        if self._path.exists():
            kept, before = _kept_lines(self._path, resume_step), self._path.stat().st_size
            if len(kept) != before:
                write_bytes(self._path.resolve(), kept)  # a link stays one
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        row: dict[str, float | None] = {"step": int(step)}
        for name, value in values.items():
            row[name] = float(value) if math.isfinite(value) else None
        self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Returns when all rows are on disk.

        Raises:
          OSError: the disk fails, or the file was deleted or replaced since it was opened.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
            raise OSError(errno.EIO, "deleted or replaced while the run was writing it", str(self._path))

    def close(self) -> None:
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()


def _kept_lines(path: Path, resume_step: int | None) -> bytes:
    """Returns the lines up to the last row at or before the step, without damaged lines and rows of later steps."""
    try:
        rows = lines_and_rows(path)
    except CorruptError as error:
        raise MachineError(f"{path} cannot be read: {error}. Mend that and type the same command again.") from error
    is_kept = [resume_step is None or 0 < row["step"] <= resume_step for _, row in rows]
    last = max((place for place, kept in enumerate(is_kept) if kept), default=-1)
    if odd := is_kept[: last + 1].count(False):
        logging.warning("%s: %d rows of steps that the run has not come to are left out", path, odd)
    return b"".join(line for (line, _), kept in zip(rows, is_kept, strict=True) if kept)

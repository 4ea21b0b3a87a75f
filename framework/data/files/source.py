"""Sources of records: read from files, decoded, and their damaged records named or left out.

    source = RecordSource(reader, decode, origin="train-*.tfrecord", damaged="skip")
    len(source), source.skipped               # 49998, {"records": 2, "first": ["train-…, record 17: its CRC is wrong"]}

With `damaged="stop"` the first damaged record that is read ends the run. With `damaged="skip"` one pass over all
records finds the damaged ones before the first batch, and the others are the source: its length is known, each batch is
full, and the order of the examples stays a function of the seed and the step.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from absl import logging

from framework import files
from framework.data import fetch
from framework.data.fields import Fields, checked, fields_of
from framework.data.files.examples import Each, Examples
from framework.data.files.pictures import strict_decoder
from framework.data.files.records import RecordError, Records, in_threads
from framework.errors import DataError, UserError

Decode = Examples | Callable[[bytes], Any]
Policy = Literal["stop", "skip"]

ADVICE = "Mend the file, or leave such records out by damaged='skip'."

_PASS = 3  # version of what the pass finds
_CHUNK = 256  # records of one thread's turn in the pass
_NAMED = 5  # damaged records that result.json names


class RecordSource:
    """Reads and decodes records; implements `IndexedSource`.

    Args:
      reader: reads the records.
      decode: `Examples`, or a function that returns {field: array or number} of one record's bytes.
      origin: where the records come from, for logs and result.json.
      damaged: 'stop' or 'skip'.

    Attributes:
      classes: the names of the classes, by label; () if the files do not say.
      skipped: {"records": how many were left out, "first": the names of the first ones, and why}; None under 'stop'.
      is_repeatable: whether a record is known to be decoded to the same numbers each time, as by `Examples`.

    Raises:
      UserError: `damaged` is something else, or every record is damaged.
    """

    is_subset = False

    def __init__(self, reader: Records, decode: Decode, origin: str, damaged: Policy = "stop") -> None:
        if damaged not in ("stop", "skip"):
            raise UserError(f"damaged='{damaged}' is not 'stop' or 'skip'.")
        self.origin = origin
        self.classes = reader.classes
        self._reader = reader
        self.is_repeatable = isinstance(decode, Examples)
        self._decode = decode if isinstance(decode, Examples) else Each(decode)
        self._rows = np.arange(len(reader))
        self.skipped: dict[str, Any] | None = None
        if damaged == "skip":
            self._leave_out(self._known_damage() if isinstance(decode, Examples) else self._damage())

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Returns the size of all examples, decoded; a text counts as long as its record."""
        specs = self.element_spec.values()
        of_texts = self._reader.nbytes // len(self._reader) if any(spec.dtype == tf.string for spec in specs) else 0
        of_numbers = sum(
            spec.dtype.size * (spec.shape.num_elements() or 1) for spec in specs if spec.dtype != tf.string
        )
        return len(self) * (of_texts + of_numbers)

    @functools.cached_property
    def element_spec(self) -> Fields:
        """Returns {field: spec of one example}; a decode function of your own is asked for its first example."""
        if isinstance(self._decode, Examples):
            return self._decode.element_spec
        what = f"'{self.origin}'"
        return fields_of(checked(self.take(np.zeros(1, np.int64)), None, 1, what), what)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` (int [n]) as {field: array [n, ...]}.

        Raises:
          DataError: a record is damaged; the message has its file, its place in the file, and what is wrong.
        """
        rows = self._rows[indices]
        try:
            return self._decode(self._reader.read(rows))
        except RecordError as error:
            advice = ADVICE if self.skipped is None else self._forget()
            raise DataError(f"{self._shown(int(rows[error.place]), error.why)}. {advice}") from error

    def close(self) -> None:
        """Closes the files; the next `take` opens them again."""
        self._reader.close()

    def fingerprint(self) -> str:
        """Returns a hash of the files' hashes, of how records are decoded, and of which are left out."""
        digest = hashlib.sha256(f"{self._reader.digest} {self._decode} {len(self)}".encode())
        digest.update(self._rows.tobytes())
        return digest.hexdigest()

    def _shown(self, row: int, why: str) -> str:
        return f"{self._reader.name(row)}: {why}"

    def _leave_out(self, damage: dict[int, str]) -> None:
        first = [self._shown(row, damage[row]) for row in sorted(damage)[:_NAMED]]
        self.skipped = {"records": len(damage), "first": first}
        self._rows = np.setdiff1d(self._rows, np.array(list(damage), np.int64))
        if not len(self._rows):
            raise UserError(f"{self.origin}: all {len(damage)} records are damaged; the first is {first[0]}.")
        if damage:
            shares = f"{len(damage)} of {len(self._reader)} records"
            logging.warning("%s: %s are damaged and skipped; the first is %s", self.origin, shares, first[0])

    # ---- The pass over all records ----

    @property
    def _note(self) -> Path:
        """The file that remembers the pass: for these files, decoded in this way."""
        known = f"{_PASS} {strict_decoder() is not None} {self._reader.digest} {self._decode}"
        key = hashlib.sha256(known.encode()).hexdigest()[:32]
        return files.cache_folder("files") / f"damage-{key}.json"

    def _forget(self) -> str:
        """Forgets the pass, which missed a damaged record; returns what to do."""
        files.remove(self._note)
        return "The record was whole when all records were checked. Type the command again: it checks them again."

    def _known_damage(self) -> dict[int, str]:
        """Returns `_damage()`, from the cache if these files were decoded in this way before."""
        note = self._note
        as_damage = lambda value: {int(row): str(why) for row, why in value.items()}  # noqa: E731
        damage = files.read_json(note, as_damage, None, "all records are read again")
        if damage is None:
            damage = self._damage()
            try:
                note.parent.mkdir(parents=True, exist_ok=True)
                files.write_json(note, damage)
            except OSError as error:
                logging.info("%s is not kept (%s), so each start reads all records", note, fetch.reason(error))
        return damage

    def _damage(self) -> dict[int, str]:
        """Returns {row: what is wrong} of all records that cannot be read or decoded."""
        start = time.monotonic()
        chunks = np.array_split(np.arange(len(self._reader)), -(-len(self._reader) // _CHUNK))
        damage = {row: why for bad in in_threads(self._damage_of, chunks) for row, why in bad.items()}
        seconds = time.monotonic() - start
        logging.info("%s: %d records checked in %.1f s", self.origin, len(self._reader), seconds)
        return damage

    def _damage_of(self, rows: np.ndarray) -> dict[int, str]:
        try:
            self._decode(self._reader.read(rows))
            return {}
        except RecordError as error:
            if len(rows) == 1:
                return {int(rows[0]): error.why}
        return {row: why for one in rows for row, why in self._damage_of(one[np.newaxis]).items()}

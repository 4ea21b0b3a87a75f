"""Records: bytes that are read by number from the shards of a data set. Each reader knows the name of every record.

reader = TfRecords(find("cifar10/train-*.tfrecord", ".tfrecord"))
reader.read(np.array([3, 20_000]))                # [b"…", b"…"]
reader.name(20_000)                               # 'train-00001-of-00004.tfrecord, record 7500'
"""

import concurrent.futures
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from framework import extras
from framework.data.files import index, manifest, notes
from framework.data.files.index import Index
from framework.data.files.shards import Places, origin_of
from framework.errors import UserError

In = TypeVar("In")
Out = TypeVar("Out")

THREADS = os.cpu_count() or 1
# Nothing is read ahead, and a batch is read in the thread that prepares it: 4 times as fast for 32 records of 2.5 kB.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class RecordError(Exception):
    """One of the records that were read is damaged.

    Attributes:
      place: which one, in the order in which they were asked for.
      why: what is wrong with it.
    """

    def __init__(self, place: int, why: str) -> None:
        super().__init__(f"record {place} of those read: {why}")
        self.place = place
        self.why = why


class Records(Protocol):
    """Reads records by number, from several threads.

    Attributes:
      nbytes: the size of all files.
      digest: a hash of their content.
      classes: the names of the classes, by label; () if they are not known.
    """

    nbytes: int
    digest: str
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def close(self) -> None:
        """Closes the files; the next `read` opens them again."""
        ...

    def read(self, rows: np.ndarray) -> list[bytes]:
        """Returns the records `rows` (int [n]), in that order; raises RecordError for one that is damaged."""
        ...

    def name(self, row: int) -> str:
        """Returns the file of a record, and its place in the file."""
        ...


class _Sharded:
    """Knows which shard each record is in, and its name.

    Args:
      shards: the files.
      counts: how many records each has.

    Raises:
      UserError: there is no record.
    """

    def __init__(self, shards: Sequence[Path], counts: Sequence[int]) -> None:
        self._shards = shards
        self._places = Places(counts)
        if not len(self):
            raise UserError(f"{origin_of(shards)}: there is no record.")

    def __len__(self) -> int:
        return len(self._places)

    def name(self, row: int) -> str:
        shard, number = self._places.of(np.array([row]))
        return f"{self._shards[int(shard[0])]}, record {int(number[0])}"


class TfRecords(_Sharded):
    """Reads TFRecord shards by their indexes; implements `Records`. Files are open while a batch is read.

    Raises:
      UserError: a shard has changed since it was indexed, is compressed, or there is no record.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, shards: Sequence[Path]) -> None:
        self._indexes = in_threads(index.index_of, shards)
        super().__init__(shards, [each.count for each in self._indexes])
        self.nbytes = sum(int(each.offsets[-1]) for each in self._indexes)
        self.digest = _digest(each.sha256 for each in self._indexes)

    def close(self) -> None:
        """Does nothing: files do not stay open, because a data set may have more shards than a process may open."""

    def read(self, rows: np.ndarray) -> list[bytes]:
        shard, number = self._places.of(rows)
        records = [b""] * len(rows)
        for each in np.unique(shard).tolist():
            with self._shards[each].open("rb", buffering=0) as file:
                for place in np.flatnonzero(shard == each).tolist():
                    records[place] = self._read(file, self._indexes[each], place, int(number[place]))
        return records

    def _read(self, file: io.RawIOBase, known: Index, place: int, number: int) -> bytes:
        if number in known.damaged:
            raise RecordError(place, known.damaged[number])
        start, end = int(known.offsets[number]), int(known.offsets[number + 1])
        record = os.pread(file.fileno(), end - start - index.HEADER - index.FOOTER, start + index.HEADER)
        if zlib.crc32(record) != known.checksums[number]:
            raise RecordError(place, "it has changed since the shard was indexed")
        return record


class ArrayRecords(_Sharded):
    """Reads ArrayRecord shards; implements `Records`. Blocks of records have hashes, which the package checks.

    Raises:
      UserError: array_record is not installed, a shard is not the one of the manifest, or there is no record.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._module = extras.load("array_record.python.array_record_module", "data")
        hashes = in_threads(notes.content_hash, shards)
        self.classes = manifest.check(shards, hashes, self._count)
        super().__init__(shards, [self._count(shard) for shard in shards])
        self._states = [_state(shard) for shard in shards]
        self._readers: list[Any] = [None] * len(shards)  # opened by the first read
        self.nbytes = sum(size for size, _ in self._states)
        self.digest = _digest(hashes)

    def close(self) -> None:
        # A reader closes its file when it is freed: at once, or at the end of a read that is under way.
        self._readers = [None] * len(self._shards)

    def _count(self, shard: Path) -> int:
        """Returns the number of records of a shard."""
        reader = self._module.ArrayRecordReader(str(shard), _RANDOM_ACCESS)
        if not (reader.ok() and reader.num_records()):
            raise UserError(f"{shard} is not an ArrayRecord file, or is cut off, or has no record.")
        return int(reader.num_records())

    def read(self, rows: np.ndarray) -> list[bytes]:
        shard, number = self._places.of(rows)
        records: list[bytes] = [b""] * len(rows)
        for each in np.unique(shard):
            places = np.flatnonzero(shard == each)
            for place, record in zip(places, self._read(int(each), number[places], places), strict=True):
                records[place] = record
        return records

    def _read(self, shard: int, numbers: np.ndarray, places: np.ndarray) -> list[bytes]:
        reader = self._readers[shard]
        if reader is None:
            if _state(self._shards[shard]) != self._states[shard]:
                raise RecordError(int(places[0]), "the shard has changed since the start")
            reader = self._module.ArrayRecordReader(str(self._shards[shard]), _RANDOM_ACCESS)
            self._readers[shard] = reader
        try:
            return reader.read(numbers.tolist())
        except RuntimeError as error:  # does not say which record
            for place, number in zip(places, numbers, strict=True):
                try:
                    reader.read([int(number)])
                except RuntimeError as own:
                    raise RecordError(int(place), _short(own)) from own
            raise RecordError(int(places[0]), _short(error)) from error


def in_threads(fn: Callable[[In], Out], values: Iterable[In]) -> list[Out]:
    """Returns fn(value) for each value, computed in as many threads as there are cores."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(fn, values))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Returns the size of a file and the time at which it changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _short(error: Any) -> str:
    return " ".join(str(error).split())[:200]

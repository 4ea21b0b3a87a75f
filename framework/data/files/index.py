"""The index of a TFRecord shard: where each record starts, and a checksum of it, so that reads can be in any order.

    index = index_of(Path("train-00000-of-00004.tfrecord"))      # read from beside the shard, or made
    index.count, index.offsets[17], index.checksums[17], index.damaged

The index is made in one pass, in which TensorFlow checks the CRC of every length and record. It holds the SHA-256 of
the shard, so that a shard that changes later is refused, and a CRC-32 of each record, which zlib computes fast enough
for every read.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from framework.data.files import crc32c, notes
from framework.errors import UserError

SUFFIX = ".index"
HEADER, FOOTER = 12, 4  # length and its CRC before a record, CRC of the record after it

_VERSION = 1
_RECORDS = 1024  # read at a time


@dataclass(frozen=True)
class Index:
    """Holds the places of the records of a shard.

    Attributes:
      sha256: the hash of the shard.
      offsets: int64 [count + 1], the byte at which each record's frame starts, and the end of the last.
      checksums: uint32 [count], zlib.crc32 of each record; 0 for a damaged one.
      damaged: {number: what is wrong with the record}.
    """

    sha256: str
    offsets: np.ndarray
    checksums: np.ndarray
    damaged: dict[int, str]

    @property
    def count(self) -> int:
        """Returns the number of records, the damaged ones included."""
        return len(self.checksums)


def index_of(shard: Path) -> Index:
    """Returns the index of a shard; makes it if there is none.

    Raises:
      UserError: the shard is not the one of its index, or is compressed.
    """
    digest = notes.content_hash(shard)
    note = notes.read(shard, SUFFIX)
    index = None if note is None else _unpacked(note, notes.place_of(shard, SUFFIX))
    if index is None:
        logging.info("%s is indexed (%.0f MB)", shard, shard.stat().st_size / 2**20)
        index = _made(shard, digest)
        notes.write(shard, SUFFIX, _packed(index))
    elif index.sha256 != digest:
        size = shard.stat().st_size
        raise UserError(
            f"{shard} has changed since {shard.name}{SUFFIX} was made: {index.offsets[-1]} bytes, SHA-256"
            f" {index.sha256[:12]}… then; {size} bytes, {digest[:12]}… now. Put the shard back; if the change is meant,"
            f" remove {notes.place_of(shard, SUFFIX)}."
        )
    return index


def _packed(index: Index) -> bytes:
    facts = {"version": _VERSION, "sha256": index.sha256, "damaged": index.damaged}
    content = io.BytesIO()
    header = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez(content, facts=header, offsets=index.offsets, checksums=index.checksums)
    return content.getvalue()


def _unpacked(content: bytes, path: Path) -> Index | None:
    """Returns the index that a file holds; None, with a warning, if the file is damaged or of another version."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            if facts["version"] != _VERSION:
                raise ValueError(f"version {facts['version']}")
            damaged = {int(number): str(why) for number, why in facts["damaged"].items()}
            return Index(str(facts["sha256"]), arrays["offsets"], arrays["checksums"], damaged)
    except (ValueError, LookupError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logging.warning("%s is damaged (%s) and is made again", path, " ".join(str(error).split()))
        return None


# ---- The pass over a shard ----


class _Pass:
    """Collects what is known of the records of a shard, in the order of the file."""

    def __init__(self) -> None:
        self.offsets = [0]
        self.checksums: list[int] = []
        self.damaged: dict[int, str] = {}

    @property
    def end(self) -> int:
        return self.offsets[-1]

    def add(self, record: bytes) -> None:
        self.offsets.append(self.end + HEADER + len(record) + FOOTER)
        self.checksums.append(zlib.crc32(record))

    def add_damaged(self, size: int, why: str) -> None:
        self.damaged[len(self.checksums)] = why
        self.offsets.append(self.end + size)
        self.checksums.append(0)


def _made(shard: Path, digest: str) -> Index:
    seen = _Pass()
    try:
        for records in _checked_records(shard):
            for record in records:
                seen.add(record)
    except tf.errors.DataLossError:
        pass  # the records of that turn are read again
    _read_around_damage(shard, seen)  # to the end, which TensorFlow does not if a last length is cut off
    return Index(digest, np.array(seen.offsets, np.int64), np.array(seen.checksums, np.uint32), seen.damaged)


def _checked_records(shard: Path) -> Iterator[list[bytes]]:
    """Yields the records of a shard, some at a time; TensorFlow raises DataLossError for a wrong CRC."""
    with tf.device("CPU:0"):
        yield from tf.data.TFRecordDataset(str(shard)).batch(_RECORDS).as_numpy_iterator()


def _read_around_damage(shard: Path, seen: _Pass) -> None:
    """Reads the records that follow, and notes the damaged ones; a damaged length ends the shard."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        file.seek(seen.end)
        while seen.end < size:
            header = file.read(HEADER)
            if header.startswith(b"\x1f\x8b") and seen.end == 0:
                raise UserError(f"{shard} is compressed, so its records have no places. Unpack it: gunzip {shard}")
            rest = size - seen.end
            if len(header) == HEADER and crc32c.masked(header[:8]) != struct.unpack_from("<I", header, 8)[0]:
                seen.add_damaged(rest, f"the CRC of its length is wrong, so the last {rest} bytes cannot be read")
                return
            length = int.from_bytes(header[:8], "little")
            if rest < HEADER + length + FOOTER:
                seen.add_damaged(rest, f"it is cut off after {rest} bytes")
                return
            record, footer = file.read(length), file.read(FOOTER)
            if crc32c.masked(record) == struct.unpack("<I", footer)[0]:
                seen.add(record)
            else:
                seen.add_damaged(HEADER + length + FOOTER, "its CRC is wrong")

"""Test data in training: how many examples of one split are among those of another.

    found = overlap(train, test)
    found.shared, found.looked_at, found.among        # 37 of 2,000 examples, among 60,000 (found.of: of all)
    found.first                                      # (12, 4711): example 12 is example 4711 of the training data

Examples are compared as their sources give them, before the transform, by a hash of the fields that both splits have.
Sequences that each split pads with zeros to a length of its own are compared without the zeros at their ends.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_MOST_TESTED = 2_000  # examples
_CHUNK, _CHUNK_BYTES = 1_024, 2**26  # examples read at a time, and at most so many bytes of them
_SECONDS = 3.0  # after which no more of the training data are read
_NUMBERED = 64  # examples that are asked whether a field is their number


class Overlap(NamedTuple):
    """Holds what was found.

    Attributes:
      shared: how many of the examples that were looked at are among the training data.
      looked_at: examples of the split.
      among, of: examples of the training data that were looked at, and all of them.
      first: the index of the first such example, and the index of its equal in the training data; None without one.
      repeated: how many of the shared examples the split itself has more than once. Few different examples, such as
        short texts or two bits, are equal by nature.
      numbers: fields that number the examples of both splits, which are not compared.
    """

    shared: int
    looked_at: int
    among: int
    of: int
    first: tuple[int, int] | None
    repeated: int
    numbers: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the examples that the training data have, too, without the repeated ones, from 0 to 1.

        If only a part of the training data was looked at, it is what this part says of all.
        """
        return min(1.0, (self.shared - self.repeated) / self.looked_at * self.of / self.among)


def overlap(train: Any, other: Any, seconds: float = _SECONDS) -> Overlap | None:
    """Looks for examples of `other` among those of `train`, at random ones of both if there are many.

    Args:
      train, other: batches of `make_batches`.
      seconds: time after which no more examples of `train` are read.

    Returns:
      What was found; None if the splits have no field in common, or little of an example, or if one of them is not read
      by index.
    """
    members = [_member(batches) for batches in (train, other)]
    if any(member is None for member in members):
        return None
    first_rows = [_row(member) for member in members]
    size = max(_bytes(row, row) for row in first_rows)
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // max(1, size)))
    # In both: a split that has one example of each user may number the users of the other.
    numbers = set.intersection(*(set(_numbers(member, min(chunk, _NUMBERED))) for member in members))
    compared = [{name: array for name, array in row.items() if name not in numbers} for row in first_rows]
    names = _common(*compared)
    if not names:
        return None
    tested = _chosen(members[1].raw_count, _MOST_TESTED, seed=0)
    known: dict[bytes, list[int]] = {}
    for index, digest in _digests(members[1], tested, names, chunk):
        known.setdefault(digest, []).append(index)
    equal: dict[int, int] = {}
    among, end = 0, time.monotonic() + seconds
    everywhere = _chosen(members[0].raw_count, members[0].raw_count, seed=1)
    for start in range(0, len(everywhere), chunk):
        if among and time.monotonic() > end:
            break
        part = everywhere[start : start + chunk]
        among += len(part)
        for index, digest in _digests(members[0], part, names, chunk):
            for same in known.get(digest, ()):
                equal.setdefault(same, index)
    first = min(equal.items(), default=None)
    repeated = sum(len(same) for same in known.values() if len(same) > 1 and same[0] in equal)
    return Overlap(len(equal), len(tested), among, len(everywhere), first, repeated, tuple(sorted(numbers)))


def _member(batches: Any) -> Any:
    """Returns what reads examples by index: the batches themselves, or those of a bucket."""
    member = batches.members[0] if hasattr(batches, "members") else batches
    return member if hasattr(member, "raw") else None


def _row(member: Any) -> dict[str, np.ndarray]:
    """Returns the first example, {field: array [1, ...]}, without its weight."""
    return {name: array for name, array in member.raw(np.zeros(1, np.int64)).items() if name != "weight"}


def _numbers(member: Any, count: int) -> list[str]:
    """Returns the fields that, of `count` examples, are their number, counted from anywhere, such as a line's."""
    index = _chosen(member.raw_count, count, seed=2)
    if len(index) < 2:
        return []
    return [
        name
        for name, array in member.raw(index).items()
        if array.ndim == 1 and array.dtype.kind in "iu" and len(np.unique(array.astype(np.int64) - index)) == 1
    ]


def _common(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the fields that the first examples of both splits have in the same dtype and shape, but for the length.

    There are none if these hold less than half of the bytes of an example: labels alone, beside pictures of another
    size, are equal by chance.
    """
    names = sorted(name for name in ours.keys() & theirs.keys() if _is_alike(ours[name], theirs[name]))
    return names if all(2 * _bytes(row, names) >= _bytes(row, row) for row in (ours, theirs)) else []


def _is_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two fields, [1, ...], can be compared: only sequences may have a length of their own."""
    if one.dtype != other.dtype or one.ndim != other.ndim:
        return False
    return one.shape == other.shape or (one.ndim == 2 and one.dtype.kind in "iu")


def _bytes(row: Mapping[str, np.ndarray], names: Iterable[str]) -> int:
    return sum(len(_rows(row[name])[0]) for name in names)


def _chosen(count: int, most: int, seed: int) -> np.ndarray:
    """Returns the indices of at most so many examples, in an order in which a part of them is spread over all.

    Args:
      count: examples to choose from.
      most: examples to choose.
      seed: another one for each split, or the same places of both would be looked at first.
    """
    return np.random.default_rng(seed).permutation(count)[:most].astype(np.int64)


def _digests(member: Any, indices: np.ndarray, names: Sequence[str], chunk: int) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(indices), chunk):
        part = indices[start : start + chunk]
        taken = member.raw(part)
        columns = [_rows(taken[name]) for name in names]
        for index, row in zip(part.tolist(), zip(*columns, strict=True), strict=True):
            yield index, hashlib.blake2b(b"".join(row), digest_size=16).digest()


def _rows(array: np.ndarray) -> list[bytes]:
    """Returns each row as bytes; texts and sequences begin with their length, so that neighbours stay apart."""
    if array.dtype == object:
        texts = [np.ravel(row).tolist() for row in array]
        return [b"".join(b"%d:%b" % (len(text), text) for text in map(_encoded, row)) for row in texts]
    if array.ndim == 2 and array.dtype.kind in "iu":
        lengths = (np.arange(1, array.shape[1] + 1) * (array != 0)).max(axis=1, initial=0)
        return [b"%d:%b" % (length, row[:length].tobytes()) for row, length in zip(array, lengths, strict=True)]
    return [row.tobytes() for row in array]


def _encoded(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()

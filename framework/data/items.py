"""Items: the source of a map-style data set, which gives one example at a time.

    source = from_items(datasets.load_dataset("mnist", split="train").with_format("numpy"), origin="mnist of the hub")
    source.take(np.array([3, 1, 4]))                  # {"image": uint8 [3, 28, 28], "label": int64 [3]}

A map-style data set has `__len__` and `__getitem__` (or `__getitems__`, which reads several examples at once), and an
example is a dict of arrays, numbers, strings or bytes: a data source of Grain or TFDS, a `Dataset` of Hugging Face, a
map-style set of PyTorch, a list of dicts, a class of your own. `make_batches` takes it as it is.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framework.data.fields import Fields, checked, fields_of
from framework.data.sources import RAGGED, hash_of_sample, instead, is_frame, problem_of
from framework.errors import UserError

Example = dict[str, np.ndarray]


class Items:
    """Stacks the examples of a map-style data set; implements `IndexedSource`.

    Args:
      given: the data set.
      origin: a name for logs and result.json.
      is_subset: True if the data set is only a part of the one that it is named after.
    """

    is_repeatable = False  # `__getitem__` may draw: `check_repeatable` of data/mixture.py looks

    def __init__(self, given: Any, origin: str, is_subset: bool = False) -> None:
        self.given = given
        self.origin = origin
        self.is_subset = is_subset
        self._count = len(given)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Returns the size of all examples in bytes if each is as large as the first."""
        return len(self) * sum(_size_of(array) for array in self._first.values()) if len(self) else 0

    @property
    def element_spec(self) -> Fields:
        what = f"'{self.origin}'"
        return fields_of(checked(self.take(np.zeros(1, np.int64)), None, 1, what), what)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` (int64 [n]) as {field: array [n, ...]}, in that order.

        Raises:
          UserError: an example is no dict of arrays, or its fields, shapes or dtypes are not those of example 0; or the
            number of examples is another one than at the start.
        """
        if len(self.given) != self._count:
            raise UserError(
                f"'{self.origin}' has {len(self.given)} examples now, but had {self._count} at the start. A data set"
                " keeps its length while it is used."
            )
        examples = self._read([int(index) for index in indices])
        for index, example in zip(indices, examples, strict=True):
            self._check(int(index), example)
        return {name: np.stack([example[name] for example in examples]) for name in self._first}

    def fingerprint(self) -> str | None:
        """Returns the `fingerprint()` of the data set; if it has none, the SHA-256 of 16 of its examples."""
        own = getattr(self.given, "fingerprint", None)
        return own() if callable(own) else hash_of_sample([self])

    @functools.cached_property
    def _first(self) -> Example:
        """Returns the first example, which defines fields, shapes and dtypes."""
        return self._read([0])[0]

    def _read(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples at `indices`, their values as arrays."""
        if hasattr(self.given, "__getitems__"):
            returned = self.given.__getitems__(indices)
            if returned is None or isinstance(returned, Mapping):
                raise UserError(
                    f"'{self.origin}': __getitems__ returned a value of type {type(returned).__name__}. Return a list"
                    " of examples."
                )
            examples = list(returned)
            if len(examples) != len(indices):
                raise UserError(
                    f"'{self.origin}': __getitems__ returned {len(examples)} examples for {len(indices)} indices."
                    " Return one example for each index, in that order."
                )
        else:
            examples = [self.given[index] for index in indices]
        return [self._arrays_of(index, example) for index, example in zip(indices, examples, strict=True)]

    def _arrays_of(self, index: int, example: Any) -> Example:
        """Returns the values of an example as arrays."""
        what = f"example {index} of '{self.origin}'"
        if not isinstance(example, Mapping) or not example:
            kind = "an empty dict" if isinstance(example, Mapping) else f"of type {type(example).__name__}"
            raise UserError(f"{what} is {kind}. Return a dict of arrays, numbers, strings or bytes: {{'x': …}}.")
        arrays = {str(name): _array_of(value, f"'{name}' of {what}") for name, value in example.items()}
        if len(arrays) < len(example):
            raise UserError(f"{what} has two fields of one name: {', '.join(map(repr, example))}. Use texts as names.")
        return arrays

    def _check(self, index: int, example: Example) -> None:
        """Raises UserError unless an example has the fields, shapes and dtypes of the first one."""
        what = f"example {index} of '{self.origin}'"
        if example.keys() != self._first.keys():
            raise UserError(
                f"{what} has the fields {', '.join(sorted(example))}, but example 0 has"
                f" {', '.join(sorted(self._first))}. Return the same fields for each example."
            )
        for name, array in example.items():
            first = self._first[name]
            if (array.shape, array.dtype) != (first.shape, first.dtype):
                raise UserError(
                    f"'{name}' of {what} is {_shown(array)}, but {_shown(first)} in example 0. Pad, cut or cast it, so"
                    " that all examples have one shape and dtype."
                )


def from_items(given: Any, origin: str = "", is_subset: bool = False) -> Items:
    """Returns the source of a map-style data set, under a name of your choice.

    Args:
      given: an object with `__len__` and `__getitem__` or `__getitems__`, whose examples are dicts.
      origin: a name for logs and result.json; by default the type of `given`.
      is_subset: True if the data set is only a part of the one that it is named after.

    Raises:
      UserError: `given` is no map-style data set.
    """
    if not is_map_style(given):
        raise UserError(f"from_items was given {instead(given)}")
    kind = type(given)
    name = "a list of dicts" if isinstance(given, list | tuple) else f"{kind.__module__}.{kind.__qualname__}"
    return Items(given, origin or name, is_subset)


def is_map_style(given: Any) -> bool:
    """Returns whether a value gives examples by index, one at a time."""
    is_array = hasattr(given, "__array__") or is_frame(given)
    if is_array or isinstance(given, str | bytes | Mapping | type):
        return False
    return hasattr(given, "__len__") and (hasattr(given, "__getitem__") or hasattr(given, "__getitems__"))


def _array_of(value: Any, what: str) -> np.ndarray:
    """Returns a value of an example as an array; strings and bytes become Python objects, which keep their length."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # inhomogeneous shape
        why = RAGGED if isinstance(value, list | tuple) else f"NumPy makes no array of it: {error}."
        raise UserError(f"{what} is of type {type(value).__name__}. {why}") from error
    if array.dtype.kind in "US":
        array = np.asarray(value, object)
    if isinstance(value, int) and array.dtype.hasobject:
        raise UserError(f"{what} is {value}, which is too large for 64 bits. Return a float, or a text.")
    if array.dtype.hasobject and array.ndim == 0 and not isinstance(value, str | bytes):
        raise UserError(f"{what} is of type {type(value).__name__}, not an array, a number, a string or bytes.")
    if problem := problem_of(value if isinstance(value, np.ma.MaskedArray) else array):
        raise UserError(f"{what} is {problem}")
    return array


def _size_of(array: np.ndarray) -> int:
    return sum(len(text) for text in array.flat) if array.dtype.hasobject else array.nbytes


def _shown(array: np.ndarray) -> str:
    """Returns dtype and shape as text: 'float32 [8, 3]'."""
    return f"{'text' if array.dtype.hasobject else array.dtype} {list(array.shape)}"

"""Turns ids, texts and numbers into rows of an `EmbeddingTable`; row 0 is padding.

films = layers.Lookup(range(1, 1683))                   # 1682 films: rows 1 to 1682, unknown ones 1683
jobs = layers.Lookup(["artist", "doctor", "student"])   # strings: outside of XLA and LiteRT
ages = layers.Bucketize([18, 25, 35, 45, 50, 56])
zip_codes = layers.HashedLookup(1000)
table = layers.EmbeddingTable(films.rows, 32)
vectors = table(films(batch["film"]))                   # [batch] -> [batch, 32]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import rng
from framework.trace.guards import IN_RANGE

PADDING = 0  # the row that counts for nothing
_WIDEST = 2**24  # from the smallest to the largest key: the rows of all numbers between are kept
_UNKNOWN = ("row", "refuse")


class _Rows(keras.layers.Layer):
    """Base of the layers that return rows; `rows` is how many there are, padding included."""

    rows: int

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})  # ids and boundaries are not for half precision

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class Lookup(_Rows):
    """Gives each id of a vocabulary its row: keys[i] gets row i + 1.

    The id 0, or the empty string, is padding, row 0. Every other id that is no key is unknown.

    Args:
      keys: the ids, all integers or all strings, each once. The smallest and the largest integer are less than 2**24
        apart; `HashedLookup` takes others.
      unknown: 'row' gives all unknown ids the row after the last key, to train by dropping keys or to stay as it is;
        'refuse' gives them the row -1, which an `EmbeddingTable` refuses.

    Attributes:
      rows: number of rows: padding, the keys and, if unknown ids have one, theirs.

    Call: ids of any shape, integers or strings as the keys -> rows, int32, of the same shape. Strings are looked up
    outside of XLA and LiteRT only.
    """

    def __init__(self, keys: Sequence[Any], unknown: str = "row", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        keys = [key.item() if isinstance(key, np.generic) else key for key in keys]
        _check_keys(keys, unknown)
        self.keys = np.array(keys)  # Keras would watch a list for changes
        self.unknown = unknown
        self.rows = len(keys) + 1 + (unknown == "row")
        self._row_of_unknown = len(keys) + 1 if unknown == "row" else -1
        if isinstance(keys[0], str):
            pairs = tf.lookup.KeyValueTensorInitializer(["", *keys], tf.range(len(keys) + 1), tf.string, tf.int32)
            self._row_of_text = tf.lookup.StaticHashTable(pairs, self._row_of_unknown)
            return
        self._low = min(keys)
        self._row_of = np.full(max(keys) - self._low + 1, self._row_of_unknown, np.int32)
        self._row_of[self.keys - self._low] = np.arange(1, len(keys) + 1)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if (inputs.dtype == tf.string) != (self.keys.dtype.kind == "U"):
            raise ValueError(f"ids are {inputs.dtype.name}, but keys such as {self.keys[0]!r} are not")
        if inputs.dtype == tf.string:
            return self._row_of_text.lookup(inputs)
        ids = _integers(inputs)
        place = ids - self._low
        is_near = (place >= 0) & (place < len(self._row_of))
        rows = tf.gather(self._row_of, tf.where(is_near, place, 0), name=IN_RANGE)
        return tf.where(tf.equal(ids, 0), PADDING, tf.where(is_near, rows, self._row_of_unknown))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "keys": self.keys.tolist(), "unknown": self.unknown}


class HashedLookup(_Rows):
    """Gives each id the row of its hash, 1 to rows - 1; several ids may share a row.

    Integers go through MurmurHash3's finaliser, strings through FarmHash64: both are the same in every process, on
    every machine. The id 0, or the empty string, is padding, row 0.

    Args:
      rows: number of rows, padding included: at least 2.

    Call: ids of any shape, integers or strings -> rows, int32, of the same shape. Strings are hashed outside of XLA and
    LiteRT only.
    """

    def __init__(self, rows: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if rows < 2:
            raise ValueError(f"rows={rows} must be at least 2: row 0 is padding")
        self.rows = rows

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if inputs.dtype == tf.string:
            hashed = tf.strings.to_hash_bucket_fast(inputs, self.rows - 1)
            return tf.where(tf.equal(inputs, ""), PADDING, tf.cast(hashed, tf.int32) + 1)
        ids = _integers(inputs)
        high = tf.cast(tf.bitwise.right_shift(tf.bitcast(ids, tf.uint64), tf.constant(32, tf.uint64)), tf.uint32)
        low = tf.cast(tf.bitcast(ids, tf.uint64), tf.uint32)
        hashed = rng.mix(tf.bitwise.bitwise_xor(rng.mix(high), low)) % tf.constant(self.rows - 1, tf.uint32)
        return tf.where(tf.equal(ids, 0), PADDING, tf.cast(hashed, tf.int32) + 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rows": self.rows}


class Bucketize(_Rows):
    """Gives each number the row of its interval: 1 below the first boundary, then 1 + how many are not above it.

    A missing number, NaN, is padding, row 0. An infinite one is in the first or the last interval.

    Args:
      boundaries: increasing numbers.

    Attributes:
      rows: number of rows: padding and the intervals.

    Call: numbers of any shape -> rows, int32, of the same shape.
    """

    def __init__(self, boundaries: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.boundaries = np.array([float(boundary) for boundary in boundaries])
        if not len(self.boundaries) or not (np.diff(self.boundaries) > 0).all():
            raise ValueError(f"boundaries={self.boundaries.tolist()} must be increasing numbers, at least one")
        self.rows = len(self.boundaries) + 2

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        numbers = inputs if inputs.dtype.is_floating else tf.cast(inputs, tf.float32)
        is_reached = numbers[..., tf.newaxis] >= tf.constant(self.boundaries, numbers.dtype)
        rows = 1 + tf.reduce_sum(tf.cast(is_reached, tf.int32), -1)
        return tf.where(tf.math.is_nan(numbers), PADDING, rows)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "boundaries": self.boundaries.tolist()}


def _integers(ids: tf.Tensor) -> tf.Tensor:
    """Returns ids as int64; a number between two integers is no id, and a float32 is not exact beyond 2**24."""
    if not ids.dtype.is_integer:
        raise ValueError(f"ids are {ids.dtype.name}, but must be integers or strings; Bucketize takes other numbers")
    return tf.cast(ids, tf.int64)


def _check_keys(keys: list[Any], unknown: str) -> None:
    if unknown not in _UNKNOWN:
        raise ValueError(f"unknown='{unknown}' is none of {', '.join(_UNKNOWN)}")
    kinds = {type(key) for key in keys}
    if kinds not in ({int}, {str}):
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise ValueError(f"keys are of {names}, but must be all int or all str, at least one")
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"keys have {twice!r} twice, but each key has one row")
    if 0 in keys or "" in keys:
        raise ValueError(f"keys have {keys[keys.index(0) if 0 in keys else keys.index('')]!r}, which is padding")
    if kinds == {int} and max(keys) - min(keys) >= _WIDEST:
        raise ValueError(
            f"keys from {min(keys)} to {max(keys)} are 2**24 or more apart; use HashedLookup, or other numbers"
        )

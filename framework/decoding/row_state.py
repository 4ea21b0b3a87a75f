"""The state of a decoder: a nest of tensors that have a row for each sequence, such as a key/value cache.

state = RowState({"keys": keys, "memory": memory}, rows=8)
leaves = state.leaves                    # the tensors, for a loop
state.nest(leaves)                       # {"keys": …, "memory": …}, for `step`
state.leaves_of(new, leaves)             # the tensors of what `step` returned for them, checked
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from framework.errors import UserError


class RowState:
    """Takes a nest apart into its tensors and puts it together again; a leaf that is None stays None.

    Args:
      state: the nest.
      rows: the number of rows, an int or an int32 scalar tensor; it is compared with the leaves if it is an int.

    Raises:
      UserError: a leaf is no tensor, or its first dimension is not the rows.
    """

    def __init__(self, state: Any, rows: Any) -> None:
        self._like = state
        self._flat = tf.nest.flatten(state)
        self._has_tensor = [leaf is not None for leaf in self._flat]
        self.leaves = [_tensor(leaf, place, rows) for place, leaf in enumerate(self._flat) if leaf is not None]

    def nest(self, leaves: Sequence[tf.Tensor]) -> Any:
        """Returns the nest with these tensors."""
        rest = iter(leaves)
        flat = [next(rest) if has_tensor else None for has_tensor in self._has_tensor]
        return tf.nest.pack_sequence_as(self._like, flat)

    def leaves_of(self, state: Any, given: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the tensors of a nest that `step` returned for the given ones.

        Raises:
          UserError: the nest has another structure than the one it was given, or a tensor has another dtype or shape.
        """
        try:
            tf.nest.assert_same_structure(self._like, state)
        except (TypeError, ValueError) as error:
            raise UserError(
                "decode: step returned a state of another structure than the state it was given:"
                f" {_names(state)} instead of {_names(self._like)}. Return every leaf, changed or not."
            ) from error
        flat = tf.nest.flatten(state)
        leaves: list[tf.Tensor] = []
        for place, (leaf, has_tensor) in enumerate(zip(flat, self._has_tensor, strict=True)):
            if (leaf is not None) != has_tensor:
                raise UserError(f"decode: leaf {place} of the state is None before or after step, but not both.")
            if has_tensor:
                leaves.append(_alike(given[len(leaves)], tf.convert_to_tensor(leaf), place))
        return leaves


def first_dimension(state: Any) -> Any:
    """Returns the rows of the first tensor of a nest, an int if it is static; None if there is no tensor."""
    for leaf in tf.nest.flatten(state):
        if leaf is not None and tf.convert_to_tensor(leaf).shape.rank != 0:
            leaf = tf.convert_to_tensor(leaf)
            return tf.shape(leaf)[0] if leaf.shape[0] is None else leaf.shape[0]
    return None


def _tensor(leaf: Any, place: int, rows: Any) -> tf.Tensor:
    try:
        tensor = tf.convert_to_tensor(leaf)
    except (TypeError, ValueError) as error:
        raise UserError(f"decode: leaf {place} of the state is a {type(leaf).__name__}, not a tensor.") from error
    has_rows = tensor.shape.rank != 0 and (
        not isinstance(rows, int) or tensor.shape.rank is None or tensor.shape[0] in (None, rows)
    )
    if not has_rows:
        raise UserError(
            f"decode: leaf {place} of the state, {tensor.dtype.name} {tensor.shape}, has no row for each sequence."
            f" Its first dimension must be the batch{f', {rows}' if isinstance(rows, int) else ''};"
            " what is the same for all sequences belongs in step itself."
        )
    return tensor


def _alike(before: tf.Tensor, after: tf.Tensor, place: int) -> tf.Tensor:
    if after is before:
        return after
    if after.dtype != before.dtype or not after.shape.is_compatible_with(before.shape):
        raise UserError(
            f"decode: step changes leaf {place} of the state from {before.dtype.name} {before.shape} to"
            f" {after.dtype.name} {after.shape}, but a loop needs one shape. Allocate a cache for all positions before,"
            " and write into it at `position`."
        )
    return tf.ensure_shape(after, before.shape)


def _names(state: Any) -> str:
    """Returns a nest as text with a `.` for each tensor: {'keys': ., 'memory': .}."""
    return " ".join(str(tf.nest.map_structure(lambda leaf: _Dot(), state)).split())


class _Dot:
    def __repr__(self) -> str:
        return "."

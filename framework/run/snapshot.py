"""The values of all variables of a state, to see what has changed and to put it back.

snapshot = Snapshot(run.state)
snapshot.is_unchanged()            # True
snapshot.put_back()                # [], else the paths of what had changed
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths


class Snapshot:
    """The values of all variables that `root` tracks, on each replica, without a copy of what does not change.

    A value that was read shares its buffer with the variable until this is assigned, and an assignment takes another
    buffer while the value is held: a variable with the same buffer has the same value. One that is updated row by row
    is copied by each read; then the bits are compared.
    """

    def __init__(self, root: Any) -> None:
        variables = paths.variables(root).items()
        self._before = [(path, copy, _read(copy)) for path, whole in variables for copy in paths.copies(whole)]

    def is_unchanged(self) -> bool:
        """Returns whether each variable has the bits that it had."""
        return next(self._changed(), None) is None

    def put_back(self) -> list[str]:
        """Gives each variable that has changed the bits that it had; returns their paths."""
        changed: dict[str, None] = {}
        for path, copy, value in self._changed():
            copy.assign(value, read_value=False)
            changed[path] = None
        return [*changed]

    def _changed(self) -> Iterator[tuple[str, tf.Variable, tf.Tensor]]:
        """Yields path, variable and former value of what has other bits now."""
        for path, copy, value in self._before:
            if not _are_same(_read(copy), value):
                yield path, copy, value


def _read(variable: tf.Variable) -> tf.Tensor:
    """Returns the value of a variable, as `read_value` does in three times the time: there are many to read."""
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def _are_same(first: tf.Tensor, second: tf.Tensor) -> bool:
    """Returns whether two tensors of the same variable have the same bits; at once if they have the same buffer."""
    ours, theirs = np.asarray(first), np.asarray(second)  # no copies
    if first.shape.rank and ours.__array_interface__["data"] == theirs.__array_interface__["data"]:
        return True
    return np.array_equal(_bits(ours), _bits(theirs))


def _bits(array: np.ndarray) -> np.ndarray:
    """Returns the bytes of an array; strings as they are."""
    flat = array.reshape(-1)
    return flat if flat.dtype == object else flat.view(np.uint8)

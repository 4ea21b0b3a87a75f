"""Draws of NumPy or Python in a traced function, which would give every step the same numbers.

    refuse_constant_draws("transform", transform, batch)        # UserError if two traces of it have other constants

    # … or draws by a constant seed, such as tf.image.stateless_random_flip_left_right(x, seed=[0, 1])

A function is traced once and then run at every step, so a number that `np.random` or a clock gives is a constant of the
trace. Two traces of the same function that differ in a constant, or in their operations, show it.
"""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import tensorflow as tf

from framework import rng
from framework.errors import UserError
from framework.trace.graphs import called, place
from framework.trace.repeated_draws import refuse_repeated_draws


class _Traced(NamedTuple):
    """An operation of a trace, with the serialized value of a constant."""

    operation: Any
    type: str
    value: bytes


def refuse_constant_draws(name: str, function: Callable[[Any], Any], batch: Mapping[str, tf.Tensor]) -> None:
    """Raises UserError if the traces of a function of a batch differ, or a seed in them does not depend on the step.

    A first trace may build and keep what later ones use, so the last two of three are compared.

    Args:
      name: the function, for errors.
      function: {field: tensor} -> tensors.
      batch: tensors or specs of the batch.
    """
    specs = {field: tf.TensorSpec(tensor.shape, tensor.dtype) for field, tensor in batch.items()}

    def trace() -> Any:
        def run(step: tf.Tensor, given: dict[str, tf.Tensor]) -> None:
            with rng.scope(0, step):
                function(dict(given))  # a transform may assign to its batch

        with tf.init_scope():
            return tf.function(run, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int64), specs).graph

    first, second = trace(), trace()
    refuse_repeated_draws(name, second)
    if _difference(_operations(first), _operations(second)) is None:
        return
    differing = _difference(_operations(second), _operations(trace()))
    if differing is not None:
        raise UserError(
            f"{name} draws numbers of NumPy or Python{_where(differing.operation)}: they become constants when the step"
            " is traced, the same at every step. Instead, draw with framework.rng, such as rng.uniform."
        )


def _operations(graph: Any) -> list[_Traced]:
    """Returns the operations of a trace and of all functions that it calls, in the order in which they were made."""
    operations = []
    for operation in graph.get_operations():
        is_constant = operation.type == "Const"
        value = operation.node_def.attr["value"].tensor.SerializeToString() if is_constant else b""
        operations.append(_Traced(operation, operation.type, value))
        for inner in called(operation):
            operations += _operations(inner)
    return operations


def _difference(one: list[_Traced], other: list[_Traced]) -> _Traced | None:
    """Returns the first operation of either trace that the other does not have at the same place."""
    for left, right in zip_longest(one, other):
        if left is None or right is None or left[1:] != right[1:]:
            return left or right
    return None


def _where(operation: Any) -> str:
    """Returns ' in flip (digits.py:12)', the line of the experiment that made an operation; '' if none did."""
    line = place(operation)
    return "" if line is None else f" in {line[0]} ({line[1]}:{line[2]})"

"""Finds random draws in a trace that give the same numbers at every step, such as one with seed=[0, 1].

    refuse_repeated_draws("transform", graph)            # UserError: transform draws the same numbers at every step …

TensorFlow's stateless ops draw what seed, key and counter say. If none of the three depends on an input of the trace,
on a variable or on anything else that may change, all steps get the numbers of the first.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import tensorflow as tf

from framework.errors import UserError
from framework.trace.graphs import called, place

# Full words (FullInt) are drawn to make seeds of seeds, by tf.random.split and fold_in, so they may stay the same.
_DRAW = re.compile(
    r"Stateless(Random(Uniform(?!FullInt)|Normal|Binomial|Poisson|Gamma)\w*|(Parameterized)?TruncatedNormal\w*|Multinomial\w*"
    r"|SampleDistortedBoundingBox|Shuffle)|RandomIndexShuffle"
)
_SEEDS = ("seed", "seed2", "key", "counter")  # inputs of such ops
_IFS = ("If", "StatelessIf", "Case", "StatelessCase")
_LOOPS = ("While", "StatelessWhile")


def refuse_repeated_draws(function: str, graph: Any) -> None:
    """Raises UserError for the first draw whose seed does not depend on anything that changes from step to step.

    Args:
      function: the name of what is traced, for errors.
      graph: of a trace whose inputs are the step and the batch.
    """
    constants = {inner.name for outer, inner in graph.captures if _is_constant(outer)}
    inputs = [tensor.name not in constants for tensor in graph.inputs]
    for operation in _repeated(graph, inputs):
        line = place(operation)
        where = "" if line is None else f" in {line[0]} ({line[1]}:{line[2]})"
        raise UserError(
            f"{function} draws the same numbers at every step{where}: the seed of {operation.type} does not depend on"
            " the step. Draw with framework.rng, such as rng.uniform; numbers that are to stay the same are made once,"
            " outside of the function."
        )


def _is_constant(tensor: Any) -> bool:
    """Returns whether a captured tensor is an array, and no variable or table, which may change."""
    return not tf.is_symbolic_tensor(tensor) and tensor.dtype not in (tf.resource, tf.variant)


def _repeated(graph: Any, inputs: Sequence[bool]) -> Iterator[Any]:
    """Yields the draws of a graph, and of the functions that it calls, whose seeds do not change.

    Args:
      inputs: for each input of the graph, whether it may change.
    """
    changing = _changing(graph, inputs)
    for operation in graph.get_operations():
        if _DRAW.fullmatch(operation.type):
            names = [argument.name for argument in operation.op_def.input_arg]
            seeds = [tensor for name, tensor in zip(names, operation.inputs, strict=True) if name in _SEEDS]
            if not any(tensor.name in changing for tensor in seeds):
                yield operation
        for inner in called(operation):
            yield from _repeated(inner, _inputs_of(operation, inner, changing))


def _changing(graph: Any, inputs: Sequence[bool]) -> set[str]:
    """Returns the names of the tensors of a graph that may change. Operations stand in the order of computation."""
    changing = {tensor.name for tensor, changes in zip(graph.inputs, inputs, strict=True) if changes}
    for operation in graph.get_operations():
        if operation.type == "Placeholder":
            continue
        functions = called(operation)
        if functions:
            outputs = [_changing_outputs(each, _inputs_of(operation, each, changing)) for each in functions]
            flags = [any(column) for column in zip_longest(*outputs, fillvalue=False)]
            if operation.type in _IFS and operation.inputs[0].name in changing:
                flags = [True] * len(operation.outputs)
            changing |= {tensor.name for tensor, changes in zip(operation.outputs, flags, strict=False) if changes}
        elif _has_state(operation) or any(tensor.name in changing for tensor in operation.inputs):
            changing |= {tensor.name for tensor in operation.outputs}
    return changing


def _has_state(operation: Any) -> bool:
    """Returns whether an operation may return something else for the same inputs."""
    kind = operation.type
    return kind != "Const" and ("PyFunc" in kind or operation.op_def.is_stateful)  # reading a definition is slow


def _changing_outputs(graph: Any, inputs: Sequence[bool]) -> list[bool]:
    changing = _changing(graph, inputs)
    return [tensor.name in changing for tensor in graph.outputs]


def _inputs_of(operation: Any, inner: Any, changing: set[str]) -> list[bool]:
    """Returns for each input of a called function whether it may change."""
    flags = [tensor.name in changing for tensor in operation.inputs][1 if operation.type in _IFS else 0 :]
    if operation.type in _LOOPS and len(inner.outputs) == len(flags):  # a turn passes its results on to the next
        before: list[bool] = []
        while flags != before:
            before = flags
            flags = [one or other for one, other in zip(flags, _changing_outputs(inner, flags), strict=True)]
    return flags if len(flags) == len(inner.inputs) else [True] * len(inner.inputs)

"""Finds the variables that a trace assigns, and puts values back after a call.

    variables = assigned(function.graph, model)
    with untouched(variables):
        function()                      # changes nothing

An evaluation and a probe of a step call models in this way.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from framework import compat, paths

_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp")


def assigned(graph: Any, root: Any) -> tuple[tf.Variable, ...]:
    """Returns the variables that a trace, or a function that it calls, may change: all uses but known reads count.

    Args:
      graph: of a traced tf.function.
      root: object that tracks the variables that have copies on replicas; the graph knows the others.
    """
    handles = {id(variable.handle): variable for variable in graph.variables if not hasattr(variable, "values")}
    for variable in paths.variables(root).values():  # each copy on a replica stands for the whole
        handles |= {id(copy.handle): variable for copy in paths.copies(variable)}
    changed = {
        id(handles[id(outer)]): handles[id(outer)]
        for outer, inner in graph.captures
        if id(outer) in handles and _is_changed(inner)
    }
    return tuple(changed.values())


@contextlib.contextmanager
def untouched(variables: Sequence[tf.Variable]) -> Iterator[None]:
    """Puts variables back to their values on exit, eagerly; each copy on a replica to its own."""
    before = [(copy, copy.read_value()) for variable in variables for copy in paths.copies(variable)]
    try:
        yield
    finally:
        for copy, value in before:
            copy.assign(value, read_value=False)


def _is_changed(handle: tf.Tensor) -> bool:
    """Returns whether an operation, here or in a called function, may change the variable of a handle."""
    for operation in handle.consumers():
        inside = _called(operation)
        if inside is None or (not inside and operation.type not in _READS):
            return True
        for function in inside:
            skipped = len(operation.inputs) - len(function.inputs)  # such as the condition of an If
            for place, source in enumerate(operation.inputs):
                if source is handle and (place < skipped or _is_changed(function.inputs[place - skipped])):
                    return True
    return False


def _called(operation: tf.Operation) -> list[Any] | None:
    """Returns the graphs of the functions that an operation calls; None if one has no graph to read."""
    graphs = []
    for value in operation.node_def.attr.values():
        for function in [value.func, *value.list.func]:
            if function.name:
                # Functions of TensorFlow 1 have none, such as those between which Keras' LSTM chooses.
                graph = compat.function_graph(operation.graph, function.name)
                if graph is None:
                    return None
                graphs.append(graph)
    return graphs

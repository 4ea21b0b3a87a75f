"""Variables that a trace assigns to, and keeping their values while it runs.

moved = assigned(function.graph, model)
with untouched(moved):
    function()                      # changes nothing
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from framework import compat, paths

_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp")


def assigned(graph: Any, root: Any) -> tuple[tf.Variable, ...]:
    """Variables that a trace, or a function that it calls, does something else with than read them.

    Args:
      graph: of a traced tf.function.
      root: what tracks variables that have copies on replicas; others are found in the graph.
    """
    handles = {id(variable.handle): variable for variable in graph.variables if not hasattr(variable, "values")}
    for variable in paths.variables(root).values():  # of several replicas, each copy leads to the whole
        handles |= {id(copy.handle): variable for copy in paths.copies(variable)}
    moved = {
        id(handles[id(outer)]): handles[id(outer)]
        for outer, inner in graph.captures
        if id(outer) in handles and _is_changed(inner)
    }
    return tuple(moved.values())


@contextlib.contextmanager
def untouched(variables: Sequence[tf.Variable]) -> Iterator[None]:
    """Puts variables back, eagerly, to what they were: each copy on a replica to its own value."""
    before = [(copy, copy.read_value()) for variable in variables for copy in paths.copies(variable)]
    try:
        yield
    finally:
        for copy, value in before:
            copy.assign(value, read_value=False)


def _is_changed(handle: tf.Tensor) -> bool:
    """Whether an operation, or one of a function that it calls, may change what a handle leads to."""
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
    """The graphs of the functions that an operation calls; None if one cannot be seen."""
    graphs = []
    for value in operation.node_def.attr.values():
        for function in [value.func, *value.list.func]:
            if function.name:
                # A function of TensorFlow 1, such as one that Keras' LSTM chooses between, has no graph to look into.
                graph = compat.function_graph(operation.graph, function.name)
                if graph is None:
                    return None
                graphs.append(graph)
    return graphs

"""Reads a trace: which operations compute a tensor, which functions they call, whose code made them.

    operations = ancestors(tensor)
    copied, = imported(graph, [tensor], {"batch:0": batch}, "copy")     # computed again, in the current trace

`graph` is that of a traced tf.function.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat

_SHAPES = ("Shape", "Size", "Rank", "ShapeN", "VariableShape", "ZerosLike", "OnesLike")
_CALLS = {
    *("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile"),
    *("If", "StatelessIf", "Case", "StatelessCase"),
}
_FRAMEWORK = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(str(Path(module.__file__).parent) for module in (tf, keras))


def ancestors(tensor: tf.Tensor, shapes: bool = True) -> set[Any]:
    """Returns the operations that compute `tensor`, its own included; control edges do not count.

    Args:
      tensor: of a trace.
      shapes: whether to include operations whose result is used for its shape alone.
    """
    operations: set[Any] = set()
    queue = [tensor.op]
    while queue:
        operation = queue.pop()
        if operation not in operations:
            operations.add(operation)
            if shapes or operation.type not in _SHAPES:
                queue += [source.op for source in operation.inputs]
    return operations


def imported(graph: Any, tensors: Sequence[tf.Tensor], feeds: Mapping[str, tf.Tensor], name: str) -> list[tf.Tensor]:
    """Copies the computation of tensors from another graph into the current one, and returns its results.

    Args:
      graph: the other graph.
      tensors: of that graph.
      feeds: {name of a tensor there: tensor here}, where the copied computation starts.
      name: scope of the copied operations.
    """
    needed = {operation.name for tensor in tensors for operation in ancestors(tensor)}
    definition = graph.as_graph_def()
    given = {feed.partition(":")[0] for feed in feeds}
    definition.node.MergeFrom(_without_control(definition.node, needed - given))
    if not any(called(operation) for tensor in tensors for operation in ancestors(tensor)):
        definition.ClearField("library")
    return tf.graph_util.import_graph_def(definition, dict(feeds), [tensor.name for tensor in tensors], name=name)


def called(operation: Any) -> list[Any]:
    """Returns the graphs of the functions that an operation calls; those of an If are its then and its else branch."""
    if operation.type not in _CALLS:  # fast: a trace has thousands of operations
        return []
    graphs = []
    # Sorted, because the order of a protobuf map differs between processes; 'then_branch' comes before 'else_branch'.
    for _, value in sorted(operation.node_def.attr.items(), reverse=True):
        for function in [value.func, *value.list.func]:
            known = compat.function_graph(operation.graph, function.name) if function.name else None
            if known is not None:  # else the function was imported from a definition
                graphs.append(known)
    return graphs


def place(operation: Any) -> tuple[str, str, int] | None:
    """Returns (function, file, line) of the experiment's code that made an operation; None if the framework made it."""
    for frame in reversed(compat.user_frames(operation)):
        if not frame.filename.startswith(_LIBRARIES):
            is_of_framework = frame.filename.startswith(_FRAMEWORK)
            return None if is_of_framework else (frame.name, Path(frame.filename).name, frame.lineno)
    return None


def _without_control(nodes: Any, wanted: set[str]) -> list[Any]:
    """Empties `nodes` and returns the wanted ones, without their control inputs."""
    kept = []
    for node in list(nodes):
        if node.name in wanted:
            data = [source for source in node.input if not source.startswith("^")]
            del node.input[:]
            node.input.extend(data)
            kept.append(node)
    del nodes[:]
    return kept

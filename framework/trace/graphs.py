"""Reading a trace: what leads to a tensor, which functions an operation calls, whose code made it.

operations = ancestors(tensor)
copied, = imported(graph, [tensor], {"batch:0": batch})       # computed once more in the current trace
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
    """The operations that `tensor` is computed by, its own included; control edges do not count.

    Args:
      shapes: whether that of which only the shape is looked at counts.
    """
    found: set[Any] = set()
    queue = [tensor.op]
    while queue:
        operation = queue.pop()
        if operation not in found:
            found.add(operation)
            if shapes or operation.type not in _SHAPES:
                queue += [source.op for source in operation.inputs]
    return found


def imported(graph: Any, tensors: Sequence[tf.Tensor], feeds: Mapping[str, tf.Tensor], name: str) -> list[tf.Tensor]:
    """Tensors of another graph, computed in the current one from `feeds`, {name of a tensor there: tensor here}."""
    needed = {operation.name for tensor in tensors for operation in ancestors(tensor)}
    definition = graph.as_graph_def()
    given = {feed.partition(":")[0] for feed in feeds}
    definition.node.MergeFrom(_without_control(definition.node, needed - given))
    if not any(called(operation) for tensor in tensors for operation in ancestors(tensor)):
        definition.ClearField("library")
    return tf.graph_util.import_graph_def(definition, dict(feeds), [tensor.name for tensor in tensors], name=name)


def called(operation: Any) -> list[Any]:
    """The graphs of the functions that an operation calls: of an If that of its condition, then the other branch."""
    if operation.type not in _CALLS:  # quick: there are thousands of operations
        return []
    graphs = []
    # By name: a map of protobuf has another order in every process, and which branch is the first matters.
    for _, value in sorted(operation.node_def.attr.items(), reverse=True):
        for function in [value.func, *value.list.func]:
            known = compat.function_graph(operation.graph, function.name) if function.name else None
            if known is not None:  # else it came with what was imported
                graphs.append(known)
    return graphs


def place(operation: Any) -> tuple[str, str, int] | None:
    """(function, file, line) of the experiment's code that made an operation; None if the framework did."""
    for frame in reversed(compat.user_frames(operation)):
        if not frame.filename.startswith(_LIBRARIES):
            is_ours = frame.filename.startswith(_FRAMEWORK)
            return None if is_ours else (frame.name, Path(frame.filename).name, frame.lineno)
    return None


def _without_control(nodes: Any, wanted: set[str]) -> list[Any]:
    """Takes all nodes out of `nodes` and returns the wanted ones, without their control inputs."""
    kept = []
    for node in list(nodes):
        if node.name in wanted:
            data = [source for source in node.input if not source.startswith("^")]
            del node.input[:]
            node.input.extend(data)
            kept.append(node)
    del nodes[:]
    return kept

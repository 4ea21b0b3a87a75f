"""Knows which operations take an index or label that must be in range, and the range.

    for bound in BOUNDS["GatherV2"](operation):
        bad, value = bound.outside(*bound.inputs)        # where the index is out of range, and the index there

Out of range is what CPU kernels raise for, such as a negative index of tf.gather. In every mode `tf.one_hot` gives
zeros for such ids, and segment sums leave negative ids out: these have no bound here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from framework.compat import handle_shape
from framework.trace.graphs import ancestors

CLAIM, RANGE = "framework: a label below ", "framework: a number from "

# {operation: which of its outputs are indices in range}, and operations that leave indices as they are.
_SAFE = {"ArgMax": 0, "ArgMin": 0, "TopK": 1, "TopKV2": 1, "Where": 0}
_SAME = ("Cast", "ExpandDims", "Identity", "Reshape", "Squeeze")
_MOST_KNOWN = 2**16  # numbers of a fixed index that are computed while it is traced

# (bool: where an index is out of range; the index)
Outside = tuple[tf.Tensor, tf.Tensor]


class Bound(NamedTuple):
    """One input of an operation that must be in range.

    Attributes:
      inputs: the arguments of `outside` in the graph of the operation, the index first.
      outside: returns where an index is out of range, and the index there.
      problem: completes the message 'x takes 12, …' for an index out of range.
    """

    inputs: tuple[tf.Tensor, ...]
    outside: Callable[..., Outside]
    problem: str

    @property
    def is_safe(self) -> bool:
        """Whether the index is that of the largest numbers or the like."""
        index = self.inputs[0]
        while index.op.type in _SAME:
            index = index.op.inputs[0]
        return _SAFE.get(index.op.type) == index.value_index

    def may_always_fail(self) -> bool:
        """Returns whether an index of constants and shapes alone, such as a position, is or may be out of range."""
        needed = ancestors(self.inputs[0], shapes=False)
        if self.is_safe or not all(map(_is_fixed, needed)):
            return False
        tensors = [*self.inputs, *(tensor for operation in needed for tensor in operation.outputs)]
        if any(map(_is_large, tensors)):  # its value would be an array of this process, however large
            return True
        values = [tf.get_static_value(tensor) for tensor in self.inputs]
        if any(value is None for value in values):
            return True
        with tf.init_scope():
            return bool(tf.reduce_any(self.outside(*map(tf.constant, values))[0]))


def _is_large(tensor: tf.Tensor) -> bool:
    size = tensor.shape.num_elements()
    return size is not None and size > _MOST_KNOWN


def _is_fixed(operation: Any) -> bool:
    """Returns whether an operation computes the same whenever its inputs are the same, and is no input itself."""
    return (bool(operation.inputs) or operation.type == "Const") and not operation.op_def.is_stateful


def below(index: tf.Tensor, limit: Any) -> Outside:
    """Returns where index is not in [0, limit); `limit` is a number, or a list of one for each last dimension."""
    # Negative numbers are the largest as unsigned ones: one comparison is enough.
    unsigned = {tf.int32: tf.uint32, tf.int64: tf.uint64, tf.int16: tf.uint16}.get(index.dtype)
    if unsigned is None or tf.is_tensor(limit):
        return (index < 0) | (index >= tf.cast(limit, index.dtype)), index
    return tf.bitcast(index, unsigned) >= tf.constant(limit, unsigned), index


def _range(limit: int | None, of: str) -> str:
    return f"which is none of the {of}" if limit is None else f"which is none of the {of} 0 to {limit - 1}"


def _rows(index: tf.Tensor, table: tf.Tensor, shape: tf.TensorShape, axis: int, of: str = "rows") -> list[Bound]:
    """Bounds an index along one axis of a table."""
    limit = None if shape.rank is None else shape[axis]
    if limit is not None:
        return [Bound((index,), lambda index: below(index, limit), _range(limit, of))]
    return [Bound((index, table), lambda index, rows: below(index, tf.shape(rows)[axis]), _range(None, of))]


def _gather(operation: Any) -> list[Bound]:
    table, index, axis = operation.inputs
    along = tf.get_static_value(axis)
    return [] if along is None else _rows(index, table, table.shape, int(along))


def _gather_v1(operation: Any) -> list[Bound]:
    return _rows(operation.inputs[1], operation.inputs[0], operation.inputs[0].shape, 0)


def _gather_variable(operation: Any) -> list[Bound]:
    shape = handle_shape(operation.inputs[0])
    if not shape.rank or shape[operation.get_attr("batch_dims")] is None:
        return []
    return _rows(operation.inputs[1], operation.inputs[0], shape, operation.get_attr("batch_dims"))


def _places(index: tf.Tensor, shape: tf.TensorShape) -> list[Bound]:
    """Bounds an index whose last dimension is a place in the first dimensions of a tensor."""
    depth = index.shape[-1] if index.shape.rank else None
    if not depth or shape.rank is None or None in (limits := shape[:depth].as_list()):
        return []
    return [Bound((index,), lambda index: below(index, limits), f"which is no place in a tensor of shape {shape}")]


def _is_lenient(operation: Any) -> bool:
    """Returns whether an operation ignores indices out of range, as it was told to."""
    return operation.node_def.attr["bad_indices_policy"].s == b"IGNORE"


def _gather_nd(operation: Any) -> list[Bound]:
    table, index = operation.inputs
    shape = handle_shape(table) if table.dtype == tf.resource else table.shape
    return [] if _is_lenient(operation) else _places(index, shape)


def _scattered(operation: Any) -> list[Bound]:
    return [] if _is_lenient(operation) else _places(operation.inputs[1], operation.inputs[0].shape)


def _scatter_nd(operation: Any) -> list[Bound]:
    shape = tf.get_static_value(operation.inputs[2])
    return [] if shape is None or _is_lenient(operation) else _places(operation.inputs[0], tf.TensorShape(shape))


def _labels(operation: Any) -> list[Bound]:
    logits, labels = operation.inputs
    return _rows(labels, logits, logits.shape, -1, "classes")


def _claimed(operation: Any) -> list[Bound]:
    message = tf.compat.as_str(operation.get_attr("message"))
    if message.startswith(RANGE):
        low, high = (float(number) for number in message.removeprefix(RANGE).split(" to "))
        problem = f"which is not from {low:g} to {high:g}"
        return [Bound((operation.inputs[0],), lambda found: (_beyond(found, low, high), found), problem)]
    if not message.startswith(CLAIM):
        return []
    classes = int(message.removeprefix(CLAIM))
    return [Bound((operation.inputs[0],), lambda labels: below(labels, classes), _range(classes, "classes"))]


def _beyond(values: tf.Tensor, low: float, high: float) -> tf.Tensor:
    values = tf.cast(values, tf.float64)
    return ~((values >= low) & (values <= high))


def _segments(operation: Any) -> list[Bound]:
    _, ids, count = operation.inputs
    count = tf.get_static_value(count)
    if count is None:
        return []
    return [Bound((ids,), lambda ids: (ids >= int(count), ids), f"which is not below the {count} segments")]


def _sparse_segments(operation: Any) -> list[Bound]:
    return _rows(operation.inputs[1], operation.inputs[0], operation.inputs[0].shape, 0)


def _picked(operation: Any) -> list[Bound]:
    """Bounds the tensor i of x[i], a tf.strided_slice."""
    source, begin = operation.inputs[:2]
    masks = {name: operation.get_attr(f"{name}_mask") for name in ("shrink_axis", "new_axis", "ellipsis")}
    count = begin.shape[0]
    if not masks["shrink_axis"] or count is None or source.shape.rank is None or begin.op.type == "Const":
        return []

    def has(name: str, place: int) -> bool:
        return bool(masks[name] >> place & 1)

    bounds = []
    for place in range(count):
        if not has("shrink_axis", place):
            continue
        before = range(place)
        if any(has("ellipsis", other) for other in before):
            axis = source.shape.rank - sum(not has("new_axis", other) for other in range(place, count))
        else:
            axis = sum(not has("new_axis", other) for other in before)
        limit = source.shape[axis]
        if limit is not None:
            outside = functools.partial(_around, place=place, limit=limit)
            bounds.append(Bound((begin,), outside, f"which is none of -{limit} to {limit - 1}"))
    return bounds


def _around(begin: tf.Tensor, place: int, limit: int) -> Outside:
    index = begin[place]
    return (index < -limit) | (index >= limit), index


def _sliced(operation: Any) -> list[Bound]:
    source, begin, size = operation.inputs
    if not source.shape.is_fully_defined():
        return []
    limits = source.shape.as_list()

    def outside(begin: tf.Tensor, size: tf.Tensor) -> Outside:
        end = begin + tf.maximum(size, 0)
        return (begin < 0) | (end > tf.constant(limits, end.dtype)), begin

    return [Bound((begin, size), outside, f"from where the slice leaves a tensor of shape {source.shape}")]


def _reversed(operation: Any) -> list[Bound]:
    source, lengths = operation.inputs
    limit = source.shape[operation.get_attr("seq_dim")] if source.shape.rank else None
    if limit is None:
        return []
    return [Bound((lengths,), lambda lengths: below(lengths, limit + 1), f"which is no length of at most {limit}")]


def _divided(operation: Any) -> list[Bound]:
    by = operation.inputs[1]
    if not by.dtype.is_integer:
        return []
    return [Bound((by,), lambda by: (tf.equal(by, 0), by), "by which whole numbers cannot be divided")]


def _numbers(operation: Any) -> list[Bound]:
    problem = f"which is not finite: {tf.compat.as_str(operation.get_attr('message'))}"
    return [Bound((operation.inputs[0],), lambda value: (~tf.math.is_finite(value), value), problem)]


def _of(kind: Callable[[Any], list[Bound]], names: Sequence[str]) -> dict[str, Callable[[Any], list[Bound]]]:
    return dict.fromkeys(names, kind)


BOUNDS: dict[str, Callable[[Any], list[Bound]]] = {
    **_of(_gather, ["GatherV2"]),
    **_of(_gather_v1, ["Gather"]),
    **_of(_gather_variable, ["ResourceGather"]),
    **_of(_gather_nd, ["GatherNd", "ResourceGatherNd"]),
    **_of(_scattered, [f"TensorScatter{name}" for name in ("Update", "Add", "Sub", "Min", "Max")]),
    **_of(_scatter_nd, ["ScatterNd"]),
    **_of(_labels, ["SparseSoftmaxCrossEntropyWithLogits"]),
    **_of(_claimed, ["PreventGradient"]),
    **_of(_segments, [f"UnsortedSegment{name}" for name in ("Sum", "Max", "Min", "Prod")]),
    **_of(_sparse_segments, [f"SparseSegment{name}" for name in ("Sum", "Mean", "SqrtN")]),
    **_of(_picked, ["StridedSlice"]),
    **_of(_sliced, ["Slice"]),
    **_of(_reversed, ["ReverseSequence"]),
    **_of(_divided, ["FloorDiv", "FloorMod", "Div", "Mod", "TruncateDiv", "TruncateMod"]),
    **_of(_numbers, ["CheckNumerics", "CheckNumericsV2"]),
}

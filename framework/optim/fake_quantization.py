"""Rounds numbers to those that int8 can hold, as LiteRT does, by an operation whose gradient passes through.

    fake_quantized(x, low, high)                    # 256 levels from low to high, of which one is 0
    fake_quantized_kernel(kernel, summed=3)         # 255 levels around 0 in each output channel
    with observing(("head/output",), batch) as observer:
        terms, outputs = loss(model, batch)         # what calls `observe`
    observer.extremes(tf.float32)                   # [2 * points]

Source: Jacob et al., 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference".
"""

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow as tf

from framework import compat
from framework.errors import UserError

# How a quantised model computes while it is traced: it rounds, as in training; it does not; or it tells the converter
# of LiteRT the ranges of activations, by operations that the converter takes out.
ROUNDED, FLOAT, CONVERTED = "rounded", "float", "converted"

_LARGEST = 255
_local = threading.local()
_traced: weakref.WeakKeyDictionary[tf.Graph, set[str]] = weakref.WeakKeyDictionary()  # {graph: modes of its layers}


def fake_quantized(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Returns `x` rounded to the nearest of 256 levels from `low` to `high`, which are moved so that one of them is 0.

    The gradient is that of a clip: 1 from the lowest to the highest level, 0 outside.

    Args:
      x: floating.
      low: scalar, at most 0.
      high: scalar, at least 0. If both are 0, it counts as 1.
    """
    low, high = tf.stop_gradient(low), tf.stop_gradient(tf.where(high > low, high, tf.ones_like(high)))
    if x.dtype == tf.float64:  # for which TensorFlow has no kernel
        return _rounded(x, tf.cast(low, x.dtype), tf.cast(high, x.dtype), 0)
    low, high = tf.cast(low, tf.float32), tf.cast(high, tf.float32)
    rounded = tf.quantization.fake_quant_with_min_max_vars(tf.cast(x, tf.float32), low, high, num_bits=8)
    return tf.cast(rounded, x.dtype)


def fake_quantized_kernel(kernel: tf.Tensor, summed: int) -> tf.Tensor:
    """Returns a kernel as a matrix [inputs, channels], rounded to 255 levels around 0 in each channel.

    The largest magnitude of a channel is the outermost level, so rounding commutes with any factor of a channel: a
    BatchNormalization that an export folds into the kernel afterwards changes no rounded number but by this factor. The
    gradient is 1 everywhere.

    Args:
      kernel: float32 or float64.
      summed: number of leading axes that a product sums over; the others are channels.
    """
    shape = kernel.shape.as_list()
    return _rounded_in_channels(tf.reshape(kernel, [math.prod(shape[:summed]), math.prod(shape[summed:])]))


@tf.custom_gradient
def _rounded_in_channels(matrix: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns a matrix rounded by column, whose gradient passes through whole.

    A clip would stop the gradient of the largest weight if the outermost level is rounded to just below it.
    """
    bound = tf.reduce_max(tf.abs(matrix), 0)
    bound = tf.where(bound > 0, bound, tf.ones_like(bound))  # XLA would divide a channel of zeros by 0
    if matrix.dtype == tf.float64:  # for which TensorFlow has no kernel
        rounded = _rounded(matrix, -bound, bound, 1)
    else:
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            matrix, -bound, bound, num_bits=8, narrow_range=True
        )
    return rounded, lambda upstream: upstream


def _rounded(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, smallest: int) -> tf.Tensor:
    """Returns what the kernels of TensorFlow compute, in any floating dtype; low and high are scalars or of a channel.

    Args:
      smallest: the first of the levels, of which 255 is the last.
    """
    scale = (high - low) / (_LARGEST - smallest)
    zero = tf.clip_by_value(tf.floor(smallest - low / scale + 0.5), smallest, _LARGEST)
    lowest, highest = (smallest - zero) * scale, (_LARGEST - zero) * scale
    clipped = tf.clip_by_value(x, lowest, highest)
    rounded = tf.floor((clipped - lowest) / scale + 0.5) * scale + lowest
    return clipped + tf.stop_gradient(rounded - clipped)


class Observer:
    """Collects the smallest and largest number of each point in one forward pass.

    Args:
      points: names, in the order of `extremes`.
      batch: {name: [batch, ...]}; rows of 'weight' 0 are padding, which moves no range where rows are the first axis.
    """

    def __init__(self, points: Sequence[str], batch: Mapping[str, tf.Tensor]) -> None:
        self._points = points
        self._weight = batch["weight"] if "weight" in batch and batch["weight"].shape.rank == 1 else None
        self._found: dict[str, list[tf.Tensor]] = {}

    def add(self, point: str, x: tf.Tensor) -> None:
        """Takes note of a tensor at a point, which may be called several times."""
        if self._weight is not None and x.shape.rank and x.shape[0] == self._weight.shape[0]:
            is_real = tf.reshape(self._weight > 0, [-1, *[1] * (x.shape.rank - 1)])
            x = tf.where(is_real, x, tf.zeros([], x.dtype))
        # In the order of `extremes`, where 0 is neutral: each range holds 0.
        found = tf.stack([-tf.minimum(tf.reduce_min(x), 0), tf.maximum(tf.reduce_max(x), 0)])
        self._found.setdefault(point, []).append(tf.stop_gradient(found))

    def extremes(self, dtype: tf.DType) -> tf.Tensor:
        """Returns [2 * points]: how far below and above 0 each point reached; 0 if it was not called.

        The extremes of several pieces of a batch are the maximum of theirs.

        Raises:
          UserError: a layer was called inside a tf.function, tf.cond or tf.while_loop.
        """
        none = tf.zeros([2], dtype)
        rows = []
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        for point in self._points:
            found = self._found.get(point, [])
            if any(graph is not None and each.graph is not graph for each in found):
                raise UserError(
                    f"quantize.name='int8': '{point}' is computed inside a tf.function, tf.cond or tf.while_loop, where"
                    f" its range cannot be seen. Type --config.quantize.exclude={point.rpartition('/')[0]}."
                )
            row = none
            for each in found:
                row = tf.maximum(row, tf.cast(each, dtype))
            rows.append(row)
        return tf.reshape(tf.stack(rows), [-1])


@contextlib.contextmanager
def observing(points: Sequence[str], batch: Mapping[str, tf.Tensor]) -> Iterator[Observer]:
    """While open, `observe` in this thread reports to the observer that it returns; without points, to none."""
    outer = getattr(_local, "observer", None)
    observer = Observer(points, batch)
    _local.observer = observer if points else outer
    try:
        yield observer
    finally:
        _local.observer = outer


def observe(point: str, x: tf.Tensor) -> bool:
    """Tells the open observer of a tensor; returns whether there is one."""
    if (observer := getattr(_local, "observer", None)) is not None:
        observer.add(point, x)
    return observer is not None


def mode() -> str:
    """Returns how quantised models compute in this thread: `ROUNDED` unless `computing` is open."""
    return getattr(_local, "mode", ROUNDED)


@contextlib.contextmanager
def computing(chosen: str) -> Iterator[None]:
    """While open, quantised models that are called or traced in this thread compute in the mode `chosen`."""
    outer = mode()
    _local.mode = chosen
    try:
        yield
    finally:
        _local.mode = outer


def note_mode() -> None:
    """Notes, in the graph that is traced, in which mode a quantised layer computes there."""
    if not tf.executing_eagerly():
        _traced.setdefault(tf.compat.v1.get_default_graph(), set()).add(mode())


def check_traced(graph: tf.Graph) -> None:
    """Raises UserError unless all quantised layers of a trace, and of functions in it, compute in the mode `mode()`.

    A tf.function of an experiment keeps its first graph, whatever the mode is when it is called again.
    """
    graphs, seen = [graph], set()
    while graphs:
        one = graphs.pop()
        if one in seen:
            continue
        seen.add(one)
        graphs += compat.function_graphs(one)
        if others := sorted(_traced.get(one, set()) - {mode()}):
            raise UserError(
                f"quantize.name='int8': the tf.function '{one.name}' was traced before, while the model computed"
                f" '{others[0]}', and would do so here, where it has to compute '{mode()}'. Call the plain Python"
                " function in an export: it is traced there anyway."
            )

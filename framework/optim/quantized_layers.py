"""Which layers of a model can be quantised, how each computes with a rounded kernel, and where ranges are needed.

    kernel = kernel_of(layer)                       # None: it has none, or none that can be rounded
    kernel.product(layer, x, is_on)                 # without the activation

    watch = Watch(layers, kernels)                  # {path: layer}, {path: kernel}
    with watch.open():
        trace the loss
    watch.points(graph)                             # ('stem/input', 'stem/output', …)

A range at a place where the converter of LiteRT joins two operations, such as between a convolution and its
BatchNormalization, would keep them apart, so there is none there.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat, layers
from framework.layers.attention import Projection
from framework.optim.fake_quantization import ROUNDED, fake_quantized, fake_quantized_kernel, mode

_CONVOLUTION = keras.layers.Conv2D.call  # also that of Conv1D
# Layers without a kernel whose outputs have a range, as integer arithmetic needs.
_RANGED = (
    *(keras.layers.BatchNormalization, keras.layers.Activation, keras.layers.ReLU, keras.layers.Softmax),
    *(keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply, keras.layers.Average, keras.layers.Concatenate),
    *(keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalAveragePooling1D),
    *(layers.BasicBlock, layers.BottleneckBlock),
)
# Layers whose output, in an export, is the input moved or cut: it has the range of the input.
_MOVED = (
    *(keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D),
    *(keras.layers.Flatten, keras.layers.Reshape, keras.layers.Permute),
    *(keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.GlobalMaxPooling2D),
)
_JOINED = {"Relu", "Relu6", "ConcatV2"}  # operations that the converter joins with the one before
_UNSEEN = {"Shape"}  # read no values
_JOINED_ACTIVATIONS = (None, keras.activations.linear, keras.activations.relu, tf.nn.relu, tf.nn.relu6)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernel of a layer.

    Attributes:
      name: of the layer's attribute.
      summed: number of leading axes that the product sums over; 0 for a table of vectors.
    """

    name: str
    summed: int

    def product(self, layer: keras.layers.Layer, x: tf.Tensor, is_on: tf.Tensor) -> tf.Tensor:
        """Returns the output of a layer before its activation, computed with the rounded kernel, and with its bias.

        Args:
          is_on: bool scalar; False does not round.
        """
        if self.is_table:
            return _looked_up(layer, x, is_on)
        full = compat.full_value(getattr(layer, self.name))
        matrix = tf.reshape(full, [math.prod(full.shape[: self.summed]), -1])  # [inputs, channels]
        if mode() == ROUNDED:  # else the converter rounds it
            matrix = tf.where(is_on, fake_quantized_kernel(full, self.summed), matrix)
        matrix = tf.cast(matrix, layer.compute_dtype)
        if isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense):
            return _matrix_product(layer, x, matrix, self.summed)
        with _lent(layer, {self.name: tf.reshape(matrix, full.shape), "activation": None}):
            return type(layer).call(layer, x)

    @property
    def is_table(self) -> bool:
        """Whether the kernel is a table of vectors: they have the range of the table."""
        return not self.summed


def kernel_of(layer: keras.layers.Layer) -> Kernel | None:
    """Returns the kernel of a layer if the layer is quantised as a whole: a call of its own may use it otherwise."""
    call = type(layer).call
    if "call" in vars(layer) or not layer.built:
        return None
    if call is keras.layers.Dense.call:
        return Kernel("kernel", 1)
    if call in (keras.layers.EinsumDense.call, Projection.call):
        summed = _summed_axes(layer)
        return Kernel("kernel", summed) if summed else None
    if call is keras.layers.Embedding.call:
        return Kernel("embeddings", 0)
    if getattr(layer, "data_format", "") != "channels_last":
        return None
    if call is _CONVOLUTION and layer.rank in (1, 2) and layer.groups == 1:
        return Kernel("kernel", layer.rank + 1)
    return Kernel("depthwise_kernel", 2) if call is keras.layers.DepthwiseConv2D.call else None


def has_activation(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer ends in an activation that is an operation of its own in an export."""
    return getattr(layer, "activation", None) not in _JOINED_ACTIVATIONS


class Watch:
    """Records in which order the layers of a model pass tensors on, in one trace.

    Args:
      chosen: {path: layer} of those that are quantised, if they can be.
      kernels: {path: kernel} of those of them that have one.
      others: {path: layer} of those that are not quantised.
    """

    def __init__(
        self,
        chosen: Mapping[str, keras.layers.Layer],
        kernels: Mapping[str, Kernel],
        others: Mapping[str, keras.layers.Layer],
    ) -> None:
        self._kernels = kernels
        self._layers = {p: layer for p, layer in chosen.items() if p in kernels or isinstance(layer, _RANGED)}
        self._layers |= {p: layer for p, layer in {**chosen, **others}.items() if isinstance(layer, _MOVED)}
        self._calls: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """While open, each call of a layer is recorded."""
        for path, layer in self._layers.items():
            layer.call = self._recorded(path, layer.call)
        try:
            yield
        finally:
            for layer in self._layers.values():
                del layer.call

    def called(self, graph: tf.Graph) -> list[str]:
        """Returns the paths of the layers that were called in a graph itself, not in a function or loop in it."""
        return list(dict.fromkeys(path for path, _, y in self._calls if _is_of(y, graph)))

    def points(self, graph: tf.Graph) -> tuple[str, ...]:
        """Returns where the ranges of activations are needed: '<layer>/input', '<layer>/product', '<layer>/output'."""
        points: dict[str, None] = {}
        sources: dict[int, str] = {}  # of a tensor, the layer whose range it has
        outputs: dict[str, list[tf.Tensor]] = {}
        normalized = set()
        for path, x, y in self._calls:
            if not _is_of(y, graph):
                continue
            layer, source = self._layers[path], sources.get(id(x))
            kernel = self._kernels.get(path)
            if kernel is None and isinstance(layer, _MOVED):
                if source is not None:
                    sources[id(y)] = source
                continue
            if kernel is None and isinstance(layer, keras.layers.BatchNormalization) and source is not None:
                inputs = outputs.get(source, [])
                if any(x is output for output in inputs) and _is_linear(self._layers[source]):
                    normalized.add(source)
            if kernel is not None and not kernel.is_table:
                if source is None:
                    points[f"{path}/input"] = None
                if has_activation(layer):
                    points[f"{path}/product"] = None
            if id(y) not in sources:
                sources[id(y)] = path
                outputs.setdefault(path, []).append(y)
        for path, tensors in outputs.items():
            kernel = self._kernels.get(path)
            is_joined = path in normalized or all(map(_is_joined, tensors))
            if not is_joined and not (kernel is not None and kernel.is_table):
                points[f"{path}/output"] = None
        return tuple(points)

    def _recorded(self, path: str, call: Any) -> Any:
        def recorded(x: Any, *args: Any, **kwargs: Any) -> Any:
            y = call(x, *args, **kwargs)
            self._calls.append((path, x, y))
            return y

        return recorded


def _is_of(tensor: Any, graph: tf.Graph) -> bool:
    return isinstance(tensor, tf.Tensor) and tensor.graph is graph


def _is_linear(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def _is_joined(tensor: tf.Tensor) -> bool:
    """Returns whether all that read a tensor are joined with what made it."""
    readers = {reader.type for reader in tensor.consumers()} - _UNSEEN
    return bool(readers) and readers <= _JOINED


def _matrix_product(layer: keras.layers.Layer, x: tf.Tensor, kernel: tf.Tensor, summed: int) -> tf.Tensor:
    """Returns the product of the last `summed` axes of x with a kernel, plus the bias.

    The converter joins the bias with such a product, but not with an einsum.
    """
    x = tf.cast(x, layer.compute_dtype)
    kept, made = x.shape[:-summed], layer.kernel.shape[summed:]
    is_matrix = x.shape.rank == 2 and summed == 1
    y = tf.matmul(x if is_matrix else tf.reshape(x, [-1, kernel.shape[0]]), kernel)
    if layer.bias is not None:
        y = tf.nn.bias_add(y, tf.reshape(layer.bias, [-1]))
    if is_matrix:
        return y
    sizes = kept if kept.is_fully_defined() else tf.shape(x)[:-summed]
    y = tf.reshape(y, tf.concat([sizes, made], 0))
    y.set_shape([*kept, *made])
    return y


def _looked_up(layer: keras.layers.Layer, ids: tf.Tensor, is_on: tf.Tensor) -> tf.Tensor:
    """Returns the vectors of an embedding, rounded to 256 levels from the least to the largest number of its table."""
    vectors = type(layer).call(layer, ids)
    if mode() == ROUNDED:
        table = compat.full_value(layer.embeddings)
        low, high = tf.minimum(tf.reduce_min(table), 0), tf.maximum(tf.reduce_max(table), 0)
        return tf.where(is_on, fake_quantized(vectors, low, high), vectors)
    with tf.init_scope():  # the converter takes constants
        values = compat.full_value(layer.embeddings).numpy()
    return fake_quantized(vectors, tf.constant(min(values.min(), 0)), tf.constant(max(values.max(), 0)))


@contextlib.contextmanager
def _lent(layer: keras.layers.Layer, values: Mapping[str, Any]) -> Iterator[None]:
    """Gives attributes of a layer other values while open, past Keras, which would track them."""
    own = {name: vars(layer)[name] for name in values}
    vars(layer).update(values)
    try:
        yield
    finally:
        vars(layer).update(own)


def _summed_axes(layer: keras.layers.EinsumDense) -> int:
    """Returns over how many axes a layer sums if it is a matrix product of the last ones; else 0."""
    match = re.fullmatch(r"(\w+),(\w+)->(\w+)", layer.equation)
    if match is None:
        return 0
    inputs, kernel, outputs = match.groups()
    summed = len(set(inputs) & set(kernel))
    is_product = inputs[-summed:] == kernel[:summed] and outputs == inputs[:-summed] + kernel[summed:]
    bias = layer.bias
    is_biased_whole = bias is None or bias.shape.as_list() == layer.kernel.shape.as_list()[summed:]
    return summed if summed and is_product and is_biased_whole else 0

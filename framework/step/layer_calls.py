"""Which layers a trace, or an eager forward pass, calls, and the shapes or values of what they return.

with recorded() as calls:
    model(tf.keras.Input([28, 28]))
calls[0].layer, calls[0].output           # the innermost layer that ended first, '[128, 10]'
with outputs() as calls:
    model(images)
calls[0]                                  # (layer, [tensor [128, 10]])
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras


class LayerCall(NamedTuple):
    """A call of a layer: the layer, and the shapes of all tensors that it returned, as text: '[128, 10]'."""

    layer: keras.layers.Layer
    output: str


@contextlib.contextmanager
def recorded() -> Iterator[list[LayerCall]]:
    """Yields a list that grows by each call of any layer while the context is open, in the order of their ends."""
    calls: list[LayerCall] = []
    with _watching(lambda layer, made: calls.append(LayerCall(layer, ", ".join(map(_shape, made))))):
        yield calls


@contextlib.contextmanager
def outputs() -> Iterator[list[tuple[keras.layers.Layer, list[Any]]]]:
    """Yields a list that grows by (layer, all tensors that it returned), as `recorded` does."""
    calls: list[tuple[keras.layers.Layer, list[Any]]] = []
    with _watching(lambda layer, made: calls.append((layer, made))):
        yield calls


@contextlib.contextmanager
def _watching(see: Callable[[keras.layers.Layer, list[Any]], None]) -> Iterator[None]:
    """Calls see(layer, all tensors that it returned) after each call of any layer while the context is open."""
    call = keras.layers.Layer.__call__

    @functools.wraps(call)
    def watched(layer: Any, *args: Any, **kwargs: Any) -> Any:
        made = call(layer, *args, **kwargs)
        see(layer, tf.nest.flatten(made))
        return made

    keras.layers.Layer.__call__ = watched
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = call


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tf.TensorShape):
        return type(value).__name__
    return "[…]" if shape.rank is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"

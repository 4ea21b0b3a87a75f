"""Which layers a trace calls, and the shapes of what they return.

with recorded() as calls:
    model(tf.keras.Input([28, 28]))
calls[0].layer, calls[0].output           # the innermost layer that ended first, '[128, 10]'
"""

import contextlib
import functools
from collections.abc import Iterator
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
    call = keras.layers.Layer.__call__

    @functools.wraps(call)
    def recording(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = call(layer, *args, **kwargs)
        calls.append(LayerCall(layer, ", ".join(_shape(tensor) for tensor in tf.nest.flatten(outputs))))
        return outputs

    keras.layers.Layer.__call__ = recording
    try:
        yield calls
    finally:
        keras.layers.Layer.__call__ = call


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tf.TensorShape):
        return type(value).__name__
    return "[…]" if shape.rank is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"

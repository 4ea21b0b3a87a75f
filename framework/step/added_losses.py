"""Records what the layers of a model add to its loss while a forward pass runs.

    recorder = Recorder(model)
    returned = recorder.watch(lambda: loss(model, batch, True))
    recorder.added                             # [Added(layer, value, regularizer), …], in the order of the calls

Keras keeps what layers add until their model is called again, so of several calls it keeps the last. Layers of a
watched model tell the recorder of each.
"""

import dataclasses
import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import compat, paths

_HOOKED = "_add_loss_and_tell"  # an attribute of a layer, set past Keras, which would track it

_local = threading.local()  # replicas trace in threads of their own


@dataclasses.dataclass(frozen=True)
class Added:
    """A tensor that a layer added to the loss, or an output to which its `regularizer` is to be applied."""

    layer: Any
    value: tf.Tensor
    regularizer: Callable[[tf.Tensor], Any] | None = None


class Recorder:
    """What the layers of a model add while one forward pass runs.

    Attributes:
      layers: [(path, layer)] of the model.
      added: in the order of the calls.
      hidden: layers that added something inside of a function, condition or loop, where its value cannot be used.
      repeated: layers whose call gave add_loss a function, which Keras keeps once more after each call.
      early: layers that added a value in `build`, which Keras forgets after the first call.
      read: marks by which `model.losses` is recognised in the terms of a loss.
    """

    def __init__(self, model: Any) -> None:
        self.layers = layers_of(model)
        self.added: list[Added] = []
        self.hidden: list[Any] = []
        self.repeated: list[Any] = []
        self.early: list[Any] = []
        self.read: list[tf.Tensor] = []
        self._model = model
        self._known = {id(layer) for _, layer in self.layers}
        self._graph = _current_graph()
        for _, layer in self.layers:
            _hook(layer)

    def watch(self, run: Callable[[], Any]) -> Any:
        """Returns run(), and records what is added meanwhile."""
        outer, _local.recorder = _current(), self
        lists = [compat.callable_losses(layer) for _, layer in self.layers]
        for losses in lists:
            losses.append(self._mark)
        try:
            returned = run()
        finally:
            _local.recorder = outer
            for losses in lists:
                losses.remove(self._mark)
        self.layers = layers_of(self._model)  # a first call may make some
        return returned

    def is_incomplete(self) -> bool:
        """Returns whether a layer that was made meanwhile, and so not watched, has added something."""
        new = [layer for _, layer in self.layers if id(layer) not in self._known]
        return any(
            compat.call_losses(layer) or compat.symbolic_losses(layer) or layer.activity_regularizer for layer in new
        )

    def path(self, layer: Any) -> str:
        """Returns the path of a layer of the model."""
        return next(path for path, other in self.layers if other is layer)

    def take(self, added: Added) -> bool:
        """Records one addition; returns False if it is none of this pass, so that Keras keeps it."""
        if id(added.layer) not in self._known:
            return False
        graph = _current_graph()
        if graph is self._graph:
            self.added.append(added)
            return True
        while graph is not None and graph is not self._graph:
            if compat.is_scratch(graph):  # Keras lays a network out, and uses nothing of that
                return False
            graph = getattr(graph, "outer_graph", None)
        self.hidden.append(added.layer)
        return True

    def _mark(self) -> tf.Tensor | None:
        """Returns a zero that Keras puts among the losses of each layer: terms that depend on it read model.losses."""
        if _current() is not self or tf.executing_eagerly():
            return None
        self.read.append(tf.zeros([], keras.backend.floatx()))
        return self.read[-1]


def layers_of(model: Any) -> list[tuple[str, Any]]:
    """Returns (path, layer) of a model or a dict of models, in Keras' order, which decides the order of sums."""
    by_id = {id(child): (path, child) for path, child in paths.objects(model).items() if _is_layer(child)}
    ordered: dict[int, tuple[str, Any]] = {}
    for root in filter(_is_layer, paths.models(model).values()):
        for layer in compat.flatten_layers(root):
            ordered[id(layer)] = by_id.get(id(layer), (layer.name, layer))
    return list((ordered | by_id).values())


def _current() -> Any:
    """Returns the recorder of this thread; None outside of a pass."""
    return getattr(_local, "recorder", None)


def _current_graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _is_layer(child: Any) -> bool:
    return isinstance(child, keras.layers.Layer)


def _hook(layer: Any) -> None:
    """Makes a layer tell the recorder of its thread what it adds, for good; without a recorder it does as before."""
    if _HOOKED not in layer.__dict__:
        # Past Keras' __setattr__. Methods, so that a deep copy of the layer has its own.
        layer.__dict__[_HOOKED] = True
        layer.__dict__["add_loss"] = types.MethodType(_add_loss, layer)
        compat.replace_activity(layer, _handle_activity)


def _add_loss(layer: Any, losses: Any, **kwargs: Any) -> None:
    """Replaces `add_loss` of a layer."""
    recorder = _current()
    if recorder is not None:
        for loss in tf.nest.flatten(losses):
            if not layer.built and loss is not None and not callable(loss):
                recorder.early.append(layer)
            elif tf.is_tensor(loss):
                recorder.take(Added(layer, loss))
            elif isinstance(loss, int | float | np.ndarray | np.generic):
                recorder.take(Added(layer, tf.convert_to_tensor(loss, keras.backend.floatx())))
            elif callable(loss) and layer.built and not isinstance(loss, functools.partial):  # which add_weight gives
                recorder.repeated.append(layer)
    type(layer).add_loss(layer, losses, **kwargs)


def _handle_activity(layer: Any, inputs: Any, outputs: Any) -> None:
    """Replaces the method by which Keras applies the activity regulariser of a layer."""
    recorder, regularizer = _current(), layer.activity_regularizer
    given = tf.nest.flatten(outputs)
    if recorder is None or not all(recorder.take(Added(layer, output, regularizer)) for output in given):
        compat.add_activity(layer, inputs, outputs)

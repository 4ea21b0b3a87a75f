"""Training with the numbers that int8 can hold: a forward pass that rounds weights and activations as an export will.

    plan = Plan(config.quantize, model)
    with plan.watched():
        trace = probe(loss, model, …)                      # sees in which order layers pass tensors on
    quantizer = plan.quantizer(trace.graph)                # from now on the model rounds
    quantizer.after_update(t, step, applied, extremes)     # after update t = 1, 2, …: ranges follow the activations

Kernels of products have a scale for each output channel, as in the int8 formats of LiteRT, made of the present weights.
Activations have a range, which begins as that of the first batch and then moves by `momentum`. Source: Jacob et al.,
2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference".
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras
from absl import logging
from ml_collections import ConfigDict

from framework import compat, paths
from framework.errors import UserError
from framework.optim.fake_quantization import CONVERTED, FLOAT, fake_quantized, mode, note_mode, observe
from framework.optim.quantized_layers import Kernel, Watch, kernel_of
from framework.optim.selection import selected


class Plan:
    """The layers that are quantised, before it is known where ranges are needed.

    Args:
      settings: `config.quantize`, resolved.
      model: built; or a dict of models.

    Attributes:
      kernels: {path: kernel} of the layers whose kernels are rounded.
      in_float: 'path (Class)' of the layers with weights that are not.

    Raises:
      UserError: `include` or `exclude` matches nothing that can be quantised, or nothing is left.
    """

    def __init__(self, settings: ConfigDict, model: Any) -> None:
        self._settings = settings
        found = {p: each for p, each in paths.objects(model).items() if isinstance(each, keras.layers.Layer)}
        layers = {p or "model": layer for p, layer in found.items()}
        legal = {path: kernel for path, layer in layers.items() if (kernel := kernel_of(layer)) is not None}
        owners = {_owner(path, found) or "model" for path, v in paths.variables(model).items() if _is_matrix(v)}
        illegal = {path: type(layers[path]).__name__ for path in layers if path in owners and path not in legal}
        chosen = _chosen(settings, layers, legal, illegal)
        self.kernels = {path: kernel for path, kernel in legal.items() if path in chosen}
        self._layers = {path: layers[path] for path in chosen}
        self.in_float = [
            f"{path} ({type(layers[path]).__name__})" for path in layers if path in owners - {*self.kernels}
        ]
        others = {path: layer for path, layer in layers.items() if path not in chosen}
        self._watch = Watch(self._layers, self.kernels, others)

    def watched(self) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which the loss is traced."""
        return self._watch.open()

    def quantizer(self, graph: tf.Graph) -> "Quantizer":
        """Returns the quantizer of the model, whose layers round from now on.

        Args:
          graph: the trace of the loss.

        Raises:
          UserError: a layer to quantise is called inside a function or a loop, or not at all.
        """
        called = self._watch.called(graph)
        if hidden := [path for path in self.kernels if path not in called]:
            raise UserError(
                f"quantize.name='int8': the loss does not call {', '.join(hidden)}, or inside a tf.function, tf.cond or"
                " tf.while_loop, where ranges of activations cannot be seen. Leave these out by"
                f" --config.quantize.exclude='{'|'.join(hidden)}'."
            )
        points = self._watch.points(graph)
        logging.info("quantize: kernels of %s; %d ranges of activations", ", ".join(self.kernels), len(points))
        if self.in_float:
            logging.warning(
                "quantize: %s are trained in float; in int8 exports the converter rounds their weights all the same"
                " where the tensors before and after have ranges",
                ", ".join(self.in_float),
            )
        return Quantizer(self._settings, self._layers, self.kernels, points, self.in_float)


class Quantizer(tf.Module):
    """The ranges of activations, and the layers that round by them.

    Args:
      settings: `config.quantize`, resolved.
      layers: {path: layer}; their calls are replaced.
      kernels: {path: kernel} of those with a kernel that is rounded.
      points: names of the places that have a range, such as 'dense/output'.
      in_float: 'path (Class)' of the layers with weights that are not rounded.

    Attributes:
      ranges: {point: [low, high]}; floating variables with low <= 0 <= high, all 0 before the first update.
      active: bool variable; whether the next step rounds.
    """

    def __init__(
        self,
        settings: ConfigDict,
        layers: Mapping[str, keras.layers.Layer],
        kernels: Mapping[str, Kernel],
        points: tuple[str, ...],
        in_float: Sequence[str] = (),
    ) -> None:
        super().__init__("quantize")
        self.begin: int = max(settings.begin, 1)
        self.freeze: int = settings.freeze
        self.momentum = settings.momentum
        self.points = points
        self.in_float = tuple(in_float)
        dtype = keras.backend.floatx()
        self.ranges = {point: tf.Variable([0.0, 0.0], trainable=False, dtype=dtype) for point in points}
        self.active = tf.Variable(False, trainable=False)
        # The model is saved as the model, not as part of its quantizer.
        self.kernels = compat.untracked(self, dict(kernels))
        self._observed: set[str] = set()  # points that a forward pass of a step has reached
        for path, layer in layers.items():
            if path in kernels or f"{path}/output" in self.ranges:
                layer.call = self._quantized(path, layer, kernels.get(path))

    def after_update(
        self, updates: tf.Tensor, step: tf.Tensor, applied: tf.Tensor | None = None, extremes: Any = ()
    ) -> None:
        """Moves the ranges towards those of a batch.

        Args:
          updates: int64 scalar; updates made, including this one.
          step: int64 scalar; not used.
          applied: bool scalar; False leaves all as it is. None is as True.
          extremes: [2 * points] of the global batch, as `Observer.extremes` returns them; () moves no range.

        Raises:
          UserError: a layer was not called while extremes were observed.
        """
        updates = tf.cast(updates, tf.int64)
        is_applied = tf.constant(True) if applied is None else applied
        self._assign(self.active, tf.where(is_applied, updates >= self.begin, _value(self.active)))
        if not tf.is_tensor(extremes):
            return
        if unseen := dict.fromkeys(point.rpartition("/")[0] for point in self.points if point not in self._observed):
            raise UserError(
                f"quantize.name='int8': the step calls {', '.join(unseen)} outside of tools.gradients, where ranges of"
                f" activations are not seen, or not at all. Type --config.quantize.exclude='{'|'.join(unseen)}'."
            )
        old = tf.stack([_value(variable) for variable in self.ranges.values()])  # [points, 2]
        seen = tf.reshape(tf.cast(extremes, old.dtype), old.shape) * tf.constant([-1, 1], old.dtype)
        moved = tf.where(updates > 1, seen + self.momentum * (old - seen), seen)
        may_move = is_applied & (updates <= self.freeze) if self.freeze else is_applied
        for variable, new in zip(self.ranges.values(), tf.unstack(tf.where(may_move, moved, old)), strict=True):
            self._assign(variable, new)

    def restart(self) -> None:
        """Forgets all ranges, as before the first update."""
        for variable in self.ranges.values():
            self._assign(variable, tf.zeros_like(_value(variable)))
        self._assign(self.active, tf.constant(False))

    def _assign(self, variable: tf.Variable, value: tf.Tensor) -> None:
        for copy in paths.copies(variable):
            copy.assign(value)

    def _quantized(self, path: str, layer: keras.layers.Layer, kernel: Kernel | None) -> Callable[..., Any]:
        """Returns the call of a layer that rounds its input, kernel and output where they have a range."""
        original = layer.call

        def quantized(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            note_mode()
            if mode() == FLOAT:
                return original(inputs, *args, **kwargs)
            if kernel is None:
                return self._at(f"{path}/output", original(inputs, *args, **kwargs))
            if not isinstance(inputs, tf.Tensor):
                raise UserError(
                    f"quantize.name='int8': '{path}' is called on a {type(inputs).__name__}. Give it a dense tensor, or"
                    f" type --config.quantize.exclude={path}."
                )
            is_on = tf.constant(True) if mode() == CONVERTED else tf.convert_to_tensor(self.active)
            y = self._at(f"{path}/product", kernel.product(layer, self._at(f"{path}/input", inputs), is_on))
            if getattr(layer, "activation", None) is not None:
                y = layer.activation(y)
            return self._at(f"{path}/output", y)

        quantized.quantizer = self  # type: ignore[attr-defined]
        return quantized

    def _at(self, point: str, x: tf.Tensor) -> tf.Tensor:
        """Returns an activation rounded by the range of a point, and reports it; as it is if the point has none."""
        if point not in self.ranges:
            return x
        if mode() == CONVERTED:
            with tf.init_scope():  # the converter takes constants
                low, high = _value(self.ranges[point]).numpy()
            return fake_quantized(x, tf.constant(low), tf.constant(high)) if high > low else x
        if observe(point, x):
            self._observed.add(point)
        low, high = tf.unstack(tf.convert_to_tensor(self.ranges[point]))
        # A point that was never reached has no range.
        return tf.where(tf.convert_to_tensor(self.active) & (high > low), fake_quantized(x, low, high), x)


def quantizer_of(model: Any) -> Quantizer | None:
    """Returns the quantizer by which a model rounds; None if it does not, or not yet."""
    for layer in paths.objects(model).values():
        quantizer = getattr(vars(layer).get("call"), "quantizer", None) if hasattr(layer, "__dict__") else None
        if quantizer is not None:
            return quantizer if bool(_value(quantizer.active)) else None
    return None


def _chosen(
    settings: ConfigDict, layers: Mapping[str, Any], legal: Mapping[str, Kernel], illegal: Mapping[str, str]
) -> list[str]:
    """Returns the paths of the layers that `include` and `exclude` leave."""
    chosen = selected("quantize", settings, layers, "layers; those that can be quantised are", [*legal])
    if settings.include and (named := [f"{path} ({illegal[path]})" for path in chosen if path in illegal]):
        raise UserError(
            f"quantize.include='{settings.include}' names {', '.join(named)}, which cannot be quantised. Those that can"
            f" are {', '.join(legal) or 'none'}. Leave others out by quantize.exclude."
        )
    if not any(path in legal for path in chosen):
        raise UserError(
            f"quantize.name='int8': no layer is quantised. Those that can be are {', '.join(legal) or 'none'}: dense,"
            " einsum, convolution, depthwise convolution and embedding layers of Keras, whose call is that of Keras."
        )
    return chosen


def _owner(path: str, layers: Mapping[str, Any]) -> str:
    """Returns the path of the innermost layer that has a variable."""
    return next((above for above in paths.above(path) if above in layers), "")


def _is_matrix(variable: tf.Variable) -> bool:
    return variable.dtype.is_floating and variable.shape.rank is not None and variable.shape.rank >= 2


def _value(variable: tf.Variable) -> tf.Tensor:
    return paths.copies(variable)[0].read_value()

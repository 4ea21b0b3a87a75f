"""The checks of `check_layer` on what is stored of a layer: its config, its weights, its exports."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.checkpoint.storage import read_arrays, write_arrays
from framework.export import SERVING, Lite, SavedModel, Signature
from framework.export.base import ExportHook
from framework.testing.built_layer import BuiltLayer, Subject, shard
from framework.testing.comparison import compare
from framework.testing.layer_checks import Examined


def check_config(examined: Examined) -> None:
    """A layer made from `get_config` has this config, and computes the same from the same weights."""
    layer = examined.layer
    kind, config = type(layer.layer), layer.layer.get_config()
    make = lambda: kind.from_config(copy.deepcopy(config))  # noqa: E731
    again = Subject(make, examined.subject.inputs, examined.subject.call, examined.subject.seed).build(like=layer)
    other = again.layer.get_config()
    if other != config:
        key = sorted(key for key in config.keys() | other.keys() if config.get(key) != other.get(key))[0]
        raise AssertionError(f"config['{key}'] is {config.get(key)!r}, and {other.get(key)!r} after from_config")
    compare(("the layer", "the layer from its config"), _computed(layer), _computed(again), bitwise=True)


def check_weights(examined: Examined) -> None:
    """Checkpoints of the framework and files of `save_weights` give another layer the same variables and outputs."""
    layer = examined.layer
    known = {id(variable) for variable in paths.variables(layer.layer).values()}
    for variable in examined.trace.variables:
        if id(variable) not in known:
            raise AssertionError(f"a call reads the variable '{variable.name}', which is no attribute of the layer")
    if not known:
        return
    other = examined.subject.build()
    for what, (write, read) in _FORMATS.items():
        other.assign({path: np.zeros_like(v.numpy()) for path, v in other.state.variables.items()})
        with tempfile.TemporaryDirectory() as folder:
            write(layer.layer, Path(folder))
            read(other.layer, Path(folder))
        restored = {path: v.numpy() for path, v in paths.variables(other.layer).items()}
        sides = ("the layer", f"one restored from {what}")
        compare(sides, {path: v.numpy() for path, v in paths.variables(layer.layer).items()}, restored, bitwise=True)
        other.assign(restored)
        compare(sides, _computed(layer), _computed(other), bitwise=True)


def check_saved_model(examined: Examined) -> None:
    """A SavedModel returns the outputs of the layer in inference, in float32, for any batch size."""
    _check_export(examined, lambda signature: SavedModel({SERVING: signature}))


def check_lite(examined: Examined) -> None:
    """A LiteRT file returns the outputs of the layer in inference, in float32, for any batch size."""
    _check_export(examined, Lite)


def _check_export(examined: Examined, make: Callable[[Signature], ExportHook]) -> None:
    layer = examined.subject.build("float32")
    batch = {f"input_{place}": x for place, x in enumerate(layer.inputs.values())}
    specs = {name: tf.TensorSpec([None, *x.shape[1:]], x.dtype) for name, x in batch.items()}

    def serve(model: Any, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = layer.infer(dict(zip(layer.inputs, (inputs[name] for name in specs), strict=True)))
        return {f"output_{place}": output for place, output in enumerate(outputs)}

    hook = make(Signature(serve, specs))
    assert isinstance(hook.bound, float), hook  # a format that computes as the layer does
    with tempfile.TemporaryDirectory() as folder:
        path = hook.target(Path(folder))
        hook.write(layer.layer, path)
        call = hook.load(path)[SERVING]
        for examples in (examined.examples, 1):
            inputs = shard(batch, 0, examples)
            outputs = {name: x.numpy() for name, x in serve(layer.layer, inputs).items()}
            exported = call({name: x.numpy() for name, x in inputs.items()})
            sides = ("the layer", f"its {hook.name} of {examples} examples")
            compare(sides, outputs, exported, rtol=hook.bound, atol=hook.bound)


def _computed(layer: BuiltLayer) -> dict[str, np.ndarray]:
    """Returns the outputs in inference and in training."""

    def outputs() -> dict[str, tf.Tensor]:
        calls = {"inference": layer.infer(layer.inputs), "training": layer.train(layer.inputs)}
        return {f"output {i} in {name}": x for name, call in calls.items() for i, x in enumerate(call)}

    return layer.run(outputs)


class _Holder(keras.Model):
    """A model of a layer, for `save_weights`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def get_config(self) -> dict[str, Any]:
        return {}


def _write_arrays(layer: Any, folder: Path) -> None:
    write_arrays(folder, {path: v.numpy() for path, v in paths.variables(layer).items()}, {})


def _read_arrays(layer: Any, folder: Path) -> None:
    variables, arrays = paths.variables(layer), read_arrays(folder)
    for path in variables.keys() & arrays.keys():
        paths.assign(variables[path], arrays[path])


_FORMATS: dict[str, tuple[Callable[[Any, Path], Any], Callable[[Any, Path], Any]]] = {
    "a checkpoint": (_write_arrays, _read_arrays),
    "save_weights in HDF5": (
        lambda layer, folder: _Holder(layer).save_weights(folder / "a.weights.h5"),
        lambda layer, folder: _Holder(layer).load_weights(folder / "a.weights.h5"),
    ),
    "save_weights": (
        lambda layer, folder: _Holder(layer).save_weights(folder / "a"),
        lambda layer, folder: _Holder(layer).load_weights(folder / "a"),
    ),
}

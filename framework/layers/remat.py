"""Layers that compute their activations again in the backward pass instead of keeping them.

    rematerialise(model, "encoder/block_.*")

Source: Chen et al., 2016, "Training deep nets with sublinear memory cost"; by `tf.recompute_grad`.
"""

import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat, paths, rng
from framework.errors import UserError, near


def rematerialise(root: Any, pattern: str) -> list[str]:
    """Makes layers of a model keep nothing but their inputs for the backward pass of a step.

    The second computation draws what the first drew and leaves moving averages as the first left them.

    Args:
      root: a model, or a dict of models; built or not.
      pattern: regex of whole layer paths. Of matching layers inside one another, the outermost is meant.

    Returns:
      the paths of the layers.

    Raises:
      UserError: no layer matches.
    """
    layers = {path: part for path, part in paths.objects(root).items() if path and isinstance(part, keras.layers.Layer)}
    matching = [path for path in layers if re.fullmatch(pattern, path)]
    if not matching:
        raise UserError(
            f"train.remat='{pattern}' matches no layer.{near(pattern, layers)} Layers: {', '.join(sorted(layers))}."
        )
    outermost = [path for path in matching if not any(path.startswith(f"{other}/") for other in matching)]
    for path in outermost:
        layers[path].call = _recomputing(layers[path], path)
    return outermost


def _recomputing(layer: keras.layers.Layer, path: str) -> Callable[..., Any]:
    call = layer.call

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not rng.is_open():  # outside of a step nothing is differentiated: an export stays as it would be
            return call(*args, **kwargs)
        flat = tf.nest.flatten((args, kwargs))
        # Only what can have a gradient goes through the tape; masks and flags are the same the second time.
        places = [i for i, value in enumerate(flat) if tf.is_tensor(value) and value.dtype.is_floating]
        start = rng.save_counters()
        structures: list[Any] = []

        def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
            given = list(flat)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = compat.copy_mask(flat[place], tensor)
            again_args, again_kwargs = tf.nest.pack_sequence_as((args, kwargs), given)
            is_again = bool(structures)
            moving = [(v, v.read_value()) for v in layer.non_trainable_variables] if is_again else []
            with rng.replay_from(start):
                outputs = call(*again_args, **again_kwargs)
            for variable, value in moving:
                variable.assign(value)
            structures.append(outputs)
            return tf.nest.flatten(outputs)

        if not layer.built or not places:
            return call(*args, **kwargs)  # variables are not made inside the recomputed function
        own = len(compat.call_losses(layer))
        outputs = tf.recompute_grad(run)(*(flat[place] for place in places))
        _refuse_losses(layer, path, own)
        return tf.nest.pack_sequence_as(structures[0], tf.nest.flatten(outputs))

    return recomputed


def _refuse_losses(layer: keras.layers.Layer, path: str, own: int) -> None:
    """What is added to the loss inside would be cut off from the gradient; the layer had `own` losses before."""
    parts = [part for part in layer.submodules if isinstance(part, keras.layers.Layer)]
    adds = [
        part for part in parts if compat.symbolic_losses(part) or compat.call_losses(part) or part.activity_regularizer
    ]
    adds += [layer] * (len(compat.call_losses(layer)) > own)
    if adds:
        raise UserError(
            f"train.remat: layer '{path}' adds a loss of its activations inside ('{adds[0].name}'), whose gradient"
            " would be lost. Leave the layer out of train.remat."
        )

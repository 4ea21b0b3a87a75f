"""Makes layers compute their activations again in the backward pass instead of keeping them.

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
    """Makes layers keep only their inputs for the backward pass of a step, which computes the rest again.

    The second computation draws the words that the first drew, and leaves moving averages as the first left them.

    Args:
      root: a model, or a dict of models; built or not.
      pattern: regex that must match the whole path of a layer. Layers inside a matching one need no match.

    Returns:
      The paths of the layers.

    Raises:
      UserError: no layer matches.
    """
    objects = paths.objects(root)
    layers = {path: layer for path, layer in objects.items() if path and isinstance(layer, keras.layers.Layer)}
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
        # The tape takes only the tensors that can have a gradient; masks and flags are the same the second time.
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
            return call(*args, **kwargs)  # a recomputed function cannot make variables
        own = len(compat.call_losses(layer))
        outputs = tf.recompute_grad(run)(*(flat[place] for place in places))
        _refuse_losses(layer, path, own)
        return tf.nest.pack_sequence_as(structures[0], tf.nest.flatten(outputs))

    return recomputed


def _refuse_losses(layer: keras.layers.Layer, path: str, own: int) -> None:
    """Raises UserError if a layer inside adds a loss, which would lose its gradient; `own` losses were there before."""
    inner = [child for child in layer.submodules if isinstance(child, keras.layers.Layer)]
    adding = [
        child
        for child in inner
        if compat.symbolic_losses(child) or compat.call_losses(child) or child.activity_regularizer
    ]
    adding += [layer] * (len(compat.call_losses(layer)) > own)
    if adding:
        raise UserError(
            f"train.remat: during the call of layer '{path}', layer '{adding[0].name}' adds a loss, by add_loss or an"
            f" activity_regularizer; the gradient of this loss would be lost. Leave '{path}' out of train.remat."
        )

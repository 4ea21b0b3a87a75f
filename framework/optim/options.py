"""Checks the options of an optimizer that `make_optimizer` returned.

    check_options(optimizer, config)                         # of one optimizer
    check_groups("model", optimizers, trainable, config)     # of the optimizers of one model's groups

Some options take effect only in the `fit` of tf_keras, and some need all parameters at once. A step honours an option
exactly or refuses it with what to type: an ignored option would silently train something else.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras
from ml_collections import FrozenConfigDict

from framework import compat
from framework.errors import UserError

# tf_keras's way to clip, and the value of clip.name that does the same to all parameters of a model.
_CLIPS = {"clipnorm": "variable_norm", "global_clipnorm": "global_norm", "clipvalue": "value"}
# A step computes gradients and sums them over replicas by itself, and there is no end of `fit`.
_NEVER_CALLED = ("minimize", "compute_gradients", "aggregate_gradients", "finalize_variable_values")
# These see the gradients of one group, not those of the model.
_OF_A_GROUP = compat.GROUP_METHODS
# Defaults of tf_keras; RMSprop has 100 where others have None.
_UNUSED_AVERAGE = {"ema_momentum": (0.99,), "ema_overwrite_frequency": (None, 100)}


def check_options(optimizer: keras.optimizers.Optimizer, config: FrozenConfigDict) -> None:
    """Raises UserError for an option that a step would ignore; sets jit_compile, because the run decides on that.

    Args:
      optimizer: what make_optimizer returned.
      config: resolved.
    """
    kind = type(optimizer).__name__
    optimizer.jit_compile = False  # train.compile decides, and no number depends on it
    if compat.mesh(optimizer) is not None:
        raise UserError(f"make_optimizer: mesh of {kind} is of DTensor, which a run does not use. Leave it out.")
    _check_average(kind, optimizer)
    _check_clip(kind, optimizer, config)
    for name in _overridden(optimizer, _NEVER_CALLED):
        raise UserError(
            f"make_optimizer: {kind}.{name} would never be called: a step computes the gradients, sums them over"
            " replicas and calls apply_gradients. Move what it does to update_step, or to make_step of the experiment."
        )
    try:
        inspect.signature(optimizer.apply_gradients).bind([], skip_gradients_aggregation=True)
    except TypeError as error:
        raise UserError(
            f"make_optimizer: {kind}.apply_gradients is called as apply_gradients(pairs, skip_gradients_aggregation="
            f"True), and does not take that ({error}). Give it **kwargs, and hand them on."
        ) from error


def _check_average(kind: str, optimizer: keras.optimizers.Optimizer) -> None:
    if optimizer.use_ema:
        raise UserError(
            f"make_optimizer: use_ema=True of {kind} needs the end of tf_keras's fit, so its averages would never be"
            f" used. Leave it out and type --config.ema.decay={optimizer.ema_momentum:g}; evaluate the averages with"
            " --config.eval.splits=\"('test@ema',)\"."
        )
    for name, unused in _UNUSED_AVERAGE.items():
        if getattr(optimizer, name) not in unused:
            raise UserError(
                f"make_optimizer: {name}={getattr(optimizer, name)} of {kind} has no effect without use_ema, in place"
                " of which a run has --config.ema.decay=0.999. Leave it out."
            )


def _check_clip(kind: str, optimizer: keras.optimizers.Optimizer, config: FrozenConfigDict) -> None:
    clips = {name: getattr(optimizer, name) for name in _CLIPS if getattr(optimizer, name) is not None}
    told = ", ".join(f"{name}={value:g}" for name, value in clips.items())
    for name, value in clips.items():
        if not value > 0:
            raise UserError(f"make_optimizer: {name}={value:g} of {kind} clips nothing in tf_keras. Leave it out.")
    if len(clips) > 1:
        raise UserError(f"make_optimizer: tf_keras heeds only the first of {told} of {kind}. Leave the others out.")
    if clips and config.clip.name != "none":
        raise UserError(
            f"gradients would be clipped twice: by clip.name='{config.clip.name}' and by {told} of {kind} in"
            f" make_optimizer. Leave {next(iter(clips))} out, or type --config.clip.name=none."
        )


def check_groups(
    name: str,
    optimizers: Sequence[keras.optimizers.Optimizer],
    trainable: Mapping[str, tf.Variable],
    config: FrozenConfigDict,
) -> None:
    """Raises UserError for an option that needs all parameters of the model at once, if the model has several groups.

    Args:
      name: of the model.
      optimizers: one for each trained group of the model.
      trainable: {path: variable} of the model, frozen ones included.
      config: resolved.
    """
    for optimizer in optimizers if len(optimizers) > 1 else ():
        kind, norm = type(optimizer).__name__, optimizer.global_clipnorm
        if norm is not None:
            raise UserError(
                f"make_optimizer: global_clipnorm={norm:g} of {kind} would clip each of the {len(optimizers)} groups of"
                f" optimizer.groups by its own norm. Leave it out and type --config.clip.name=global_norm"
                f" --config.clip.threshold={norm:g}."
            )
        for method in _overridden(optimizer, _OF_A_GROUP):
            raise UserError(
                f"make_optimizer: {kind}.{method} would see one of the {len(optimizers)} groups of optimizer.groups at"
                " a time. Override update_step instead, or leave optimizer.groups out."
            )
    names = [variable.name for variable in trainable.values()]
    for optimizer in optimizers:
        for pattern in compat.undecayed_names(optimizer):
            if not any(re.search(pattern, each) for each in names):
                raise UserError(
                    f"make_optimizer: exclude_from_weight_decay('{pattern}') of {type(optimizer).__name__} excludes no"
                    f" variable of '{name}', which are named {', '.join(names)}."
                    f" Type e.g. --config.optimizer.groups=\"('.*/bias: decay=0',)\" instead."
                )


def numbers_of(optimizer: Any) -> dict[str, Any]:
    """Returns {attribute: value} of an optimizer: plain Python values, arrays, and the lengths of containers."""
    numbers: dict[str, Any] = {}
    for name, value in vars(optimizer).items():
        if value is None or isinstance(value, bool | int | float | str):
            numbers[name] = value
        elif isinstance(value, list | dict | tuple | set):
            numbers[name] = len(value)
        elif hasattr(value, "tobytes"):
            numbers[name] = value.tobytes()
        elif isinstance(value, tf.Tensor) and hasattr(value, "numpy"):
            numbers[name] = value.numpy().tobytes()
    return numbers


def _overridden(optimizer: keras.optimizers.Optimizer, names: Sequence[str]) -> list[str]:
    return [name for name in names if getattr(type(optimizer), name) is not getattr(keras.optimizers.Optimizer, name)]

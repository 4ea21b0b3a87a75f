"""Layers whose weights a group freezes: they run as Keras runs layers with trainable=False.

    grouped = group_parameters(model, config)        # [(Group, {path: variable}), …]
    frozen = freeze_layers(model, grouped)           # {'backbone/norm/gamma': …, 'backbone/norm/moving_mean': …}

A frozen BatchNormalization normalises by its moving averages, which stay: a frozen backbone computes what it computed
when it was trained, and the model that is evaluated is the one that is trained.
"""

import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras
from ml_collections import FrozenConfigDict

from framework import paths
from framework.optim.groups import Group, assign_groups, parse_groups

Grouped = Sequence[tuple[Group, dict[str, tf.Variable]]]


def group_parameters(model: Any, config: FrozenConfigDict) -> Grouped:
    """The parameter groups of `optimizer.groups` with their {path: variable}.

    Raises:
      UserError: groups that do not fit the model.
    """
    trainable = paths.trainable(model)
    groups = parse_groups(config.optimizer.groups)
    return [(group, {path: trainable[path] for path in own}) for group, own in assign_groups(groups, list(trainable))]


def freeze_layers(model: Any, grouped: Grouped) -> dict[str, tf.Variable]:
    """Sets trainable=False on layers that are frozen as a whole; returns {path: variable} of all that is frozen.

    A layer is, if it has variables that no gradient trains, such as moving averages, and all its weights that are
    trained (those of layers inside of it too) are in frozen groups. Of a layer without such weights, the pattern of a
    frozen group has to match all variables.
    """
    frozen = {path: variable for group, own in grouped if group.frozen for path, variable in own.items()}
    patterns = [group.pattern for group, _ in grouped if group.frozen]
    if not patterns:
        return {}
    trained = {path for _, own in grouped for path in own}
    variables = paths.variables(model)
    for prefix, layer in paths.objects(model).items():
        if not isinstance(layer, keras.layers.Layer):
            continue
        inside = {path: variable for path, variable in variables.items() if path.startswith(f"{prefix}/")}
        weights = trained & inside.keys()
        still = inside.keys() - trained
        is_frozen = weights <= frozen.keys() if weights else all(_matches(patterns, path) for path in still)
        if still and is_frozen:
            layer.trainable = False
            frozen |= inside
    return frozen


def _matches(patterns: Sequence[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)

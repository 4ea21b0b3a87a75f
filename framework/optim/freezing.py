"""Freezing: layers whose weights a group freezes run as Keras runs layers with trainable=False.

    grouped = group_parameters(model, config)        # [(Group, {path: variable}), …]
    frozen = freeze_layers(model, grouped)           # {'backbone/norm/gamma': …, 'backbone/norm/moving_mean': …}

A frozen BatchNormalization normalises by its moving averages, which stay: a frozen backbone computes what it computed
when it was trained, and evaluation sees the model that training sees.
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
    """Returns the parameter groups of `optimizer.groups`, each with its {path: variable}.

    Raises:
      UserError: groups that do not fit the model.
    """
    trainable = paths.trainable(model)
    groups = parse_groups(config.optimizer.groups)
    return [(group, {path: trainable[path] for path in own}) for group, own in assign_groups(groups, list(trainable))]


def freeze_layers(model: Any, grouped: Grouped) -> dict[str, tf.Variable]:
    """Sets trainable=False on layers that are frozen as a whole; returns {path: variable} of everything frozen.

    A layer is frozen as a whole if it has variables that no gradient trains, such as moving averages, and if all its
    trainable weights, with those of the layers inside it, are in frozen groups. If a layer has no trainable weights,
    the patterns of frozen groups must match all its variables.
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

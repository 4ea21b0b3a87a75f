"""Builds the optimizers of a run's models from an experiment's schedules and `make_optimizer`.

    optimizer = build_optimizers(make_optimizer, model, schedule, updates, config)
    optimizer.trained                      # {'dense/kernel': <Variable>, …}

`make_optimizer(cfg, learning_rate)` is called once for each parameter group, with the group's settings in `cfg`,
so every optimizer can be grouped, an experiment's own too.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict, FrozenConfigDict

from framework import compat, paths, precision
from framework.config import to_steps
from framework.errors import UserError, near
from framework.experiment.returns import check_optimizer
from framework.optim.freezing import Grouped, group_parameters
from framework.optim.groups import Group, parse_groups, settings_of
from framework.optim.optimizers import Optimizer, make_optimizer
from framework.optim.options import check_groups, check_options, numbers_of
from framework.optim.schedules import Schedule, compressed, learning_rate


def build_optimizers(
    make: Callable[..., Any],
    model: Any,
    schedule: Schedule | Mapping[str, Schedule],
    updates: tf.Variable,
    config: FrozenConfigDict,
    grouped: Grouped | None = None,
) -> Optimizer | dict[str, Optimizer]:
    """Returns the optimizer of a model, or {model: optimizer} of several.

    Args:
      make: (cfg, learning_rate) -> keras optimizer. With several models it gets {model: learning rate} and returns
        {model: keras optimizer}; a model that it leaves out is not trained.
      model: with its variables; or {name: model}.
      schedule: one for all models, or {model: schedule}.
      updates: the counter of updates, which schedules are functions of.
      config: resolved.
      grouped: what `group_parameters` returned, if it was called already.

    Raises:
      UserError: parameters are in half precision, groups or clip.exclude do not fit the parameters, a name is no model,
        or an optimizer has a rate of its own or an option that a step would ignore.
    """
    for group in parse_groups(config.optimizer.groups):
        if group.decay != 1 and config.optimizer.weight_decay == 0:
            raise UserError(
                f"optimizer.groups: '{group.pattern}: decay={group.decay:g}' has no effect with"
                " optimizer.weight_decay=0. Type e.g. --config.optimizer.weight_decay=0.01."
            )
    grouped = group_parameters(model, config) if grouped is None else grouped
    models = paths.models(model)
    schedules = schedules_of(schedule, model)
    trainable = {path: variable for _, own in grouped for path, variable in own.items()}
    _refuse_half_precision(trainable)
    pairs_of: dict[str, list[tuple[Any, dict[str, tf.Variable]]]] = {}
    for group, members in grouped:
        made = {} if group.frozen else _make(make, model, schedules, updates, config, group)
        for setting, without in _without_each(group) if make is not make_optimizer else ():
            _check_heeded(made, _make(make, model, schedules, updates, config, without), group, setting)
        for name, optimizer in made.items():
            prefix = f"{name}/" if isinstance(model, Mapping) else ""
            own = {path.removeprefix(prefix): v for path, v in members.items() if path.startswith(prefix)}
            pairs_of.setdefault(name, [])
            if own:
                pairs_of[name].append((optimizer, own))
    for name in pairs_of.keys() or models.keys():
        if not pairs_of.get(name):
            raise UserError(
                f"nothing of '{name}' is trained: optimizer.groups={config.optimizer.groups} freezes all of it, or it"
                " has no trainable variable. Train a part of it"
                + (", or leave it out of what make_optimizer returns." if isinstance(model, Mapping) else ".")
            )
    for name, pairs in pairs_of.items():
        prefix = f"{name}/" if isinstance(model, Mapping) else ""
        own = {path: variable for path, variable in trainable.items() if path.startswith(prefix)}
        check_groups(name, [optimizer for optimizer, _ in pairs], own, config)
    optimizers = {name: Optimizer(pairs) for name, pairs in pairs_of.items()}
    if make is not make_optimizer and not tf.distribute.has_strategy():
        for optimizer in optimizers.values():
            _trace(optimizer)
    _check_exclude(config.clip.exclude, {path: None for own in optimizers.values() for path in own.trained})
    return optimizers if isinstance(model, Mapping) else optimizers["model"]


def schedules_of(schedule: Schedule | Mapping[str, Schedule], model: Any) -> dict[str, Schedule]:
    """Returns {model: schedule}.

    Raises:
      UserError: a schedule belongs to no model, or a model has no schedule.
    """
    models = paths.models(model)
    schedules = dict(schedule) if isinstance(schedule, Mapping) else dict.fromkeys(models, schedule)
    _check_names("make_schedule", schedules, models)
    for name in models:
        if name not in schedules:
            raise UserError(f"make_schedule returned no schedule for model '{name}'. Add one, or return a single one.")
    return schedules


def _make(
    make: Callable[..., Any],
    model: Any,
    schedules: Mapping[str, Schedule],
    updates: tf.Variable,
    config: FrozenConfigDict,
    group: Group,
) -> dict[str, Any]:
    """Returns {model: keras optimizer} for the parameters of one group."""
    dtype = precision.master_dtype(config.train.precision)
    if group.until:
        schedules = {name: shortened(schedule, group, config.train.duration) for name, schedule in schedules.items()}
    rates = {name: learning_rate(schedule, updates, dtype, group.lr) for name, schedule in schedules.items()}
    scaled = ConfigDict(config.to_dict())
    scaled.optimizer = ConfigDict(settings_of(config.to_dict()["optimizer"], group))
    several = isinstance(model, Mapping)
    try:
        if make is make_optimizer and several:
            made = {name: make(scaled, rate) for name, rate in rates.items()}
        else:
            made = paths.models(make(FrozenConfigDict(scaled), rates if several else rates["model"]))
    except UserError as error:
        if not group.keys:
            raise
        raise UserError(
            f"optimizer.groups: '{group.pattern}': {error} For this group alone, type in it e.g."
            " 'name=sgd' or 'decay=0'."
        ) from error
    _check_names("make_optimizer", made, schedules)
    for name, optimizer in made.items():
        check_optimizer(optimizer)
        if compat.learning_rate_of(optimizer) is not rates[name]:
            raise UserError(
                "make_optimizer returned an optimizer with a learning rate of its own, so the schedule would be logged"
                " and not used. Pass its argument on: learning_rate=learning_rate."
            )
        check_options(optimizer, config)
    return made


def shortened(schedule: Schedule, group: Group, duration: int) -> Schedule:
    """Returns the schedule of a group that ends at `group.until`, of a run of `duration` steps."""
    return compressed(schedule, to_steps(group.until, steps_per_epoch=0, batch_size=1), duration)


def _trace(optimizer: Optimizer) -> None:
    """Traces an update without making it, so that a mistake in an optimizer class is reported before the first step."""
    gradients = {path: tf.TensorSpec(variable.shape, variable.dtype) for path, variable in optimizer.trained.items()}
    tf.function(lambda gradients: optimizer.apply(gradients), autograph=False).get_concrete_function(gradients)


def _without_each(group: Group) -> Iterator[tuple[str, Group]]:
    """Yields each setting of a group that the optimizer must heed, 'decay=2', and the group without it.

    Without an update rule of its own, a group has no keys of that rule either.
    """
    if group.decay != 1:
        yield f"decay={group.decay:g}", dataclasses.replace(group, decay=1.0)
    for name, value in group.keys.items():
        others = {} if name == "name" else {other: group.keys[other] for other in group.keys if other != name}
        yield f"{name}={value}", dataclasses.replace(group, keys=others)


def _check_heeded(made: Mapping[str, Any], without: Mapping[str, Any], group: Group, setting: str) -> None:
    """Raises UserError if an experiment's optimizer is the same without a setting of its group."""
    key = "weight_decay" if setting.startswith("decay=") else setting.partition("=")[0]
    holds = "holds the factor of the group" if key == "weight_decay" else "holds the value of the group"
    for name, optimizer in made.items():
        if (type(optimizer), numbers_of(optimizer)) == (type(without[name]), numbers_of(without[name])):
            raise UserError(
                f"optimizer.groups: '{group.pattern}: {setting}' has no effect: {type(optimizer).__name__}"
                f" of make_optimizer is the same for any cfg.optimizer.{key}. Pass it on, e.g."
                f" {key}=cfg.optimizer.{key}, which {holds}."
            )


def _refuse_half_precision(parameters: Mapping[str, tf.Variable]) -> None:
    for path, variable in parameters.items():
        kind = variable.dtype.name
        if kind in ("float16", "bfloat16"):
            raise UserError(
                f"the parameter '{path}' is {kind}, in which small updates are lost. Its layer was given"
                f" dtype='{kind}': leave that out under --config.train.precision={kind}, or give it"
                f" dtype='mixed_{kind}'."
            )


def _check_exclude(pattern: str, parameters: Collection[str]) -> None:
    if pattern and not any(re.fullmatch(pattern, path) for path in parameters):
        raise UserError(
            f"clip.exclude='{pattern}' matches no trained parameter.{near(pattern, parameters)}"
            f" Parameters: {', '.join(parameters)}. Use --config.clip.exclude='' to leave out none."
        )


def _check_names(function: str, returned: Mapping[str, Any], models: Mapping[str, Any]) -> None:
    for name in returned.keys() - models.keys():
        raise UserError(
            f"{function} returned an entry '{name}', but make_model returned {', '.join(models)}.{near(name, models)}"
        )

"""Checks of a whole config: keys, types, legal values, and then the rules that bind several keys.

    config = base_config()                        # every key with its default
    config = override(config, {'train.compile': 'graph'})
    config = finalize(config)                     # pure: keys, types, ranges, contradictions

`check_choice` and `check_range` check an experiment's own keys with the same messages. Nothing here imports TensorFlow,
so bad input is reported before a device is touched.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from framework.config import former
from framework.config.base import flatten, locked
from framework.config.contradictions import check_contradictions
from framework.config.durations import check_duration
from framework.config.key import Key
from framework.config.keys import FREE_SECTIONS, KEYS
from framework.config.keys.eval import base_split
from framework.config.keys.profile import borders
from framework.errors import UserError, closest, near

_LONGEST_SPLIT = 100  # characters: folders are named after splits
_PLAIN = (bool, int, float, str)


def finalize(config: ConfigDict, own: Collection[str] = (), is_trained: bool = True) -> ConfigDict:
    """Returns a locked copy of a config whose keys, types, values and combinations are legal.

    Args:
      config: of all keys.
      own: sections that a function of the experiment reads, e.g. 'optimizer' if it defines make_optimizer: there a key
        may have an effect whatever the others are; and 'evaluators' if it defines make_evaluators.
      is_trained: False for a look at a trained run, which may evaluate splits other than those of the metrics to watch.

    Raises:
      UserError: names the key, its value, what is legal and what to type.
    """
    flat = flatten(config)
    for name, value in flat.items():
        if name not in KEYS:
            _check_own_key(name, value)
    for name, key in sorted(KEYS.items()):
        if name not in flat:
            raise UserError(f"get_config dropped '{name}'. Start from base_config(), which sets it to {key.default!r}.")
        _check_type(name, flat[name], key.default)
    for name, key in KEYS.items():
        _check_value(name, flat[name], key)
    _check_sequences(flat)
    _check_splits(flat["eval.splits"])
    _check_profile(flat["profile.steps"])
    check_contradictions(flat, own, is_trained)
    return locked(config)


def _check_own_key(name: str, value: Any) -> None:
    """Raises UserError for a key of the experiment that is misplaced, misspelt or of a type config.json cannot hold."""
    former.refuse(name, shown=f"get_config set '{name}'")
    if name.partition(".")[0] not in FREE_SECTIONS:
        raise UserError(
            f"get_config set '{name}', which the framework does not read.{near(name, KEYS)}"
            f" Own keys belong in {' or '.join(f'config.{section}' for section in FREE_SECTIONS)}."
        )
    if meant := closest(name, KEYS, cutoff=0.9):
        raise UserError(f"get_config set '{name}', which is nearly '{meant}'. Write config.{meant}, or another name.")
    check_plain(name, value)


def _check_type(name: str, value: Any, default: Any) -> None:
    if type(value) is not type(default) and not (type(default) is float and type(value) is int):
        raise UserError(
            f"{name}={value!r} is of type {type(value).__name__}, not {type(default).__name__}."
            f" Write e.g. config.{name} = {default!r}."
        )


def _check_value(name: str, value: Any, key: Key) -> None:
    """Raises UserError unless the line of the key allows `value`, which has the right type."""
    former.refuse(name, value)
    if key.choices:
        check_choice(name, value, key.choices)
    elif type(key.default) in (int, float):
        check_range(name, value, key.low, key.high)
    elif key.duration and (value or key.required):
        check_duration(name, value)
    elif key.regex:
        try:
            re.compile(value)
        except re.error as error:
            raise UserError(f"{name}='{value}' is not a regular expression: {error}.") from error


def check_plain(key: str, value: Any) -> None:
    """Raises UserError unless config.json and a command line can hold `value`."""
    for entry in value if type(value) is tuple else (value,):
        if type(entry) not in _PLAIN or (type(entry) is float and not math.isfinite(entry)):
            raise UserError(
                f"get_config set {key}={value!r}. A value is a bool, int, str, finite float or a tuple of these:"
                " it is kept in config.json and typed on command lines."
            )


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `choices`; for an experiment's own keys in its `check_config`."""
    choices = tuple(choices)
    if value not in choices:
        raise UserError(
            f"{key}='{value}' is not one of {', '.join(choices)}.{near(str(value), choices)}"
            f" Use --config.{key}={closest(str(value), choices) or choices[0]}."
        )


def check_range(key: str, value: float, low: float | None, high: float | None) -> None:
    """Raises UserError unless `value` is finite and between `low` and `high`, both included; None = unbounded."""
    above = low is None or value >= low
    below = high is None or value <= high
    # Not math.isfinite, which cannot take an int beyond the largest float.
    if not (above and below and -math.inf < value < math.inf):
        bounds = (f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else "")
        legal = " and ".join(text for text in ("finite" if None in (low, high) else "", *bounds) if text)
        raise UserError(f"{key}={value} is out of range: it must be {legal}. Use --config.{key}=N.")


def _check_sequences(flat: Mapping[str, Any]) -> None:
    for value in flat["schedule.boundaries"]:
        check_duration("schedule.boundaries", value)
    for value in flat["schedule.factors"]:
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise UserError(
                f"schedule.factors={flat['schedule.factors']}: {value!r} is not a number of at least 0."
                ' Type e.g. --config.schedule.factors="(0.1,0.01)".'
            )


def _check_profile(steps: str) -> None:
    try:
        borders(steps)
    except ValueError as error:
        raise UserError(f"profile.steps={error}. Type e.g. --config.profile.steps=100:110.") from error


def _check_splits(splits: tuple[Any, ...]) -> None:
    if not splits:
        raise UserError(
            "eval.splits=() names no split, but a run is judged and its exports are verified on one."
            " Use --config.eval.splits=test."
        )
    for split in splits:
        if type(split) is not str or not re.fullmatch(r"[\w.-]+", base_split(split)):
            raise UserError(
                f"eval.splits={splits}: {split!r} is not a name of letters, digits, '_', '-' and '.'."
                " Type e.g. --config.eval.splits=\"('train_eval','test')\"."
            )
        if len(split) > _LONGEST_SPLIT:
            raise UserError(f"eval.splits has a name of {len(split)} characters: it must be at most {_LONGEST_SPLIT}.")
    if "train" in map(base_split, splits):
        raise UserError(
            "eval.splits contains 'train', which is shuffled and endless."
            " Give the split another name in make_data, e.g. --config.eval.splits=\"('train_eval','test')\"."
        )
    if len(set(splits)) != len(splits):
        raise UserError(f"eval.splits={splits} names a split twice. Name each once.")

"""Puts values on top of an experiment's config: overrides of a command line, a preset, or the config.json of a run.

    config = override(config, ['--config.train.compile=graph'])       # or {'train.compile': 'graph'}
    config = apply_preset(config, 'small', {'small': {'model.hidden': 32}})

A key must exist and a value must have its type: a misspelt key never becomes a new one, and is never ignored. A value
given in Python is stored as it is, without a detour through text.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from framework.config import former
from framework.config.base import flatten, locked, typed
from framework.config.check import check_plain
from framework.errors import UserError, near

_SHOWN = 60  # most characters of a value in a message
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def override(config: ConfigDict, overrides: Mapping[str, Any] | Iterable[str]) -> ConfigDict:
    """Returns a locked copy of `config` with values replaced.

    Args:
      config: as returned by an experiment's `get_config`.
      overrides: texts, ['--config.train.compile=graph', '--noconfig.data.shuffle'], which ml_collections parses to the
        type of each key; or values, {'train.compile': 'graph', 'eval.splits': ('test',)}, of the type of each key.
        Equal values of other types are converted: a NumPy scalar, a whole number for a float, a list or a single
        element for a tuple, a path for a text. A text for a key of another type is parsed like a typed one.

    Raises:
      UserError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    config = locked(config)
    known = flatten(config)
    if isinstance(overrides, Mapping):
        values = {_known(str(key), f"--config.{key}={_short(value)}", known): value for key, value in overrides.items()}
        pairs = [(key, value) for key, value in values.items() if _is_typed(value, known[key])]
        given = {key: value for key, value in values.items() if not _is_typed(value, known[key])}
        config.update_from_flattened_dict({key: _given(key, value, known[key]) for key, value in given.items()})
    else:
        pairs = [_parsed(argument, known) for argument in overrides]
    for key, text in pairs:
        if not _is_utf8(text):
            raise UserError(
                f"--config.{key}={text!r} is not valid UTF-8, the encoding of config.json. Type the value again."
            )
    argv = ["build", *(f"--config.{key}={text}" for key, text in pairs)]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_wrong_value(pairs, known, error)) from error
    return holder.value


def keys_of(overrides: Iterable[str]) -> list[str]:
    """Returns the keys of overrides: ['train.compile'] for ['--config.train.compile=graph']; other texts have none."""
    return [match[2] for match in map(_OVERRIDE.fullmatch, overrides) if match]


def apply_preset(config: ConfigDict, name: str, presets: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """Returns `config` with the values of a preset, the `name` of `--config=file.py:name`; '' changes nothing.

    Raises:
      UserError: there is no such preset, or it sets a key that `config` does not have, or a value of another type.
    """
    if name and name not in presets:
        raise UserError(f"there is no preset '{name}'.{near(name, presets)} Presets: {', '.join(presets) or 'none'}.")
    return _updated(config, presets.get(name, {}), f"preset '{name}'")


def restored(config: ConfigDict, stored: Mapping[str, Any]) -> ConfigDict:
    """Returns `config` with the values of a run's config.json; its lists become tuples again.

    Raises:
      UserError: the file has a key that the experiment no longer has, or a value of another type.
    """
    values = flatten(ConfigDict(stored))
    for key in sorted(values.keys() - flatten(config).keys()):
        raise UserError(f"the run's config.json sets '{key}', which its experiment file no longer has. Put it back.")
    return _updated(config, values, "the run's config.json")


def _updated(config: ConfigDict, values: Mapping[str, Any], where: str) -> ConfigDict:
    known = flatten(config)
    for key, value in values.items():
        if key not in known:
            former.refuse(key, shown=f"{where} sets '{key}'")
            raise UserError(f"{where} sets '{key}', which get_config did not set before.{near(key, known)}")
        try:
            config.update_from_flattened_dict({key: _fitting(value, known[key])})
        except TypeError as error:
            kind = type(known[key]).__name__
            raise UserError(f"{where} sets {key}={_short(value, repr)}, but it is of type {kind}.") from error
    return config


def _is_typed(value: Any, default: Any) -> bool:
    return isinstance(value, str) and type(default) is not str


def _given(key: str, value: Any, default: Any) -> Any:
    """Returns a value in the type of its key; raises UserError if that type cannot hold it unchanged."""
    try:
        is_one = type(default) is tuple and type(plain(value)) in (bool, int, float)
        return _fitting((value,) if is_one else value, default)
    except TypeError as error:
        kind, text = type(default).__name__, _short(value)
        but = "" if kind != "str" and type(value) in (bool, int, float, str, type(None)) else str(error)
        raise UserError(
            f"--config.{key}={text}: '{text}' is not of type {kind}{but and f', but {but}'}."
            f" Type e.g. --config.{key}={typed(default)}."
        ) from error


def _fitting(value: Any, default: Any) -> Any:
    """Returns a value of the type of `default` that equals `value`; raises TypeError if there is none."""
    kind, given = type(default), plain(value)
    if kind is tuple and type(given) in (tuple, list):
        for entry in given:
            if type(entry) not in (bool, int, float, str) or not _is_utf8(entry):
                raise TypeError(f"tuple with {type(entry).__name__}")
        return tuple(given)
    if kind is float and type(given) is int and abs(given) <= sys.float_info.max and float(given) == given:
        return float(given)
    if kind is str and isinstance(given, os.PathLike):
        given = os.fspath(given)
    if type(given) is not kind or not _is_utf8(given):
        raise TypeError(type(value).__name__)
    return given


def plain(value: Any) -> Any:
    """Returns a NumPy scalar as Python's own type, also inside of a tuple or list, and any other value as it is."""
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _is_utf8(value: Any) -> bool:
    """Returns whether files can hold a text: bytes that are not UTF-8 reach Python as lone surrogates."""
    try:
        return not isinstance(value, str) or bool(value.encode()) or not value
    except UnicodeEncodeError:
        return False


def _short(value: Any, shown: Callable[[Any], str] = str) -> str:
    """Returns one short line for a value of any length."""
    text = " ".join(shown(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _parsed(argument: str, known: Mapping[str, Any]) -> tuple[str, str]:
    """Returns key and text of '--config.data.name=x', and of '--config.data.shuffle' or '--noconfig.…', a bool."""
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
        raise UserError(f"'{argument}' is not understood. Overrides look like --config.train.compile=graph.")
    negated, key, text = match[1], _known(match[2], argument, known), match[3]
    if not negated and text is not None:
        return key, text
    if type(known[key]) is not bool:
        raise UserError(
            f"{argument}: '{key}' is not a switch and needs a value. Type e.g. --config.{key}={typed(known[key])}."
        )
    if text is not None:
        raise UserError(f"{argument}: --noconfig.{key} takes no value. Type --noconfig.{key} or --config.{key}=True.")
    return key, "False" if negated else "True"


def _known(key: str, shown: str, known: Mapping[str, Any]) -> str:
    """Returns `key`; raises UserError if it does not exist or a command line cannot set it."""
    if key in known:
        check_plain(key, known[key])
        return key
    former.refuse(key, shown=shown)
    members = sorted(name for name in known if name.startswith(key + "."))
    if members:
        raise UserError(f"--config.{key} is a section, not a value. Set one of its keys: {', '.join(members)}.")
    same_leaf = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = near(key, same_leaf or known) if "." in key or not same_leaf else ""
    if same_leaf and not hint:
        hint = f" Did you mean {' or '.join(repr(name) for name in same_leaf)}?"
    raise UserError(f"{shown}: there is no key '{key}'.{hint} --mode=check prints every key.")


def _wrong_value(pairs: list[tuple[str, str]], known: Mapping[str, Any], error: Exception) -> str:
    """Returns the message for a value that the type of its key cannot hold."""
    for key, text in pairs:
        # The message for a tuple shows all values given for its key, as a list.
        if f"--config.{key}={text}:" in str(error) or f"--config.{key}=[" in str(error):
            kind = type(known[key]).__name__
            example = f"\"('{text}',)\"" if kind == "tuple" else typed(known[key])
            return f"--config.{key}={text}: '{text}' is not of type {kind}. Type e.g. --config.{key}={example}."
    return " ".join(str(error).split())  # a wording of another version of absl or ml_collections

"""Values put on top of an experiment's config: what was typed, a preset, or the config.json of a run.

    config = override(config, ['--config.train.compile=graph'])       # or {'train.compile': 'graph'}
    config = apply_preset(config, 'small', {'small': {'model.hidden': 32}})

A key must exist and a value have its type: a slip never becomes a new key, nor is it passed over.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from framework.config import UserError, check_plain, flatten, locked, near, typed

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def override(config: ConfigDict, overrides: Mapping[str, Any] | Iterable[str]) -> ConfigDict:
    """Returns a locked copy of `config` with values replaced, parsed by ml_collections to the type each key has.

    Args:
      config: as returned by an experiment's `get_config`.
      overrides: {'train.compile': 'graph'} or ['--config.train.compile=graph', '--noconfig.data.shuffle'].

    Raises:
      UserError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    config = locked(config)
    known = flatten(config)
    if isinstance(overrides, Mapping):
        pairs = [(_known(str(key), f"--config.{key}={value}", known), str(value)) for key, value in overrides.items()]
    else:
        pairs = [_parsed(argument, known) for argument in overrides]
    argv = ["build", *(f"--config.{key}={text}" for key, text in pairs)]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_wrong_value(pairs, known, error)) from error
    return holder.value


def apply_preset(config: ConfigDict, name: str, presets: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """Returns `config` with the values of a preset, as in `--config=file.py:name`; '' is the config itself.

    Raises:
      UserError: there is no such preset, or it sets a key that `config` does not have, or one of another type.
    """
    if name and name not in presets:
        raise UserError(f"there is no preset '{name}'.{near(name, presets)} Presets: {', '.join(presets) or 'none'}.")
    return _updated(config, presets.get(name, {}), f"preset '{name}'")


def restored(config: ConfigDict, stored: Mapping[str, Any]) -> ConfigDict:
    """Returns `config` with the values of a run's config.json, where tuples have become lists.

    Raises:
      UserError: the file has a key that the experiment no longer has, or one of another type.
    """
    values = flatten(ConfigDict(stored))
    for key in sorted(values.keys() - flatten(config).keys()):
        raise UserError(f"the run's config.json sets '{key}', which its experiment file no longer has. Put it back.")
    return _updated(
        config, {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}, "the run's config.json"
    )


def _updated(config: ConfigDict, values: Mapping[str, Any], where: str) -> ConfigDict:
    known = flatten(config)
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where} sets '{key}', which get_config did not set before.{near(key, known)}")
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise UserError(f"{where} sets {key}={value!r}, but it is of type {type(known[key]).__name__}.") from error
    return config


def _parsed(argument: str, known: Mapping[str, Any]) -> tuple[str, str]:
    """Key and text of '--config.a.b=text'; of '--config.a.b' and '--noconfig.a.b' where the key is a bool."""
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
    """`key`; raises UserError if there is no such key, or none that a command line can set."""
    if key in known:
        check_plain(key, known[key])
        return key
    members = sorted(name for name in known if name.startswith(key + "."))
    if members:
        raise UserError(f"--config.{key} is a section, not a value. Set one of its keys: {', '.join(members)}.")
    same_leaf = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = near(key, same_leaf or known) if "." in key or not same_leaf else ""
    if same_leaf and not hint:
        hint = f" Did you mean {' or '.join(repr(name) for name in same_leaf)}?"
    raise UserError(f"{shown}: there is no key '{key}'.{hint} --mode=check prints every key.")


def _wrong_value(pairs: list[tuple[str, str]], known: Mapping[str, Any], error: Exception) -> str:
    """The one line for a value that its key's type cannot take."""
    for key, text in pairs:
        # A tuple's message has all the values given for its key, as a list.
        if f"--config.{key}={text}:" in str(error) or f"--config.{key}=[" in str(error):
            kind = type(known[key]).__name__
            example = f"\"('{text}',)\"" if kind == "tuple" else typed(known[key])
            return f"--config.{key}={text}: '{text}' is not of type {kind}. Type e.g. --config.{key}={example}."
    return " ".join(str(error).split())  # another version of absl or ml_collections may word it otherwise

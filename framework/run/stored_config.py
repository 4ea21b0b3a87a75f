"""config.json of a run folder: the values that a run is trained with, and the changes since it was begun.

    stored = read(workdir)                  # None in a folder without a run
    stored.values, stored.history           # {'seed': 0, 'train': {…}, …}, (Change(40, 'train.duration', …),)
    stored.differing(config)                # {'seed': (0, 1)}: the keys that another config changes
    stored.hashes()                         # of the values now, and of those before each change

A checkpoint records the hash of the config that it was trained with, so that a flipped digit in config.json is found.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from framework.config import DURATIONS, flatten, former
from framework.config.handling import HANDLING
from framework.errors import UserError
from framework.files import CorruptError, load_json, unreachable, write_json

# Keys that may differ in a run that continues. The folder of the data: hashes check what it holds. The devices that
# share a step: the global batches are the same, sums up to rounding.
MAY_DIFFER = (
    *HANDLING,
    "data.dir",
    *(f"runtime.{name}" for name in ("strategy", "devices", "virtual_devices", "all_reduce", "parameter_servers")),
)

ABSENT = "absent"  # in place of a value: there is no such key
FACT = "config"  # key of a checkpoint's facts, whose value is the first of `hashes`

_NAME = "config.json"
_HISTORY = "history"  # key of config.json beside those of the config


@dataclasses.dataclass(frozen=True)
class Change:
    """A value that changed at a step of the run: `old` before it, `new` from it on; ABSENT for no such key."""

    step: int
    key: str
    old: Any
    new: Any


@dataclasses.dataclass(frozen=True)
class StoredConfig:
    """The content of config.json, with former keys and values mapped to those of today.

    Attributes:
      values: of all keys, nested, as JSON has them: tuples are lists.
      history: the changes that led to these values, oldest first.
    """

    values: dict[str, Any]
    history: tuple[Change, ...] = ()

    def differing(self, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
        """Returns {key: (value here, value in `config`)} of keys that differ, sorted; a missing key is 'absent'."""
        ours = flatten(ConfigDict(self.values))
        theirs = flatten(ConfigDict(_as_json(config.to_dict())))
        pairs = {key: (ours.get(key, ABSENT), theirs.get(key, ABSENT)) for key in sorted({*ours, *theirs})}
        return {key: (own, other) for key, (own, other) in pairs.items() if own != other}

    def is_longer(self, config: ConfigDict, unknown: Sequence[str] = ()) -> bool:
        """Returns whether `config` differs in train.duration, and otherwise in durations at most.

        Args:
          config: finalized.
          unknown: keys whose value is not known yet.
        """
        differing = {*self.differing(config)} - {*MAY_DIFFER, *unknown}
        return "train.duration" in differing and differing <= {*DURATIONS, "schedule.boundaries"}

    def hashes(self) -> list[str]:
        """Returns the hash of the values, then of the values before each change, newest first; without MAY_DIFFER."""
        values = flatten(ConfigDict(self.values))
        hashes = [_hash(values)]
        for change in reversed(self.history):
            values = {**values, change.key: change.old}
            if change.old == ABSENT:
                del values[change.key]
            hashes.append(_hash(values))
        return hashes

    def changed(self, config: ConfigDict, step: int) -> "StoredConfig":
        """Returns the content of config.json of a run that continues with `config` from `step` on."""
        changes = (
            Change(step, key, old, new)
            for key, (old, new) in self.differing(config).items()
            if key not in MAY_DIFFER and ABSENT not in (old, new)
        )
        return StoredConfig(of(config).values, (*self.history, *changes))


def of(config: ConfigDict) -> StoredConfig:
    """Returns the content of config.json of a new run."""
    return StoredConfig(_as_json(config.to_dict()))


def read(workdir: Path) -> StoredConfig | None:
    """Reads the config.json of a run folder; None if there is none.

    Raises:
      UserError: the file cannot be read, or is not a config.
    """
    path = workdir / _NAME
    try:
        values = load_json(path)
    except FileNotFoundError:
        if why := unreachable(path):
            raise UserError(f"{path} cannot be reached: {why}. Put it back, or use another --workdir.") from None
        return None
    except CorruptError as error:
        raise UserError(f"{path} cannot be read: {error}. Put it back, or use another --workdir.") from error
    try:
        history = tuple(Change(**change) for change in values.pop(_HISTORY, ()))
        flatten(ConfigDict(values))
        if any((type(change.step), type(change.key)) != (int, str) for change in history):
            raise ValueError("a change has no step or no key")
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not the config of a run. Put it back, or use another --workdir.") from error
    return _by_the_keys_of_today(values, history)


def write(workdir: Path, stored: StoredConfig) -> None:
    """Writes config.json, with the history at its end if there is one."""
    history = [dataclasses.asdict(change) for change in stored.history]
    write_json(workdir / _NAME, stored.values | ({_HISTORY: history} if history else {}))


def unlike(config: ConfigDict, other: ConfigDict) -> dict[str, Any]:
    """Returns {key: value} of `config` where `other` has another value or no such key; tuples are lists, as in JSON."""
    theirs = flatten(other)
    unlike = {key: value for key, value in flatten(config).items() if key not in theirs or theirs[key] != value}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in unlike.items()}


def refuse_altered(workdir: Path, stored: StoredConfig | None, facts: Mapping[str, Any]) -> None:
    """Raises UserError unless config.json has the values that a checkpoint was trained with.

    Args:
      workdir: the run folder.
      stored: its config.json, if there is one.
      facts: what the checkpoint records; a checkpoint of an older version has no hash.
    """
    if stored is None or facts.get(FACT) in (None, *stored.hashes()):
        return
    raise UserError(
        f"{workdir / _NAME} is not what the checkpoints of the run were trained with: a value in it was changed."
        " Put the file back; overrides.txt has what was typed."
    )


def _by_the_keys_of_today(values: dict[str, Any], history: tuple[Change, ...]) -> StoredConfig:
    """Returns the config by the keys of today; its history has the former ones, so that older hashes stay known."""
    flat = flatten(ConfigDict(values))
    today = _as_json(former.renamed(flat))
    changes = [
        Change(0, key, flat.get(key, ABSENT), today.get(key, ABSENT))
        for key in sorted({*flat, *today})
        if flat.get(key, ABSENT) != today.get(key, ABSENT)
    ]
    for change in changes:
        *sections, name = change.key.split(".")
        owner = values
        for section in sections:
            owner = owner.setdefault(section, {})
        owner.pop(name, None)
        if change.new != ABSENT:
            owner[name] = change.new
    return StoredConfig(values, (*history, *changes))


def _hash(values: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in values.items() if key not in MAY_DIFFER}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))

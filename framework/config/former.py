"""Former keys and values of the config: mapped when a stored config.json is read, refused when they are typed or set.

    renamed({'data.remainder': 'carry', …})            # {'data.remainder': 'wrap', …}
    refuse('data.remainder', 'carry')                  # UserError: data.remainder='carry' is called 'wrap' now. …

`FORMER` is the one table, old -> new. To rename a key or a value, change its line in `keys/` and add an entry here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from framework.config.base import typed
from framework.config.keys import KEYS
from framework.errors import UserError


@dataclasses.dataclass(frozen=True)
class Former:
    """What became of a key.

    Attributes:
      now: the name of the key now; '' for a key that is gone.
      values: {former value: the value now}; other values stay.
      why: for a key that is gone, what decides in its place.
    """

    now: str
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    why: str = ""


_BEST = "the metric says whether its minimum or its maximum is best; of a loss it is the minimum"

FORMER: Mapping[str, Former] = {
    "checkpoint.best_mode": Former("", why=_BEST),
    "data.remainder": Former("data.remainder", {"carry": "wrap"}),
    "early_stopping.mode": Former("", why=_BEST),
}


def renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a stored config by the keys of today.

    Args:
      stored: {dotted key: value}. A key of the framework that came later gets its default: until then every run did
        what the default says.
    """
    values = {}
    for key, value in stored.items():
        former = FORMER.get(key, Former(key))
        if former.now:
            values[former.now] = former.values.get(value, value) if isinstance(value, str) else value
    return {name: key.default for name, key in KEYS.items()} | values


def fate(key: str) -> str:
    """Returns what became of a key that has another name now, or none."""
    former = FORMER[key]
    if former.now:
        return f"'{key}' is called '{former.now}' now. Use --config.{former.now}."
    return f"the key '{key}' is gone: {former.why}. Leave it out."


def refuse(key: str, value: Any = None, shown: str = "") -> None:
    """Raises UserError if `key` is a former key or `value` a former value of it.

    Args:
      key: dotted.
      value: as given; None if it does not matter.
      shown: the words of the user, for the message; '' for 'key=value'.
    """
    former = FORMER.get(key)
    if former is None:
        return
    shown = shown or f"{key}={value!r}"
    if former.now != key:
        raise UserError(f"{shown}: {fate(key)}")
    if isinstance(value, str) and value in former.values:
        now = former.values[value]
        raise UserError(f"{shown} is called {now!r} now. Use --config.{key}={typed(now)}.")

"""Parameter groups: which parameters are frozen, or have an update rule, a rate, a decay or an end of their own.

    groups = parse_groups(('.*/bias: name=sgd lr=64 decay=0', 'whiten/bias: until=3epochs', 'embedding/.*: frozen'))
    for group, members in assign_groups(groups, paths.trainable(model)): …    # last: what no pattern covers
    settings_of(config.optimizer, group)                                      # {'name': 'sgd', 'weight_decay': 0.0, …}

Nothing here imports TensorFlow, so bad input is reported before a device is touched.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from framework.config.check import check_choice, check_range
from framework.config.durations import check_duration
from framework.config.keys.optimizer import KEYS
from framework.config.listing import legal
from framework.errors import UserError, closest, near


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose whole path matches `pattern`.

    Attributes:
      pattern: regex.
      frozen: never updated.
      lr: factor of the learning rate.
      decay: factor of the weight decay.
      until: duration in which the group passes through the whole schedule, after which its rate is 0; '' = the run.
      keys: {key of `optimizer`: value in place of the one of the config}.
    """

    pattern: str
    frozen: bool = False
    lr: float = 1.0
    decay: float = 1.0
    until: str = ""
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FACTORS = ("lr", "decay")
# Not the weight decay, of which a group has a factor.
_KEYS = tuple(name for name in KEYS if name not in ("weight_decay", "table_gradients", "groups"))
_SETTINGS = (*_FACTORS, "until", "frozen", *_KEYS)
_EXAMPLE = "Type e.g. '.*/bias: decay=0', '.*/kernel: lr=0.1 decay=2', 'head/.*: name=adamw' or 'head/.*: frozen'."


def parse_groups(texts: Sequence[str]) -> tuple[Group, ...]:
    """Returns the groups of `optimizer.groups`; one group of everything if there are no texts.

    Args:
      texts: 'REGEX: SETTINGS' each; settings after the last ':' are 'frozen', or some of 'lr=FACTOR', 'decay=FACTOR',
        'until=DURATION' and 'KEY=VALUE' of keys of `optimizer`.

    Raises:
      UserError: a text is not of this form; the message names the first such text.
    """
    return tuple(_parse(text) for text in texts) or (Group(".*"),)


def _parse(text: str) -> Group:
    pattern, _, settings = (half.strip() for half in str(text).rpartition(":"))
    words = settings.split()
    if not pattern or not words:
        raise _error(text, "is not a regex, ':' and settings.")
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as problem:
        raise _error(text, f"has a bad regex ({problem}).") from None
    if words == ["frozen"]:
        return Group(pattern, frozen=True)
    values: dict[str, Any] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in _SETTINGS:
            raise _error(
                text, f"has the setting '{name}', which is not one of {', '.join(_SETTINGS)}.{near(name, _SETTINGS)}"
            )
        if word == "frozen":
            raise _error(text, "is frozen and has other settings, which then do nothing.")
        if name == "frozen":
            raise _error(text, f"has '{word}'; it takes no number.")
        if name in values:
            raise _error(text, f"sets '{name}' twice.")
        values[name] = _value(text, name, number)
    keys = {name: values.pop(name) for name in _KEYS if name in values}
    return Group(pattern, keys=keys, **values)


def _value(text: str, name: str, value: str) -> Any:
    """Returns the value of a setting in the type that it has."""
    if name in _FACTORS:
        return _factor(text, name, value)
    if name == "until":
        try:
            check_duration(name, value)
        except UserError:
            raise _error(text, f"has until='{value}', which is not a duration such as 3epochs or 40%.") from None
        return value
    key = KEYS[name]
    try:
        if isinstance(key.default, bool):
            return {"True": True, "False": False}[value]
        typed = type(key.default)(value)
        check_choice(name, typed, key.choices) if key.choices else check_range(name, typed, key.low, key.high)
    except (KeyError, ValueError, UserError):
        raise _error(text, f"has {name}='{value}'; legal: {legal('optimizer', key)}.") from None
    return typed


def _factor(text: str, name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise _error(text, f"has {name}='{number}', which is not a finite number of at least 0.")
    return value


def _error(text: str, problem: str) -> UserError:
    return UserError(f"optimizer.groups: '{text}' {problem} {_EXAMPLE}")


def settings_of(section: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """Returns the section `optimizer` of the config as it is for one group.

    If the group has another update rule, keys that this rule does not read get their defaults.
    """
    values = {**section, **group.keys, "weight_decay": section["weight_decay"] * group.decay}
    for name, key in KEYS.items():
        is_read = values["name"] in key.only_with.get("name", (values["name"],))
        if "name" in group.keys and name in _KEYS and name not in group.keys and not is_read:
            values[name] = key.default
    return values


def assign_groups(groups: Sequence[Group], paths: Collection[str]) -> list[tuple[Group, list[str]]]:
    """Returns each group with its paths, in order, then one without settings of the paths that no pattern covers.

    Raises:
      UserError: several patterns cover a path, or a pattern covers none; the message names all of them.
    """
    members = [[path for path in paths if re.fullmatch(group.pattern, path)] for group in groups]
    problems = []
    for path in paths:
        patterns = [group.pattern for group, covered in zip(groups, members, strict=True) if path in covered]
        if len(patterns) > 1:
            problems.append(f"{_listed(patterns)} all cover '{path}'")
    for group, covered in zip(groups, members, strict=True):
        if paths and not covered:
            close = closest(group.pattern, paths)
            problems.append(f"'{group.pattern}' covers nothing" + (f" (did you mean '{close}'?)" if close else ""))
    if problems:
        raise UserError(
            f"optimizer.groups: {'; '.join(problems)}. Each pattern must cover a parameter, and no parameter may be in"
            " two groups; those in none have lr=1 and decay=1."
        )
    rest = [path for path in paths if not any(path in covered for covered in members)]
    return [*zip(groups, members, strict=True), *([(Group("the rest"), rest)] if rest else [])]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(f"'{text}'" for text in texts)

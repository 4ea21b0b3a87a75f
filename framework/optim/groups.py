"""Parameter groups: which parameters are frozen, or have a learning rate and a decay of their own.

    groups = parse_groups(('.*/bias: decay=0', 'head/kernel: lr=0.1 decay=2', 'embedding/.*: frozen'))
    for group, members in assign_groups(groups, paths.trainable(model)): …    # last: what no pattern covers

Nothing here imports TensorFlow, so bad input is reported before a device is touched.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Sequence

from framework.errors import UserError, closest, near


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose whole path matches `pattern`.

    Attributes:
      pattern: regex.
      frozen: never updated.
      lr: factor of the learning rate.
      decay: factor of the weight decay.
    """

    pattern: str
    frozen: bool = False
    lr: float = 1.0
    decay: float = 1.0


_SETTINGS = ("lr", "decay", "frozen")
_EXAMPLE = "Type e.g. '.*/bias: decay=0', '.*/kernel: lr=0.1 decay=2' or 'head/.*: frozen'."


def parse_groups(texts: Sequence[str]) -> tuple[Group, ...]:
    """Returns the groups of `optimizer.groups`; one group of everything if there are no texts.

    Args:
      texts: 'REGEX: SETTINGS' each; settings after the last ':' are 'frozen', or 'lr=FACTOR', 'decay=FACTOR' or both.

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
    values: dict[str, float] = {}
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
        values[name] = _factor(text, name, number)
    return Group(pattern, lr=values.get("lr", 1.0), decay=values.get("decay", 1.0))


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


def assign_groups(groups: Sequence[Group], paths: Collection[str]) -> list[tuple[Group, list[str]]]:
    """Returns each group with its paths, in order; the last group, without settings, has what no pattern covers.

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

"""Keys of `profile`: a look at what takes the time of a step."""

import re

from framework.config.key import Key

KEYS = {
    "steps": Key(
        "", "A:B = a profiler trace of the steps after step A, up to step B, e.g. 100:110, in tensorboard/; '' = none"
    ),
}


def borders(steps: str) -> tuple[int, int] | None:
    """Returns (A, B) of `profile.steps`; None for ''.

    Raises:
      ValueError: it is not A:B with 1 <= A < B.
    """
    if not steps:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,14}):([1-9][0-9]{0,14})", steps)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"'{steps}' is not A:B with 1 <= A < B")
    return int(match[1]), int(match[2])

"""Keys of `prune`: weights of small magnitude become 0 during training and stay 0."""

from collections.abc import Mapping
from typing import Any

from framework.config.key import Key

_MADE = {"schedule": ("polynomial", "constant")}

KEYS = {
    "sparsity": Key(
        0.0,
        "share of each pruned variable that is 0 in the end, e.g. 0.8; 0 = off",
        low=0,
        high=0.999999,
        only_with=_MADE,
    ),
    "schedule": Key(
        "polynomial",
        "polynomial = a cubic curve from `initial` at `begin` to `sparsity` at `end`; constant = `sparsity` at once;"
        " keep = what is 0 at the start stays 0",
        choices=("polynomial", "constant", "keep"),
    ),
    "initial": Key(0.0, "share that is 0 at `begin`", low=0, high=0.99, only_with={"schedule": ("polynomial",)}),
    "begin": Key("10%", "updates before the first masks; '' = none", duration=True, only_with=_MADE),
    "end": Key(
        "75%",
        "updates before the last masks, which stay until the end of the run",
        duration=True,
        required=True,
        only_with=_MADE,
    ),
    "every": Key("1%", "updates between two masks", duration=True, required=True, only_with=_MADE),
    "include": Key("", "regex of the pruned parameters; '' = all of rank 2 or more, but biases", regex=True),
    "exclude": Key("", "regex of parameters that are not pruned, e.g. 'head/.*'; '' = none", regex=True),
    "pattern": Key(
        "any",
        "any = the smallest weights of a variable; M:N = the M smallest of each N weights in a row along the inputs",
        choices=("any", "1:2", "1:4", "2:4", "4:8"),
        only_with=_MADE,
    ),
}


def is_pruned(section: Mapping[str, Any]) -> bool:
    """Returns whether a section `prune` prunes anything."""
    return section["sparsity"] > 0 or section["schedule"] == "keep"


def pattern(text: str) -> tuple[int, int] | None:
    """Returns (zeros, of how many weights) of `prune.pattern`; None for 'any'."""
    zeros, _, size = text.partition(":")
    return (int(zeros), int(size)) if size else None

"""One line for each key of the config: its default, its meaning, its legal values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

LARGEST = 2**31 - 1  # the largest int32


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
      default: also says the type: bool, int, float, str or tuple.
      doc: meaning of the value, with its unit; a phrase that reads after the name of the key.
      choices: the legal texts; () for a key that is no choice.
      low: the smallest legal number; None = unbounded, but finite.
      high: the largest legal number; None = unbounded, but finite.
      duration: the text is a duration: '100 steps', '2 epochs', '60000 examples', '5%'.
      required: of a duration: '' (never) is not legal.
      regex: the text is a regular expression; '' matches nothing.
      only_with: {key of the same section: values} without which this key has no effect and is refused.
    """

    default: Any
    doc: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    duration: bool = False
    required: bool = False
    regex: bool = False
    only_with: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

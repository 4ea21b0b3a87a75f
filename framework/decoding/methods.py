"""The methods of decoding: how the next token follows from the probabilities of all tokens.

Greedy()                                           # the most probable token
Beam(4, length_penalty=0.6, n_best=2)              # the most probable sequences that a search over 4 prefixes meets
Sample(temperature=0.8, top_k=40, top_p=0.95)      # a random token
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

from framework.errors import UserError

_LOWEST = 1e-30  # temperature: the quotient of a logit by a smaller one may be no number of float32


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Takes the most probable token at each position; of equal ones, the one of the lowest id."""


@dataclasses.dataclass(frozen=True)
class Beam:
    """Extends the `width` best prefixes at each position, and keeps the `n_best` best ended sequences.

    The score of a sequence is log p / ((5 + n) / 6) ** length_penalty, with n its tokens, the end included and a
    prompt not (GNMT: Wu et al., 2016, "Google's neural machine translation system", without its coverage penalty).
    A prefix ends if its end token is among the `width` best extensions. A search of width 1 is greedy decoding.

    Attributes:
      width: prefixes that are extended, at least 1.
      length_penalty: 0 compares log-probabilities; the larger, the longer the best sequence.
      n_best: sequences returned for each example, 1 to `width`, all different, the best first.
    """

    width: int
    length_penalty: float = 0.0
    n_best: int = 1

    def __post_init__(self) -> None:
        _check(self, "width", numbers.Integral, lambda width: width >= 1, "at least 1")
        _check(self, "n_best", numbers.Integral, lambda n: 1 <= n <= self.width, f"1 to the width, {self.width}")
        _check(self, "length_penalty", numbers.Real, lambda penalty: 0 <= penalty < math.inf, "at least 0")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws each token: its probability is the softmax of logits / temperature over the tokens that are left.

    `top_k` leaves the k most probable tokens (Fan et al., 2018). Of these, `top_p` leaves the fewest most probable
    ones whose probabilities sum to p or more (nucleus sampling: Holtzman et al., 2020). Of equally probable tokens the
    lower ids are left. A draw depends on (seed, example, position) alone.

    Attributes:
      temperature: at least 1e-30.
      top_k: at least 1; 0 leaves all.
      top_p: above 0, at most 1; 1 leaves all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        above_0 = f"at least {_LOWEST:g} (Greedy() is its limit)"
        _check(self, "temperature", numbers.Real, lambda value: _LOWEST <= value < math.inf, above_0)
        _check(self, "top_k", numbers.Integral, lambda k: k >= 0, "at least 1, or 0 for all tokens")
        _check(self, "top_p", numbers.Real, lambda p: 0 < p <= 1, "above 0 and at most 1")


Method = Greedy | Beam | Sample


def _check(method: Any, name: str, kind: type, is_right: Callable[[Any], bool], wanted: str) -> None:
    value = getattr(method, name)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = "a whole number" if kind is numbers.Integral else "a number"
    elif is_right(value):
        return
    raise UserError(f"{type(method).__name__}({name}={value!r}): {name} must be {wanted}.")

"""The errors that end a launch with one line instead of a traceback, and hints for words that are misspelt.

    raise UserError(f"--mode={mode} is not one of {', '.join(MODES)}.{near(mode, MODES)}")

Every other exception is a fault of the framework and keeps its traceback. Nothing here imports TensorFlow.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. `launch.py` prints the message as one line and exits with status 2."""


class RunError(Exception):
    """A run ended by an outside cause, such as a full disk. `launch.py` prints one line and exits with status 1."""


class MachineError(RunError):
    """A disk or a network failed: once that is mended, the same command goes on."""


class DataError(MachineError):
    """A source that can no longer be read."""


class NonFiniteError(RunError, ArithmeticError):
    """The loss or a gradient became NaN or infinite, and the run may not or cannot continue."""


def closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns the one of `words` most similar to `word`, ignoring case; '' if no similarity reaches `cutoff`."""
    by_lower = {known.lower(): known for known in words}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else ""


def near(word: str, words: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `words`, or an empty string."""
    close = closest(word, words)
    return f" Did you mean '{close}'?" if close else ""

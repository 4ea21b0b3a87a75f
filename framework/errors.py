"""The errors that end a launch with one line instead of a traceback, and hints for words that are misspelt.

    raise UserError(f"--mode={mode} is not one of {', '.join(MODES)}.{near(mode, MODES)}")

Every other exception is a fault of the framework and keeps its traceback. Nothing here imports TensorFlow.
"""

import difflib
import re
from collections.abc import Iterable

XLA_LISTS = "Stack trace for op definition"  # begins a list of XLA's in a message


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


def said_by_tensorflow(message: str) -> str:
    """Returns the message of an error of TensorFlow or Keras without the stack and the names of nodes around it."""
    for end in ("Call arguments received by", XLA_LISTS, "\nTraceback (most recent call last):"):
        message = message.partition(end)[0]
    message = re.sub(r"\{\{(function_)?node [^}]*\}\}|\[\[\{\{node.*|\[Op:\w+\]|(?m:^\s*File \".*\n.*$)", "", message)
    around = (
        r"Graph execution error:|Detected at node.*most recent call last\):|<stack traces unavailable>|in user code:"
    )
    return re.sub(around, "", message).strip()

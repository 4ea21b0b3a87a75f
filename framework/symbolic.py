"""Python code of an experiment that needs the value of a tensor while it is traced, told in one line.

    with explained("the schedule"):
        tf.function(schedule, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int64))
    # UserError: exp.py:14: `return 1e-3 if update < 3 else 1e-4` needs the value of a tensor, …

Every compile mode traces an experiment's functions once, so such code is refused alike in all of them.
"""

import contextlib
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from framework.config import UserError

# What Python, NumPy and TensorFlow say where a tensor without a value stands in place of a number.
_NEEDS_A_VALUE = re.compile(r"SymbolicTensor|[Ss]ymbolic `?tf\.Tensor|Tensor is unhashable")
_ADVICE = {
    "as a Python `bool`": "Write tf.where(condition, a, b) for a choice of numbers, or tf.cond(condition, f, g).",
    "terating": "Write tf.unstack, tf.map_fn or tf.while_loop instead of a Python loop.",
}
_OTHERWISE = "Write it with TensorFlow's functions, e.g. tf.cast, tf.cos or tf.gather."

_LONGEST = 100  # characters of source shown
_ELSEWHERE = tuple(
    f"{Path(folder).resolve()}/"
    for folder in (
        str(Path(__file__).parent),
        *map(sysconfig.get_paths().__getitem__, ("stdlib", "purelib", "platlib")),
    )
)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raises UserError instead of what TensorFlow raises for Python code that needs the value of a tensor.

    Args:
      what: that is traced, e.g. 'the loss'.
    """
    try:
        yield
    except Exception as error:
        if told := explain(error, what):
            raise told from error
        raise


def explain(error: BaseException, what: str) -> UserError | None:
    """The line for an error of Python code that needs the value of a tensor; None for any other error."""
    message = str(error)
    if isinstance(error, UserError) or not (
        isinstance(error, tf.errors.OperatorNotAllowedInGraphError) or _NEEDS_A_VALUE.search(message)
    ):
        return None
    advice = next((text for sign, text in _ADVICE.items() if sign in message), _OTHERWISE)
    return UserError(
        f"{place_of(error)} needs the value of a tensor, which has none while {what} is compiled. {advice}"
    )


def place_of(error: BaseException) -> str:
    """'FILE:LINE: `SOURCE`' of the innermost line of an error that is neither the framework's nor a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)]
    if not (own or frames):
        return type(error).__name__
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}: `{textwrap.shorten(frame.line or '', _LONGEST)}`"


def _is_own(file: str) -> bool:
    """Whether a file is neither below the framework nor installed nor made up."""
    return Path(file).exists() and not str(Path(file).resolve()).startswith(_ELSEWHERE)

"""The one helper through which everything is compiled.

    block = Compiled(train_block, mode='xla', name='train')
    block(k)
    block.traces, block.compilations        # 1, 1: a healthy function

TensorFlow says nothing when XLA compiles a traced function again, so both are counted: traces by the Python body,
compilations by the executable memory that a call leaves behind.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

MODES = ("xla", "graph", "eager")

_STATUS = Path("/proc/self/status")


class Compiled:
    """`fn` compiled by `mode`: 'xla' (one XLA program), 'graph' (tf.function) or 'eager' (as it is).

    With `in_parts`, 'xla' is what `fn` does for parts of itself, and the whole is a tf.function.

    Attributes:
      traces: times the Python body was traced; under 'eager', 0.
      compilations: times XLA compiled it; None where that cannot be seen (no /proc).
    """

    def __init__(self, fn: Callable[..., Any], mode: str, name: str, in_parts: bool = False) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is not one of {MODES}")
        self.mode, self.name = mode, name
        self.traces = 0
        self.compilations: int | None = 0 if mode != "xla" or _STATUS.exists() else None

        def traced(*args: Any) -> Any:
            self.traces += 1
            return fn(*args)

        # Autograph stays off: loops are written with tf.while_loop, so what is compiled is what is read.
        compiled = mode == "xla" and not in_parts
        self.function = None if mode == "eager" else tf.function(traced, jit_compile=compiled or None, autograph=False)
        self._fn = fn

    def __call__(self, *args: Any) -> Any:
        if self.function is None:
            return self._fn(*args)
        if self.mode != "xla" or self.compilations is None:
            return self.function(*args)
        before = _executable_kilobytes()
        result = self.function(*args)
        self.compilations += _executable_kilobytes() > before
        return result


def _executable_kilobytes() -> int:
    """Size of this process's executable mappings, where XLA's CPU compiler puts its code (30 microseconds a look)."""
    with _STATUS.open("rb") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(b"VmLib:"))

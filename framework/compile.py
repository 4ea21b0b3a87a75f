"""The one helper through which everything is compiled.

    block = Compiled(train_block, mode='xla', name='train')
    block(k)
    block.traces, block.compilations        # 1, 1: a healthy function

TensorFlow says nothing when XLA compiles a traced function again, so both are counted: traces by the Python body,
compilations by the executable memory that a call leaves behind.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from framework.config.keys import KEYS

MODES = tuple(mode for mode in KEYS["train.compile"].choices if mode != "auto")

_HANDFUL = 6
_STATUS = Path("/proc/self/status")
_local = threading.local()
_traced_by_xla = 0  # how many programs `jit` has made, in any thread: those of replicas have their own


def programs(mode: str, in_parts: bool) -> tuple[str, ...]:
    """What of a step is an XLA program by itself: 'whole', 'gradients', 'update' or nothing.

    Args:
      mode: one of MODES, or 'auto', which is a graph until `tune` has chosen.
      in_parts: the step is shared by replicas, around which XLA cannot compile.
    """
    if mode == "xla":
        return ("gradients",) if in_parts else ("whole",)
    return {"xla_gradients": ("gradients",), "xla_update": ("update",)}.get(mode, ())


def jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as an XLA program of its own inside of a graph; made anew for each trace, it is traced once."""

    def traced(*args: Any) -> Any:
        global _traced_by_xla
        _traced_by_xla += 1
        with _in_xla():
            return fn(*args)

    return tf.function(traced, jit_compile=True, autograph=False)


def is_in_xla() -> bool:
    """Whether what this thread traces becomes part of an XLA program of `jit` or `Compiled`."""
    return getattr(_local, "is_in_xla", False)


@contextlib.contextmanager
def _in_xla(is_so: bool = True) -> Iterator[None]:
    before, _local.is_in_xla = is_in_xla(), is_so or is_in_xla()
    try:
        yield
    finally:
        _local.is_in_xla = before


class Compiled:
    """`fn` compiled by `mode`: a tf.function, of which XLA compiles what `programs` says, or 'eager' (as it is).

    Attributes:
      mode: one of MODES.
      programs: what of `fn` the mode makes an XLA program; all but 'whole' is made by `fn` itself, with `jit`.
      traces: times the Python body was traced; under 'eager', 0.
      compilations: calls in which XLA compiled; None where that cannot be seen (no /proc).
      calls: all of them.
    """

    def __init__(self, fn: Callable[..., Any], mode: str, name: str, in_parts: bool = False) -> None:
        mode = "graph" if mode == "auto" else mode
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is not one of {MODES}")
        self.mode, self.name, self.programs = mode, name, programs(mode, in_parts)
        self.traces = self.calls = 0
        self.compilations: int | None = None if self.programs and not _STATUS.exists() else 0
        # A graph may have a program too, such as that of a large loss; whoever traces it finds out.
        self._has_programs = bool(self.programs)

        compiled = "whole" in self.programs

        def traced(*args: Any) -> Any:
            self.traces += 1
            before = _traced_by_xla
            with _in_xla(compiled):
                result = fn(*args)
            self._has_programs |= _traced_by_xla > before
            return result

        # Autograph stays off: loops are written with tf.while_loop, so what is compiled is what is read.
        self._make = lambda: tf.function(traced, jit_compile=compiled or None, autograph=False)
        self.function = None if mode == "eager" else self._make()
        self._fn = fn

    def forget(self) -> None:
        """Makes the next call trace anew: what was traced computes with constants that are others now."""
        if self.function is not None and self.traces:
            self.function, self.traces, self.calls = self._make(), 0, 0
            self.compilations = None if self.compilations is None else 0

    @property
    def has_recompiled(self) -> bool:
        """Whether once was not enough."""
        return max(self.traces, self.compilations or 0) > 1

    @property
    def keeps_compiling(self) -> bool:
        """Whether it was compiled more than a handful of times, and not seldom."""
        return max(self.traces, self.compilations or 0) > max(_HANDFUL, self.calls / 4)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.function is None:
            return self._fn(*args)
        # Without programs not: what else makes code, such as oneDNN, is no compilation.
        looks = _STATUS.exists() and (self._has_programs or not self.traces)
        before = _executable_kilobytes() if looks else 0
        result = self.function(*args)
        if self._has_programs:
            self.compilations = (self.compilations or 0) + (_executable_kilobytes() > before) if looks else None
        return result


def _executable_kilobytes() -> int:
    """Size of this process's executable mappings, where XLA's CPU compiler puts its code (30 microseconds a look)."""
    with _STATUS.open("rb") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(b"VmLib:"))

"""Compiles functions by `train.compile` and counts how often TensorFlow traces and XLA compiles them.

    block = Compiled(train_block, mode='xla', name='train')
    block(k)
    block.traces, block.compilations        # 1, 1: a healthy function
    block.why_traced                        # '': of a second trace, 'k: int32 [] before, int32 [3] now'

TensorFlow does not report when XLA compiles a traced function again. So calls of the Python body count traces, and the
executable memory that a call leaves behind counts compilations.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from framework import compat
from framework.config.keys import KEYS

MODES = tuple(mode for mode in KEYS["train.compile"].choices if mode != "auto")

HANDFUL = 6  # traces or compilations that a healthy function may have
_STATUS = Path("/proc/self/status")
_MOST_SHOWN = 3  # arguments that a message names
_LONGEST_VALUE = 40  # characters of a Python value in a message
_BESIDE = "no argument changed, so the function reads a Python value, a variable or a strategy that did"
_local = threading.local()
_traced_by_xla = 0  # programs that `jit` has made, in all threads: replicas trace in threads of their own


def programs(mode: str, in_parts: bool) -> tuple[str, ...]:
    """Returns which stages of a step are XLA programs of their own: 'whole', 'gradients', 'update' or none.

    Args:
      mode: one of MODES, or 'auto', which is a graph until `compile_choice` has chosen.
      in_parts: whether replicas share the step; XLA cannot compile around them.
    """
    if mode == "xla":
        return ("gradients",) if in_parts else ("whole",)
    return {"xla_gradients": ("gradients",), "xla_update": ("update",)}.get(mode, ())


def jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `fn` as an XLA program inside of the current graph. Call it once: each trace makes its own."""

    def traced(*args: Any) -> Any:
        global _traced_by_xla
        _traced_by_xla += 1
        with _in_xla():
            return fn(*args)

    return tf.function(traced, jit_compile=True, autograph=False)


def is_in_xla() -> bool:
    """Returns whether this thread traces a part of an XLA program of `jit` or `Compiled`."""
    return getattr(_local, "is_in_xla", False)


@contextlib.contextmanager
def _in_xla(is_so: bool = True) -> Iterator[None]:
    before = is_in_xla()
    _local.is_in_xla = is_so or before
    try:
        yield
    finally:
        _local.is_in_xla = before


class Traces:
    """The arguments that each trace of a function was made for, to say why the newest trace was made.

    traces = Traces()
    traces.add({"x": x, "k": 3})            # in the body of the function
    len(traces), traces.why                 # 2, 'x: float32 [4, 8] before, float32 [3, 8] now'
    """

    def __init__(self) -> None:
        self._given: list[dict[str, str]] = []

    def __len__(self) -> int:
        return len(self._given)

    def add(self, arguments: Mapping[str, Any]) -> None:
        """Takes the arguments of a trace by their names."""
        self._given.append(dict(pair for name, value in arguments.items() for pair in _leaves(name, value)))

    @property
    def why(self) -> str:
        """What the newest trace has other than the earlier one that is most like it; '' of the first trace.

        A tensor counts by its shape and dtype, another argument by its Python value. If none differs, the function was
        traced for what it reads beside its arguments.
        """
        if len(self) < 2:
            return ""
        now = self._given[-1]
        differing = min((_differing(before, now) for before in reversed(self._given[:-1])), key=len)
        more = f" and {len(differing) - _MOST_SHOWN} more" if len(differing) > _MOST_SHOWN else ""
        return (", ".join(differing[:_MOST_SHOWN]) + more) or _BESIDE


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = dict.fromkeys([*before, *now])
    pairs = ((name, before.get(name, "absent"), now.get(name, "absent")) for name in names)
    return [f"{name}: {old} before, {new} now" for name, old, new in pairs if old != new]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields (name, what a trace depends on) of a value and of all that it holds."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield from _leaves(f"{name}[{key!r}]", held)
    elif isinstance(value, list | tuple):
        for index, held in enumerate(value):
            yield from _leaves(f"{name}[{index}]", held)
    elif tf.is_tensor(value):
        yield name, f"{value.dtype.name} {'of any rank' if value.shape.rank is None else value.shape.as_list()}"
    else:
        text = repr(getattr(value, "element_spec", value))  # of an iterator: what it yields
        yield name, text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


class Compiled:
    """A function compiled by `mode`: a tf.function whose stages in `programs` XLA compiles, or as it is (eager).

    Attributes:
      mode: one of MODES.
      programs: the stages that are XLA programs; `fn` makes all but 'whole' itself, with `jit`.
      traces: how often the Python body was traced; 0 in mode 'eager'.
      compilations: number of calls in which XLA compiled; None if that cannot be seen (without /proc).
      calls: number of calls.
      shapes: how many shapes of arguments there are; each has a trace and a compilation.

    A training step has the same arguments in every call but for the bucket, a Python number, of which there are
    `shapes`. Only batches of one's own, whose `plan` returns other shapes, can trace it again. A step of one's own
    (`make_step`) is traced inside of it, with every tf.function that it calls, and so as often.
    """

    def __init__(self, fn: Callable[..., Any], mode: str, name: str, in_parts: bool = False, shapes: int = 1) -> None:
        mode = "graph" if mode == "auto" else mode
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is not one of {MODES}")
        self.mode = mode
        self.name = name
        self.programs = programs(mode, in_parts)
        self.shapes = shapes
        self.traces = 0
        self.calls = 0
        self.compilations: int | None = None if self.programs and not _STATUS.exists() else 0
        # A graph may have a program too, such as that of a large loss; `traced` notices.
        self._has_programs = bool(self.programs)

        compiled = "whole" in self.programs
        self._given = Traces()

        def traced(*args: Any) -> Any:
            self.traces += 1
            self._given.add(inspect.signature(fn).bind(*args).arguments)
            before = _traced_by_xla
            with _in_xla(compiled):
                result = fn(*args)
            self._has_programs |= _traced_by_xla > before
            return result

        # Without autograph: loops are written with tf.while_loop, so the code reads as it is compiled.
        self._make = lambda: compat.without_trace_warning(
            tf.function(traced, jit_compile=compiled or None, autograph=False)
        )
        self.function = None if mode == "eager" else self._make()
        self._fn = fn

    def forget(self) -> None:
        """Makes the next call trace again, after values changed that the trace holds as constants."""
        if self.function is not None and self.traces:
            self.function = self._make()
            self._given = Traces()
            self.traces = 0
            self.calls = 0
            self.compilations = None if self.compilations is None else 0

    @property
    def why_traced(self) -> str:
        """What changed in the arguments that the newest trace was made for; '' of the first trace. See `Traces.why`."""
        return self._given.why

    @property
    def has_retraced(self) -> bool:
        """Whether the function was traced more than once for a shape."""
        return self.traces > self.shapes

    @property
    def has_recompiled(self) -> bool:
        """Whether the function was traced or compiled more than once for a shape."""
        return max(self.traces, self.compilations or 0) > self.shapes

    @property
    def keeps_compiling(self) -> bool:
        """Whether the function is compiled too often: over a handful of times a shape, and than every fourth call."""
        return max(self.traces, self.compilations or 0) > max(HANDFUL * self.shapes, self.calls / 4)

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.function is None:
            return self._fn(*args)
        # Other libraries, such as oneDNN, make code too: a function without XLA programs has no compilations.
        looks = _STATUS.exists() and (self._has_programs or not self.traces)
        before = _executable_kilobytes() if looks else 0
        result = self.function(*args)
        if self._has_programs:
            self.compilations = (self.compilations or 0) + (_executable_kilobytes() > before) if looks else None
        return result


def _executable_kilobytes() -> int:
    """Returns the size of this process's executable memory, where XLA puts CPU code, in 30 microseconds."""
    with _STATUS.open("rb") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(b"VmLib:"))

"""Finds Python numbers that code counts up, such as `self.calls += 1`: a compiled step would never count them.

numbers = numbers_of(loss, model, metrics)          # {"'calls' of layer 'sampling'": 0}, before the first trace
check_counted(numbers, lambda: numbers_of(loss, model, metrics), trace_again)
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tf_keras as keras

from framework import paths
from framework.errors import UserError
from framework.trace.graphs import called

_MOST = 16  # entries of a list or dict that is looked into


def numbers_of(loss: Any, model: Any, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns {name: number} of layers, metrics, and the loss, with its closure and the globals that it reads."""
    numbers = dict(_numbers(_held_by(loss), "the loss"))
    for path, child in paths.objects(model).items():
        if isinstance(child, keras.layers.Layer):
            numbers |= _numbers({**vars(type(child)), **vars(child)}, f"layer '{path}'" if path else "the model")
    for name, metric in metrics.items():
        numbers |= _numbers(getattr(metric, "__dict__", {}), f"metric '{name}'")
    return numbers


def check_counted(
    before: Mapping[str, float], look: Callable[[], Mapping[str, float]], trace: Callable[[], Any]
) -> None:
    """Raises UserError if a number changes from trace to trace, and constants of the graph change with it.

    Args:
      before: `numbers_of` before the trace.
      look: () -> `numbers_of` at present.
      trace: () -> the graph of another trace.
    """
    if not _changed(before, look()):  # the first call of a layer may set numbers once; a counter changes in each
        return
    one = trace()
    then = look()
    other = trace()
    now = look()
    changed = _changed(then, now)
    if changed and list(_constants(one)) != list(_constants(other)):
        name = changed[0]
        raise UserError(
            f"{name} goes from {then[name]:g} to {now[name]:g} when it is called, and what is computed depends on"
            " it. A compiled step runs Python once, when it is traced, so the number would never change. Count in a"
            " variable: self.add_weight(shape=(), initializer='zeros', trainable=False) in build of a layer, and"
            " assign_add in call where training is true."
        )


def _changed(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    return [name for name, number in before.items() if name in after and after[name] != number]


def _held_by(function: Any) -> dict[str, Any]:
    """Returns what a function reads beside its arguments, or the attributes of an object."""
    code = inspect.unwrap(function)
    if not inspect.isfunction(code):
        return dict(getattr(getattr(code, "__self__", code), "__dict__", {}))
    try:
        read = inspect.getclosurevars(code)
    except ValueError:  # a variable that it reads has no value yet
        return {}
    return {**read.globals, **read.nonlocals}


def _numbers(held: Mapping[str, Any], of: str) -> Iterator[tuple[str, float]]:
    """Yields (name, number) of attributes, and of the entries of short lists and dicts."""
    for name, value in list(held.items()):
        if type(value) in (int, float):
            yield f"'{name}' of {of}", value
        elif type(value) in (list, dict) and len(value) <= _MOST:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"'{name}[{key!r}]' of {of}", entry) for key, entry in entries if type(entry) in (int, float))


def _constants(graph: Any) -> Iterator[bytes]:
    """Yields the constants of a trace and of the functions that it calls, in order."""
    for operation in graph.get_operations():
        if operation.type == "Const":
            yield operation.get_attr("value").SerializeToString()
        for function in called(operation):
            yield from _constants(function)

"""What a layer keeps in Python: the numbers, arrays and tensors in its attributes, which no checkpoint holds.

before = kept(layer)
layer(x)
difference(before, kept(layer))         # "attribute 'seen' was a list of 1, and is a list of 2"
"""

import functools
import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

_LIBRARIES = ("builtins", "collections", "functools", "keras", "numpy", "tensorflow", "tf_keras", "threading", "typing")
_SEQUENCES = (list, tuple, deque, set, frozenset)
_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)

Attributes = dict[str, Any]  # by path: number, text, array (a copy), tensor, or the kind and length of a container


class _Size(str):
    """The kind and length of a container, such as 'a list of 2'."""


def kept(root: Any) -> Attributes:
    """Returns what `root`, its sub-layers and its other objects keep, by path: 'seen', 'seen[0]', 'memory.last'.

    Attributes of their classes and defaults of their methods' arguments are among them, variables and what Keras keeps
    in private attributes of each layer are not. Out of reach are globals, variables of an enclosing function, and
    objects of TensorFlow, NumPy and the standard library other than lists, tuples, dicts, sets and deques.
    """
    return {path: _copied(x) for path, x in _walk("", root, set())}


def difference(before: Attributes, after: Attributes) -> str:
    """Returns the first attribute that differs, with both values; '' if none does. Tensors differ unless they are one.

    The length of a container stands before its items, so it is what is named.
    """
    for path in [*before, *(path for path in after if path not in before)]:
        if path not in after or path not in before or not _same(before[path], after[path]):
            one, other = (_told(attributes[path]) if path in attributes else "absent" for attributes in (before, after))
            return f"attribute '{path}' was {one}, and is {'another one' if one == other else other}"
    return ""


def symbolic(attributes: Attributes) -> list[str]:
    """Returns the paths of tensors that belong to a graph."""
    return [path for path, x in attributes.items() if isinstance(x, tf.Tensor) and tf.is_symbolic_tensor(x)]


def _walk(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tf.Variable):
        return
    if isinstance(value, (*_NUMBERS, np.ndarray, tf.Tensor)):
        yield path, value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    children: Iterator[tuple[str, Any]]
    if isinstance(value, Mapping):
        yield path, _Size(f"a dict of {len(value)}")
        children = ((f"{path}[{key!r}]", child) for key, child in [*value.items()])
    elif isinstance(value, _SEQUENCES):
        kind = next(kind.__name__ for kind in _SEQUENCES if isinstance(value, kind))  # Keras wraps lists and tuples
        yield path, _Size(f"a {kind} of {len(value)}")
        ordered = [] if isinstance(value, set | frozenset) else [*value]
        children = ((f"{path}[{place}]", child) for place, child in enumerate(ordered))
    elif isinstance(value, tf.Module) or (hasattr(value, "__dict__") and not _is_of_library(type(value))):
        children = _members(path, value)
    else:
        return
    for name, child in children:
        yield from _walk(name, child, seen)


def _members(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the attributes of an object, those of its classes that a call can change, and its sub-layers."""
    if isinstance(value, type) or inspect.isroutine(value) or inspect.ismodule(value):
        return
    prefix = f"{path}." if path else ""
    yield from ((prefix + name, child) for name, child in [*vars(value).items()] if name not in _of_keras())
    for kind in type(value).__mro__:
        if _is_of_library(kind):
            continue
        for name, member in [*vars(kind).items()]:
            if inspect.isfunction(member):
                defaults = [*(member.__defaults__ or ()), *(member.__kwdefaults__ or {}).values()]
                changeable = [x for x in defaults if isinstance(x, list | dict | set | deque)]
                yield from ((f"{kind.__name__}.{name}, a default argument", default) for default in changeable)
            elif not name.startswith("__") and isinstance(member, (list, dict, set, deque, *_NUMBERS, tf.Tensor)):
                yield f"{kind.__name__}.{name}", member
    if isinstance(value, keras.Model):  # Sequential and functional models keep their layers in private attributes
        yield from ((f"{prefix}layers[{place}]", layer) for place, layer in enumerate(value.layers))


@functools.cache
def _of_keras() -> frozenset[str]:
    """Returns the private attributes that Keras gives to each layer and model, whose values change with calls."""
    names = {
        name for layer in (keras.layers.Layer(name="layer"), keras.Sequential(name="model")) for name in vars(layer)
    }
    return frozenset({name for name in names if name.startswith("_")} | {"built"})


def _is_of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tf.Tensor) or isinstance(other, tf.Tensor):
        return one is other
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return type(one) is type(other) and (one == other or one != one)


def _told(value: Any) -> str:
    if isinstance(value, tf.Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, tf.Tensor) else "an array"
        return f"{kind} of {value.dtype.name}{[*value.shape]}"
    return value if isinstance(value, _Size) else repr(value)

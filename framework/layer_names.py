"""Tells the names that users give to layers from those that Keras makes up: `dense_2` may be either.

    is_own(keras.layers.Dense(3))                    # False: Keras numbers the layers that a process makes
    is_own(keras.layers.Dense(3, name="dense_2"))    # True

Keras does not record the difference. From its import on, this module does, whenever Keras sets a name; the record
passes to copies (`clone_model`, `from_config` of a `get_config`). For layers made before the import, the constructor
arguments and the names that Keras saw decide. A name read from a file counts as Keras' own if it looks like one.
"""

import functools
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import tf_keras as keras

from framework import compat

_NOTED = "_name_of_keras"  # attribute of a layer: the name that Keras made up or copied


class _OwnName(str):
    """A name that a user gave, although it looks like one of Keras'; the type passes to copies with the name."""


def class_name(layer: keras.layers.Layer) -> str:
    """Returns a layer's class in snake case, by Keras' rule: the start of each name that Keras makes up."""
    # Keras makes functional models of a hidden class and names them after the public one.
    kind = "Model" if type(layer).__name__ == "Functional" else type(layer).__name__
    automatic = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
    return f"private{automatic}" if automatic.startswith("_") else automatic


def looks_made_up(layer: keras.layers.Layer) -> bool:
    """Returns whether Keras might have made up the name of a layer."""
    return re.fullmatch(rf"{re.escape(class_name(layer))}(_\d+)?", layer.name) is not None


def is_own(layer: keras.layers.Layer) -> bool:
    """Returns whether the user gave a layer its name."""
    if isinstance(layer.name, _OwnName) or not looks_made_up(layer):
        return True
    if hasattr(layer, _NOTED):
        return getattr(layer, _NOTED) != layer.name  # renamed since
    arguments = compat.constructor_arguments(layer)
    if arguments is None:
        return layer.name in compat.given_names()
    is_copy = {"trainable", "dtype"} <= arguments.keys()  # as in every `get_config`
    return arguments.get("name") is not None and not is_copy


def _noting(set_name: Callable[..., None]) -> Callable[..., None]:
    """Returns Keras' method `set_name`, which then also records whose name was set."""

    @functools.wraps(set_name)
    def noting(self: Any, name: str | None, *args: Any, **kwargs: Any) -> None:
        set_name(self, name, *args, **kwargs)
        if type(name) is str and name and looks_made_up(self) and not _is_copied(self, sys._getframe(1)):
            compat.set_name(self, _OwnName(name))
        else:
            self.__dict__[_NOTED] = self.name

    return noting


def _is_copied(layer: Any, frame: FrameType | None) -> bool:
    """Returns whether Keras or a `from_config` constructs a layer, so that its name is that of another layer."""
    while frame is not None and _is_making(frame, layer):
        frame = frame.f_back
    is_keras = frame is not None and str(frame.f_globals.get("__name__")).startswith("tf_keras.")
    return frame is None or is_keras or frame.f_code.co_name == "from_config"


def _is_making(frame: FrameType, layer: Any) -> bool:
    """Returns whether a frame is a constructor of `layer`, or a wrapper around one."""
    values = [*frame.f_locals.values(), *(frame.f_locals.get("args") or ())]
    return any(value is layer for value in values)


compat.wrap_set_name(_noting)

"""Whether a layer's name is its user's or Keras' own: `dense_2` may be either.

    keras.layers.Dense(3)                    # is_own: False; Keras numbers it by what the process made before
    keras.layers.Dense(3, name="dense_2")    # is_own: True

Keras does not keep the difference, so a name is noted when it is set, from the import of this module on, and lasts in
copies (`clone_model`, `from_config` of a `get_config`). Of a layer that was made before, what Keras does keep decides:
the arguments of simple calls, and which names it was given. A name read from a file is Keras' own if it looks so.
"""

import functools
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import tf_keras as keras

from framework import compat

_NOTED = "_name_of_keras"  # attribute of a layer: a name that Keras made up or copied


class _OwnName(str):
    """A name that code gave a layer, although Keras might have made it up; goes where the name goes."""


def class_name(layer: keras.layers.Layer) -> str:
    """The class in snake case, by Keras' own rule: what a name that it makes up begins with."""
    # Keras makes functional models of a hidden class and names them after the public one.
    kind = "Model" if type(layer).__name__ == "Functional" else type(layer).__name__
    automatic = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
    return f"private{automatic}" if automatic.startswith("_") else automatic


def looks_made_up(layer: keras.layers.Layer) -> bool:
    """Whether Keras might have made up the name."""
    return re.fullmatch(rf"{re.escape(class_name(layer))}(_\d+)?", layer.name) is not None


def is_own(layer: keras.layers.Layer) -> bool:
    """Whether the user gave the name."""
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
    @functools.wraps(set_name)
    def noting(self: Any, name: str | None, *args: Any, **kwargs: Any) -> None:
        set_name(self, name, *args, **kwargs)
        if type(name) is str and name and looks_made_up(self) and not _is_copied(self, sys._getframe(1)):
            compat.set_name(self, _OwnName(name))
        else:
            self.__dict__[_NOTED] = self.name

    return noting


def _is_copied(layer: Any, frame: FrameType | None) -> bool:
    """Whether a layer is made by Keras, or by a `from_config`, whose name is that of another."""
    while frame is not None and _is_making(frame, layer):
        frame = frame.f_back
    is_keras = frame is not None and str(frame.f_globals.get("__name__")).startswith("tf_keras.")
    return frame is None or is_keras or frame.f_code.co_name == "from_config"


def _is_making(frame: FrameType, layer: Any) -> bool:
    """Whether a call is one of the constructors of `layer`, or wrapped around one."""
    values = [*frame.f_locals.values(), *(frame.f_locals.get("args") or ())]
    return any(value is layer for value in values)


compat.wrap_set_name(_noting)

"""Layers of Keras in a model that draw random numbers: found, named, and made to draw as the framework's layers do.

net = layers.with_repeatable_draws(keras.applications.EfficientNetB0(weights="weights.h5"))
advice(model, node_names)       # "'drop' (keras.layers.Dropout) draws … Write framework.layers.Dropout, …"
"""

import re
from collections.abc import Collection
from typing import Any

import tf_keras as keras

from framework import compat, paths
from framework.errors import UserError
from framework.layers import attention, augmentation, dropout, recurrent
from framework.layers.draws import KeyedGenerator, draw_by_key

_STRENGTHS = ("rate", "stddev", "dropout", "recurrent_dropout")  # attributes that are 0 in a layer that does not draw
_SHOWN = 3  # most layers of one message
_OWN = "Draw with framework.rng instead, in the transform of make_data."
# Layers of Keras that have no counterpart: a compiled step has one shape of pictures.
_RESIZING = {"RandomHeight": "RandomZoom(factor, 0)", "RandomWidth": "RandomZoom(0, factor)"}


def with_repeatable_draws(model: Any) -> Any:
    """Makes the layers of Keras in a model draw by (seed, layer, step, example), and returns the model.

    It is meant for models that other code makes, such as `keras.applications` and `keras.models.load_model`. Layers,
    weights and paths stay; a `seed` of a layer has no effect any more.

    Args:
      model: a built model or layer, or a dict of models.

    Raises:
      UserError: a layer draws in a way of its own, as the Random* layers do.
    """
    for path, layer in _drawing(model).items():
        if not _has_strength(layer):
            raise UserError(f"{_shown(path, layer)} cannot be made to draw by example. {_write_instead(layer)}")
        draw_by_key(layer)
    return model


def refuse_rows(root: Any) -> None:
    """Raises UserError if `keras.layers.TimeDistributed` takes a layer that draws.

    Its rows are not the examples, so that masks would depend on how a batch is cut.
    """
    for path, layer in paths.objects(root).items():
        if isinstance(layer, keras.layers.TimeDistributed) and not isinstance(layer, recurrent.TimeDistributed):
            inner = paths.objects(layer).values()
            if any(_is_keyed(part) and _has_strength(part, above_zero=True) for part in inner):
                raise UserError(
                    f"{_shown(path, layer)} has a layer that draws, and would draw for rows instead of examples."
                    " Write framework.layers.TimeDistributed."
                )


def advice(root: Any, names: Collection[str]) -> str:
    """Says which layers of Keras draw random numbers in a trace, and what to write instead; '' if none does.

    Args:
      root: a model, a dict of models or a state.
      names: of the operations that draw; they contain the names of the layers.
    """
    everything, drawing = paths.objects(root), _drawing(root)
    places, can_convert = [], True
    for path, layer in drawing.items():
        if any(re.search(rf"(^|/){re.escape(layer.name)}(_\d+)?/", name) for name in names):
            can_convert &= _has_strength(layer)
            around = [*paths.above(path)][::-1]
            places.append(next((place for place in around if _replacement(everything[place])), path))
    layers = {path: everything[path] for path in dict.fromkeys(places)}
    if not layers:
        return ""
    shown = ", ".join(_shown(path, layer) for path, layer in [*layers.items()][:_SHOWN])
    more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
    verb = "draws" if len(layers) == 1 else "draw"
    what = f"{shown}{more} {verb} random numbers that a resumed run would not draw again. "
    for layer in layers.values():
        if not _replacement(layer):
            return what + _write_instead(layer)
    write = dict.fromkeys(f"framework.layers.{_replacement(layer)}" for layer in layers.values())
    of_other_code = (
        "; of a model that other code makes, such as keras.applications, framework.layers.with_repeatable_draws(model)"
    )
    return f"{what}Write {', '.join(write)}{of_other_code if can_convert else ''}."


def _drawing(root: Any) -> dict[str, keras.layers.Layer]:
    """{path: layer} of those that draw from a generator of Keras."""
    return {
        path: layer
        for path, layer in paths.objects(root).items()
        if isinstance(layer, compat.RandomLayer)
        and not _is_keyed(layer)
        and (not _has_strength(layer) or _has_strength(layer, above_zero=True))
    }


def _is_keyed(layer: Any) -> bool:
    return isinstance(compat.generator_of(layer), KeyedGenerator)


def _has_strength(layer: Any, above_zero: bool = False) -> bool:
    return any(getattr(layer, name) or not above_zero for name in _STRENGTHS if hasattr(layer, name))


def _replacement(layer: Any) -> str:
    """The name of the framework's layer that has the arguments of a layer of Keras; '' if there is none."""
    kinds = {
        name: kind for module in (augmentation, dropout, attention, recurrent) for name, kind in vars(module).items()
    }
    for kind in type(layer).__mro__:
        ours = kinds.get(kind.__name__)
        if getattr(keras.layers, kind.__name__, None) is kind and ours is not None and issubclass(ours, kind):
            return str(kind.__name__)
    return ""


def _write_instead(layer: Any) -> str:
    """Returns what to write instead of a layer that `with_repeatable_draws` cannot convert."""
    name = type(layer).__name__
    if name in _RESIZING:
        return (
            "It gives each batch another shape, for which a step would be compiled anew. Write"
            f" framework.layers.{_RESIZING[name]}, which keeps the shape."
        )
    return f"Write framework.layers.{name}." if _replacement(layer) == name else _OWN


def _shown(path: str, layer: Any) -> str:
    name = type(layer).__name__
    return f"'{path}' ({'keras.layers.' if hasattr(keras.layers, name) else ''}{name})"

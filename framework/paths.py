"""Names the objects and variables of a model by their place in it, alike in every process.

    paths.variables(model)      # {'dense/kernel': <Variable>, 'dense/bias': …, 'dense_1/kernel': …}

Keras numbers layers by all that the process made before (`dense_7`), so a second model of a notebook has other names
than the first. A path depends on the model alone. Checkpoints, histograms, random streams and parameter groups use it.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat, layer_names


def objects(root: Any) -> dict[str, Any]:
    """Returns {path: object} of all that `root` tracks, breadth first; '' is `root`, a model or a dict of models.

    A shared object has the first of its paths.
    """
    by_path: dict[str, Any] = {"": root}
    seen = {id(root)}
    queue = [("", root)]
    while queue:
        prefix, parent = queue.pop(0)
        for name, child in _children(parent).items():
            if id(child) not in seen:
                seen.add(id(child))
                path = f"{prefix}/{name}" if prefix else name
                while path in by_path:  # names may contain a slash
                    path += "_"
                by_path[path] = child
                queue.append((path, child))
    return by_path


def variables(root: Any) -> dict[str, tf.Variable]:
    """Returns {path: variable} of all variables that `root` tracks."""
    return {path: child for path, child in objects(root).items() if isinstance(child, tf.Variable)}


def ambiguous(root: Any) -> list[str]:
    """Returns the paths of layers below `root` whose names users gave, although they look like names of Keras.

    In another model the same path `dense_2` may be a third layer without a name: a warm start must not mix them up.
    """
    by_path = objects(root)
    return [
        path
        for path, layer in by_path.items()
        if path
        and isinstance(layer, keras.layers.Layer)
        and layer_names.is_own(layer)
        and layer_names.looks_made_up(layer)
        and _has_layers_by_place(by_path.get(path.rpartition("/")[0]))
    ]


def copies(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """Returns the copies of a variable on the replicas of this process, or the variable itself if it has none."""
    return tuple(getattr(variable, "values", (variable,)))


def assign(variable: tf.Variable, value: Any) -> None:
    """Assigns a variable on every replica of this process, outside of a step.

    `variable.assign` would read the result back. For a variable that each replica moves by itself, such as BatchNorm's
    averages, reading is a sum over all workers: a worker that assigns alone would wait for ever. It would also divide
    a variable that is summed when read.
    """
    for copy in copies(variable):
        copy.assign(value, read_value=False)


def models(model: Any) -> dict[str, Any]:
    """Returns {name: model} of what `make_model` returned; a single model is called 'model'."""
    return dict(model) if isinstance(model, Mapping) else {"model": model}


def trainable(model: Any) -> dict[str, tf.Variable]:
    """Returns {path: variable} of `model.trainable_variables`, in their order; several models below their names."""
    if isinstance(model, Mapping):
        return {f"{name}/{path}": v for name, one in model.items() for path, v in trainable(one).items()}
    path_of = {id(variable): path for path, variable in variables(model).items()}
    return {path_of[id(variable)]: variable for variable in model.trainable_variables}


def above(path: str) -> Iterator[str]:
    """Yields the paths above one: 'a/b', 'a', '' for 'a/b/c'."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _children(parent: Any) -> dict[str, Any]:
    """Returns {name: object} of what an object tracks, with lasting names for layers that Keras numbers."""
    if isinstance(parent, tf.Variable):
        return {}
    if type(parent) is dict:
        return parent
    children = tf.train.TrackableView.children(parent)
    if not _has_layers_by_place(parent):
        return children
    others = {name: child for name, child in children.items() if not compat.is_numbered(name)}
    names = _names_of_layers(parent, others)
    return others | dict(zip(names, parent.layers, strict=True))


def _has_layers_by_place(parent: Any) -> bool:
    """Returns whether Keras tracks the layers of `parent` by number, as in Sequential and functional models."""
    children = tf.train.TrackableView.children(parent) if isinstance(parent, keras.Model) else {}
    return any(compat.is_numbered(name) for name in children)


def _names_of_layers(parent: Any, taken: Collection[str]) -> list[str]:
    """Returns the names of the layers of a Sequential or functional model: the user's, or the class with a number.

    Users' names come first, so that no number takes one of them.
    """
    names = [""] * len(parent.layers)
    for place in sorted(range(len(names)), key=lambda place: not layer_names.is_own(parent.layers[place])):
        own = _layer_name(parent.layers[place])
        name = own
        count = 0
        while name in taken or name in names:
            count += 1
            name = f"{own}_{count}"
        names[place] = name
    return names


def _layer_name(layer: keras.layers.Layer) -> str:
    """Returns the name that the user gave, or else the class in snake case."""
    return str(layer.name) if layer_names.is_own(layer) else layer_names.class_name(layer)

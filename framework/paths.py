"""Names that last: every object and variable of a model by its place in the object graph.

    paths.variables(model)      # {'dense/kernel': <Variable>, 'dense/bias': …, 'dense_1/kernel': …}

Keras numbers layers by process history (`dense_7`), so a second model of the same notebook has other names than the
first. A path depends on the model alone: checkpoints, histograms, random streams and parameter tables use it.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat, layer_names


def objects(root: Any) -> dict[str, Any]:
    """{path: object} of all that `root` tracks, breadth first; a shared object has its first path. '' is `root`.

    `root` may be a dict of models.
    """
    found: dict[str, Any] = {"": root}
    seen = {id(root)}
    queue = [("", root)]
    while queue:
        prefix, parent = queue.pop(0)
        for name, child in _children(parent).items():
            if id(child) not in seen:
                seen.add(id(child))
                path = f"{prefix}/{name}" if prefix else name
                while path in found:  # names may contain a slash
                    path += "_"
                found[path] = child
                queue.append((path, child))
    return found


def variables(root: Any) -> dict[str, tf.Variable]:
    """{path: variable} of all variables that `root` tracks."""
    return {path: child for path, child in objects(root).items() if isinstance(child, tf.Variable)}


def ambiguous(root: Any) -> list[str]:
    """Paths of layers below `root` whose name is the user's own, although it looks like one that Keras made up.

    A path `dense_2` of a model elsewhere may be a third layer without a name: such paths are compared with care.
    """
    found = objects(root)
    return [
        path
        for path, layer in found.items()
        if path
        and isinstance(layer, keras.layers.Layer)
        and layer_names.is_own(layer)
        and layer_names.looks_made_up(layer)
        and _has_layers_by_place(found.get(path.rpartition("/")[0]))
    ]


def copies(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """The copies of a variable on the replicas of this process; of one without copies, itself."""
    return tuple(getattr(variable, "values", (variable,)))


def assign(variable: tf.Variable, value: Any) -> None:
    """Gives a variable its value on every replica of this process; outside of a compiled step, where `assign` does it.

    Nothing is read back. `assign` reads a variable that each replica moves by itself, such as BatchNorm's averages:
    a sum over all workers, for which one that assigns alone waits for ever. It also divides what is summed when read.
    """
    for copy in copies(variable):
        copy.assign(value, read_value=False)


def models(model: Any) -> dict[str, Any]:
    """What `make_model` returned as {name: model}; a single model is called 'model'."""
    return dict(model) if isinstance(model, Mapping) else {"model": model}


def trainable(model: Any) -> dict[str, tf.Variable]:
    """{path: variable} of `model.trainable_variables`, in their order; of several models, each below its name."""
    if isinstance(model, Mapping):
        return {f"{name}/{path}": v for name, part in model.items() for path, v in trainable(part).items()}
    path_of = {id(variable): path for path, variable in variables(model).items()}
    return {path_of[id(variable)]: variable for variable in model.trainable_variables}


def above(path: str) -> Iterator[str]:
    """'a/b', 'a', '' for 'a/b/c'."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _children(parent: Any) -> dict[str, Any]:
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
    """Whether Keras tracks the layers of `parent` by number, as those of Sequential and functional models."""
    children = tf.train.TrackableView.children(parent) if isinstance(parent, keras.Model) else {}
    return any(compat.is_numbered(name) for name in children)


def _names_of_layers(parent: Any, taken: Collection[str]) -> list[str]:
    """Names of the layers of a Sequential or functional model: the user's own, or the class's with a number.

    Own names are settled first, so that a number never takes one of them.
    """
    names = [""] * len(parent.layers)
    for place in sorted(range(len(names)), key=lambda place: not layer_names.is_own(parent.layers[place])):
        own = _layer_name(parent.layers[place])
        name, count = own, 0
        while name in taken or name in names:
            count += 1
            name = f"{own}_{count}"
        names[place] = name
    return names


def _layer_name(layer: keras.layers.Layer) -> str:
    """The name the user gave, or the class's in snake case where Keras made one up."""
    return str(layer.name) if layer_names.is_own(layer) else layer_names.class_name(layer)

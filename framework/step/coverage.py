"""Finds what a trace reads and assigns beside `TrainState`: refuses it, or hashes it for a resumed run to compare.

    check(graph, state)                              # UserError: a variable or table that no checkpoint has
    constants(graph, state, "the loss")              # {"table 'labels' of the loss": sha256, …}

A variable is saved if the state tracks it. No checkpoint holds the content of a lookup table: a table that can change
is refused, one that cannot is hashed. Constants are hashed too: tensors that were made before the trace, and arrays of
the experiment's own code.
"""

import gc
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import compat, paths
from framework.errors import UserError
from framework.state import TrainState
from framework.trace.graphs import called, place

_CHANGE = re.compile(r"Assign|Resource(Scatter|Strided|Apply|SparseApply)|LookupTable(Insert|Import|Remove)")
_TABLE = re.compile(r"LookupTable")
_MESSAGE = re.compile(r"Collective")  # its resource has no content: it keeps messages of workers in order
# Advice: what to write instead, in a step and in a transform.
_IN_STATE = "Make it an attribute of a layer of the model, or return it in make_state(cfg, model)."
_BY_BATCH = (
    "A transform is a function of the batch: draw with framework.rng; what it counts belongs into the examples, or the"
    " batches are a tf.Module, as data.replay.Replay is."
)
_MANY_AXES = 8
_FILL = re.compile(r"(?:^|/)(zeros|ones)(?:_like)?(?:_\d+)?$")


def check(graph: Any, state: TrainState, known: Collection[tf.Variable] = ()) -> None:
    """Raises UserError if a trace of the step depends on a variable, table or other resource that no checkpoint has.

    Args:
      graph: the trace, with all functions that it calls.
      known: variables beside those of the state that need not be saved.
    """
    for variable in _checked(graph, state, "a step", _IN_STATE, known):
        if variable.trainable:
            raise UserError(
                f"a step reads the variable '{variable.name}', which is neither trained nor saved, because the model"
                " does not track it. Make it, or the layer that has it, an attribute of the model; what is not trained,"
                " such as a teacher, belongs into make_state(cfg, model); a constant is"
                " tf.Variable(…, trainable=False)."
            )

    _check_trained(graph, state.model)


def _check_trained(graph: Any, model: Any) -> None:
    """Raises UserError if a trace reads a variable of a model that is trainable and saved, but not trained.

    tf_keras trains the layers that a Sequential model was given, and not those that are set as its attributes.
    """
    trained = {id(variable) for variable in paths.trainable(model).values()}
    objects = paths.objects(model)
    read = {id(outer) for outer, _ in graph.captures}
    for path, variable in paths.variables(model).items():
        is_frozen = any(getattr(objects.get(place), "trainable", True) is False for place in paths.above(path))
        is_read = any(id(copy.handle) in read for copy in paths.copies(variable))
        if variable.trainable and is_read and not is_frozen and id(variable) not in trained:
            raise UserError(
                f"a step reads the variable '{path}', which would never be trained: a Sequential model does not train"
                " what is set as its attribute. Make both attributes of a keras.Model of your own, or set"
                " trainable=False on the layer."
            )


def check_data(graph: Any, state: TrainState, where: str) -> None:
    """Raises UserError for the same in a trace that trains nothing; a variable that it only reads is a constant."""
    _checked(graph, state, where, _BY_BATCH, ())


def _checked(graph: Any, state: TrainState, where: str, hint: str, known: Collection[tf.Variable]) -> list[tf.Variable]:
    """Returns the variables outside of the state that a trace only reads; raises UserError for what may change."""
    read = []
    for outer, inner, variable in _unsaved(graph, state, known):
        uses = _uses(inner)
        is_changed = any(_CHANGE.match(op) for op in uses)
        if variable is not None and is_changed:
            raise UserError(
                f"{where} changes the variable '{variable.name}', which no checkpoint has: a resumed run would start"
                f" with another value. {hint}"
            )
        if variable is None and any(_TABLE.match(op) for op in uses):
            if is_changed or not isinstance(_table_of(outer), compat.StaticTable):
                raise UserError(
                    f"{where} uses the table '{_name_of_table(outer)}', which can change and which no checkpoint has: a"
                    f" resumed run would start with another one. Use tf.lookup.StaticHashTable. {hint}"
                )
        elif variable is None and uses:
            raise UserError(
                f"{where} uses something of TensorFlow that has a content of its own ({', '.join(sorted(uses))}), which"
                f" no checkpoint has: a resumed run would not go on with it. {hint}"
            )
        if variable is not None:
            read.append(variable)
    return read


def constants(graph: Any, state: TrainState, where: str, data: Any = None) -> dict[str, str]:
    """Returns {name: SHA-256} of what a trace computes with and no checkpoint has.

    Those are lookup tables, variables that are constants (trainable=False, never assigned), tensors that were made
    before the trace, and arrays of at least two elements that the experiment's code put into it.

    Args:
      data: batches, whose own tensors, the examples, have a hash elsewhere.
    """
    hashes: dict[str, str] = {}
    for outer, _, variable in _unsaved(graph, state):
        if variable is not None:
            name, value = f"variable '{variable.name}'", _sha256(paths.copies(variable)[0].numpy())
        else:
            name, value = f"table '{_name_of_table(outer)}'", _sha256(*_content(outer))
        hashes[_unused(f"{name} of {where}", hashes)] = value
    passed = _tensors_of(data) | _tensors_of_layers(state)
    for array, used_at in _arrays(graph, passed):
        kind = f"{array.dtype.name if array.dtype != object else 'string'}{list(array.shape)}"
        hashes[_unused(f"constant {kind}{used_at} of {where}", hashes)] = _sha256(array)
    return hashes


def differing(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the names whose hashes differ, or that only one side has."""
    return sorted(name for name in {*saved, *now} if saved.get(name) != now.get(name))


def assigned(graph: Any, variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """Returns those of {path: variable} that a trace assigns to."""
    changed = {id(outer) for outer, inner in graph.captures if any(_CHANGE.match(op) for op in _uses(inner))}
    return {
        path: variable
        for path, variable in variables.items()
        if any(id(copy.handle) in changed for copy in paths.copies(variable))
    }


def _unused(name: str, taken: Collection[str]) -> str:
    count = 1 + sum(other == name or other.startswith(f"{name} (") for other in taken)
    return name if count == 1 else f"{name} ({count})"


def _unsaved(
    graph: Any, state: TrainState, known: Collection[tf.Variable] = ()
) -> Iterator[tuple[tf.Tensor, tf.Tensor, tf.Variable | None]]:
    """Yields (handle, its place in the trace, its variable if it has one) of each resource outside of the state."""
    held = [*paths.variables(state).values(), *known]
    saved = {id(copy.handle) for variable in held for copy in paths.copies(variable)}
    seen = [variable for each in _graphs(graph) for variable in each.variables]
    variables = {id(copy.handle): variable for variable in seen for copy in paths.copies(variable)}
    for outer, inner in graph.captures:
        is_resource = inner.dtype == tf.resource and not tf.is_symbolic_tensor(outer)
        if is_resource and id(outer) not in saved and not any(map(_MESSAGE.match, _uses(inner))):
            yield outer, inner, variables.get(id(outer))


def _graphs(graph: Any) -> list[Any]:
    """Returns the graph of a trace and the graphs of the functions that it knows."""
    return [graph, *compat.function_graphs(graph)]


def _uses(tensor: tf.Tensor) -> set[str]:
    """Returns the types of the operations that take a resource, in functions that are called too."""
    types: set[str] = set()
    for operation in tensor.consumers():
        inside = called(operation)
        if not inside:
            types.add(operation.type)
        for function in inside:
            skipped = len(operation.inputs) - len(function.inputs)  # such as the condition of an If
            for index, source in enumerate(operation.inputs):
                if source is tensor and index >= skipped:
                    types |= _uses(function.inputs[index - skipped])
    return types


def _table_of(handle: tf.Tensor) -> Any:
    """Returns the table object of a handle; None if it is gone."""
    tables = (each for each in gc.get_objects() if isinstance(each, compat.LookupTable))
    return next((table for table in tables if compat.table_handle(table) is handle), None)


def _name_of_table(handle: tf.Tensor) -> str:
    """Returns 'labels', or 'labels (from vocabulary.txt)' for a table that was read from a file."""
    table = _table_of(handle)
    name, file = compat.table_name(table), compat.table_file(table)
    return name if file is None else f"{name} (from {Path(tf.compat.as_str(tf.get_static_value(file) or file)).name})"


def _content(handle: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns keys and values of a table, in the order of the keys."""
    keys, values = (tensor.numpy() for tensor in _table_of(handle).export())
    order = np.argsort(keys, kind="stable")
    return keys[order], values[order]


def _arrays(graph: Any, passed: Collection[int]) -> Iterator[tuple[np.ndarray, str]]:
    """Yields each constant of a trace, in its order: (array, ' (loss in file.py)'), where the experiment uses it.

    Args:
      passed: ids of tensors to leave out.
    """
    for each in _graphs(graph):
        made_before = {id(inner.op): outer for outer, inner in each.captures}
        for operation in each.get_operations():
            outer = made_before.get(id(operation))
            if outer is not None:
                is_tensor = not tf.is_symbolic_tensor(outer) and outer.dtype not in (tf.resource, tf.variant)
                if is_tensor and id(outer) not in passed:
                    users = [user for output in operation.outputs for user in output.consumers()]
                    yield np.asarray(outer), next((where for user in users if (where := _place(user))), "")
            elif operation.type == "Const" and _is_data(operation.outputs[0]) and place(operation) is not None:
                array = tf.make_ndarray(operation.get_attr("value"))
                if not _is_fill(operation.name, array):
                    yield array, _place(operation)


def _is_data(constant: tf.Tensor) -> bool:
    """Returns whether a constant may be data of an experiment; others are one number, or axes and shapes."""
    count = constant.shape.num_elements() or 0
    if constant.dtype.is_integer and count <= _MANY_AXES:
        return count > 1 and any(re.match("Gather|Cast|Select", user.type) for user in constant.consumers())
    return count > 1


def _is_fill(name: str, array: np.ndarray) -> bool:
    """Returns whether a constant is what tf.zeros, tf.ones or tf.zeros_like made of a shape.

    On replicas, BatchNormalization makes such constants; a run that continues on one device does not have them.
    """
    made = _FILL.search(name)
    return made is not None and bool((array == (made[1] == "ones")).all())


def _place(operation: tf.Operation) -> str:
    """Returns ' (loss in file.py)' of the experiment's function that made an operation; '' if the framework did."""
    caller = place(operation)
    return "" if caller is None else f" ({caller[0]} in {caller[1]})"


def _tensors_of(data: Any) -> set[int]:
    """Returns the ids of the tensors that batches hold as attributes."""
    return {id(value) for value in tf.nest.flatten(list(getattr(data, "__dict__", {}).values())) if tf.is_tensor(value)}


def _tensors_of_layers(state: TrainState) -> set[int]:
    """Returns the ids of the tensors that preprocessing layers make of their variables."""
    layers = [
        child for root in (state.model, state.extra) if root is not None for child in paths.objects(root).values()
    ]
    return {
        id(value)
        for layer in layers
        if isinstance(layer, keras.layers.Layer) and hasattr(layer, "finalize_state") and layer.variables
        for value in vars(layer).values()
        if tf.is_tensor(value) and not tf.is_symbolic_tensor(value)
    }


def _sha256(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in map(np.asarray, arrays):
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()

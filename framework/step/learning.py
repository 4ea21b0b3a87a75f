"""What keeps a model from learning its batch, found by one eager step that changes nothing.

signs = look(train_block)
signs.dead                      # ['first']: layers whose outputs are all 0, in the order of their calls
signs.without_gradient          # ['first/kernel', 'first/bias']
constant_labels(loss, model, batch, precision)      # ['label']
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths
from framework.state import TrainState
from framework.step.block import TrainBlock
from framework.step.forward import Loss, forward
from framework.step.layer_calls import outputs
from framework.step.scopes import scopes
from framework.trace import guards
from framework.trace.graphs import ancestors

_SAME = 1e-6  # relative spread over the examples below which outputs are the same for all


@dataclasses.dataclass(frozen=True)
class Signs:
    """Signs of what does not learn, by path and in the order of the calls of layers.

    Attributes:
      dead: layers whose outputs are exactly 0 for all examples.
      constant: layers whose outputs are the same for all examples, as are those of all layers that end after them.
      without_gradient: parameters whose gradient is exactly 0.
    """

    dead: list[str]
    constant: list[str]
    without_gradient: list[str]


def look(block: TrainBlock) -> Signs:
    """Runs the next step eagerly, applies nothing, and looks at outputs of layers and at gradients."""
    with block.untouched():
        batch = block.batch()
        with outputs() as calls:
            gradients = block.dry_run(batch).gradients
    names = _names(block.state)
    rows = int(batch["weight"].shape[0])
    seen = [
        (names[id(layer)], arrays) for layer, made in calls if id(layer) in names and (arrays := _values(made, rows))
    ]
    constant: list[str] = []
    for name, arrays in reversed(seen if rows > 1 else []):
        if not all(map(_is_constant, arrays)):
            break
        constant.insert(0, name)
    dead = [name for name, arrays in seen if not any(map(np.any, arrays))]
    return Signs(
        dead=list(dict.fromkeys(dead)),
        constant=[name for name in dict.fromkeys(constant) if name not in dead],
        without_gradient=[path for path, gradient in gradients.items() if not np.any(tf.convert_to_tensor(gradient))],
    )


def constant_labels(loss: Loss, model: Any, batch: Mapping[str, tf.Tensor], precision: str) -> list[str]:
    """Returns the labels of a batch if each of them is the same for all examples, else [].

    A label is a field that a term of the loss depends on and no output of a layer does. Examples of weight 0 do not
    count, and neither does the weight.
    """
    specs = {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in sorted(batch.items())}
    made: list[tf.Tensor] = []
    sums: list[tf.Tensor] = []

    def forward_pass(fields: Mapping[str, tf.Tensor]) -> None:
        with scopes(precision, 0, tf.constant(0, tf.int64)), guards.watched(fields), outputs() as calls:
            terms, _ = forward(loss, model, fields, training=True)
        made.extend(tensor for _, tensors in calls for tensor in tensors if tf.is_tensor(tensor))
        sums.extend(term.sum for term in terms.values())

    graph = tf.function(forward_pass, autograph=False).get_concrete_function(specs).graph
    fields = {name: tensor.op for name, tensor in zip(specs, graph.inputs, strict=False)}

    def read_by(tensors: list[tf.Tensor]) -> set[str]:
        operations = {op for tensor in tensors if getattr(tensor, "graph", None) is graph for op in ancestors(tensor)}
        return {name for name, op in fields.items() if op in operations}

    labels = sorted(read_by(sums) - read_by(made) - {"weight"})
    is_real = batch["weight"].numpy() != 0
    if is_real.sum() < 2 or not all(_is_same(batch[name].numpy(), is_real) for name in labels):
        return []
    return labels


def _names(state: TrainState) -> dict[int, str]:
    """Returns {id: path} of the layers inside of the models."""
    objects = {} if state.extra is None else {f"extra/{path}": one for path, one in paths.objects(state.extra).items()}
    objects |= paths.objects(state.model)
    return {id(one): path for path, one in objects.items() if path}


def _values(made: list[Any], rows: int) -> list[np.ndarray]:
    """Returns the eager floating outputs of a layer that have a row for each example, as float64."""
    return [
        np.asarray(tf.cast(tensor, tf.float64))
        for tensor in made
        if isinstance(tensor, tf.Tensor)  # and not sparse or ragged
        and not tf.is_symbolic_tensor(tensor)
        and tensor.dtype.is_floating
        and tensor.shape[:1] == [rows]
    ]


def _is_constant(array: np.ndarray) -> bool:
    spread = np.ptp(array, axis=0).max(initial=0.0)
    return bool(spread <= _SAME * np.abs(array).max(initial=0.0))


def _is_same(array: np.ndarray, is_real: np.ndarray) -> bool:
    """Returns whether the rows of real examples are all the same; False for a field without rows."""
    if array.shape[:1] != is_real.shape:
        return False
    rows = array[is_real]
    return bool(np.all(rows == rows[:1]))

"""Finds what went bad first in a step: runs it again eagerly, on the same batch with the same draws, layer by layer.

diagnose(train_block)        # "layer 'dense_1': its output is not finite, its inputs are"
look(train_block).gradients  # its terms, metric states and gradients
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.compat import copy_mask
from framework.state import TrainState
from framework.step.block import TrainBlock
from framework.step.gradients import Gradients
from framework.step.penalties import is_penalty
from framework.step.penalty_checks import weight_problem

COMPILED_ALONE = "an eager re-run of the step is finite: only the compiled one, or the norm of all gradients, is not"
BATCH = "of the batch is not finite"
LOSS_ALONE = "of the loss is not finite, and no layer's output is to blame"


@dataclasses.dataclass(frozen=True)
class Look:
    """An eager run of a step that changed nothing.

    Attributes:
      gradients: its terms, metric states and gradients.
      finding: a sentence that names the first tensor that is not finite; '' if all are.
    """

    gradients: Gradients
    finding: str


def diagnose(block: TrainBlock) -> str:
    """Returns a sentence that names the first tensor of the next step that is not finite; changes nothing."""
    return look(block).finding or COMPILED_ALONE


def look(block: TrainBlock) -> Look:
    """Runs the next step eagerly and looks at every tensor; applies and changes nothing.

    In this order: the batch, the variables, layers as they run, the terms of the loss, the gradients that pass layers
    backwards, the gradients of the parameters.
    """
    forwards: list[str] = []
    backwards: list[str] = []
    with block.untouched():
        batch = block.batch()
        variable = _first_bad(
            {path: paths.copies(v)[0] for path, v in block.state.learned.items() if v.dtype.is_floating}
        )
        with _watched(block.state, forwards, backwards):
            result = block.dry_run(batch)
    if bad := _first_bad(batch):
        return Look(result, f"'{bad}' {BATCH}")
    if variable:
        return Look(result, f"the variable '{variable}' was not finite before the step")
    if forwards:
        return Look(result, forwards[0])
    if bad := _first_bad({name: term.sum for name, term in result.terms.items()}):
        if reason := is_penalty(bad) and "weight" in batch and weight_problem(block.state.model, batch["weight"]):
            return Look(result, reason)
        return Look(result, f"term '{bad}' {LOSS_ALONE}")
    if backwards:
        return Look(result, backwards[0])
    if bad := _first_bad(result.gradients):
        return Look(result, f"the gradient of '{bad}' is not finite, those that pass between layers are")
    return Look(result, "")


def _first_bad(tensors: Mapping[str, Any]) -> str:
    """Returns the name of the first tensor that is not finite; '' if all are."""
    return next((name for name, tensor in tensors.items() if not _is_finite(tensor)), "")


def _is_finite(nest: Any) -> bool:
    """Returns whether all floating eager tensors of a nest are finite; symbolic tensors belong to a trace."""
    tensors = [tensor for tensor in tf.nest.flatten(nest) if tf.is_tensor(tensor) and not tf.is_symbolic_tensor(tensor)]
    return all(bool(tf.reduce_all(tf.math.is_finite(tensor))) for tensor in tensors if tensor.dtype.is_floating)


@contextlib.contextmanager
def _watched(state: TrainState, forwards: list[str], backwards: list[str]) -> Iterator[None]:
    """While open, records what each layer computes that is not finite, in the order in which it is computed."""
    roots = {"": state.model} if state.extra is None else {"": state.model, "extra/": state.extra}
    layers = {
        prefix + path: child
        for prefix, root in roots.items()
        for path, child in paths.objects(root).items()
        if isinstance(child, keras.layers.Layer)
    }
    calls = {path: layer.__dict__.get("call") for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.call = _watching(layer.call, path or "the model", forwards, backwards)
    try:
        yield
    finally:
        for path, layer in layers.items():
            if calls[path] is None:
                del layer.call
            else:
                layer.call = calls[path]


def _watching(call: Callable[..., Any], path: str, forwards: list[str], backwards: list[str]) -> Callable[..., Any]:
    leaving = f"layer '{path}': the gradient that leaves it backwards is not finite, the one that reaches it is"
    reaching = f"layer '{path}': the gradient that reaches it backwards is not finite already"

    def watched(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tf.nest.map_structure(lambda value: _with_gradient(value, leaving, backwards), (args, kwargs))
        outputs = call(*args, **kwargs)
        if _is_finite((args, kwargs)) and not _is_finite(outputs):
            forwards.append(f"layer '{path}': its output is not finite, its inputs are")
        return tf.nest.map_structure(lambda value: _with_gradient(value, reaching, backwards), outputs)

    return watched


def _with_gradient(value: Any, event: str, events: list[str]) -> Any:
    """Returns `value`; records `event` if the gradient that passes is not finite."""
    if not tf.is_tensor(value) or tf.is_symbolic_tensor(value) or not value.dtype.is_floating:
        return value

    @tf.custom_gradient
    def passing(x: tf.Tensor) -> Any:
        def backwards(upstream: tf.Tensor) -> tf.Tensor:
            if not _is_finite(upstream):
                events.append(event)
            return upstream

        return tf.identity(x), backwards

    return copy_mask(value, passing(value))

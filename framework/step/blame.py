"""Names the index, label or assertion that stopped a step: its layer, field of the batch and value.

    blame = Blame(lambda batch, step: forward(loss, model, batch, True), batch, model)
    blame.problem(batch, step)
    # "layer 'embedding' takes 10, which is none of the rows 0 to 9; it comes from 'id' of the batch."

The step is traced again, and of the trace only what leads to its guards is run, one guard after the other.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.data.batches import Batches
from framework.data.bucketed import bucket_at, members_of
from framework.errors import UserError
from framework.trace import guards
from framework.trace.graphs import ancestors, imported, place

Batch = Mapping[str, tf.Tensor]
# (graph, operations before and after the call, path of the layer)
_Calls = list[tuple[Any, int, int, str]]


class Blame:
    """A trace of a step, or of how its batch is made, whose guards can be computed.

    Args:
      look: (batch, step) -> anything; the function to trace.
      batch: {name: tensor or spec}, of the shapes of the batches that `look` takes.
      roots: models, whose layers are named.
    """

    def __init__(self, look: Callable[[Batch, tf.Tensor], Any], batch: Mapping[str, Any], *roots: Any) -> None:
        def trace(given: Batch, step: tf.Tensor) -> None:
            look(given, step)

        specs = {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in batch.items()}
        self._calls: _Calls = []
        with _recorded(roots, self._calls):
            traced = tf.function(trace, autograph=False).get_concrete_function(specs, tf.TensorSpec([], tf.int64))
        self._graph, self._examples = traced.graph, next((spec.shape[0] for spec in specs.values() if spec.shape), None)

    def problem(self, batch: Batch, step: int) -> str:
        """Returns a sentence about the first guard that does not hold; '' if all hold."""
        for guard in guards.guards_of(self._graph):
            broken = self._compute(guard, [*tf.nest.flatten(dict(batch)), tf.constant(step, tf.int64)])
            if broken is not None:
                return _sentence(guard, *broken, self._layer(guard), self._examples)
        return ""

    def _compute(self, guard: guards.Guard, given: list[tf.Tensor]) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Returns where a guard does not hold, and the values there; None if it holds or cannot be computed."""
        graph = self._graph
        inputs = [*graph.inputs[: len(given)], *(inner for _, inner in graph.captures)]
        outers = [*given, *(outer for outer, _ in graph.captures)]
        wanted = [guard.bad] if guard.value is None else [guard.bad, guard.value]
        needed = set().union(*map(ancestors, wanted))

        def run() -> list[tf.Tensor]:
            pairs = zip(inputs, outers, strict=True)
            feeds = {inner.name: tf.identity(outer) for inner, outer in pairs if inner.op in needed}
            return imported(graph, wanted, feeds, "blame")

        try:
            bad, *values = (tensor.numpy() for tensor in tf.function(run, autograph=False)())
        except (tf.errors.OpError, ValueError):  # what leads to it is out of range itself
            return None
        return (bad, values[0] if values else None) if np.any(bad) else None

    def _layer(self, guard: guards.Guard) -> str:
        """Returns the path of the innermost layer whose call made a guard's operation; '' if none did."""
        at = {id(operation): index for index, operation in enumerate(self._graph.get_operations())}
        here, calls = at[id(guard.operation)], [call for call in self._calls if call[0] is self._graph]
        inside = [(end - start, path) for _, start, end, path in calls if start <= here < end]
        return min(inside, default=(0, ""))[1]


def first_problem(
    batches: Batches,
    look: Callable[[Mapping[str, tf.Tensor], tf.Tensor], Any],
    steps: Iterable[int],
    roots: Sequence[Any],
    sentence: Callable[[int, str], str],
) -> str:
    """Returns a sentence about the first of `steps` in which a guard fails, in its batch or in `look`; else ''.

    Args:
      look: see `Blame`.
      roots: see `Blame`.
      sentence: (step, problem) -> the sentence.
    """

    def make(member: Batches, _: Any, step: tf.Tensor) -> None:
        with guards.watched({}):
            member.at(step)

    of_data: dict[int, Blame] = {}
    of_step: dict[int, Blame] = {}
    for step in steps:
        bucket = bucket_at(batches, step)
        member = members_of(batches)[bucket]
        of_data[bucket] = of_data.get(bucket) or Blame(functools.partial(make, member), {})
        problem = of_data[bucket].problem({}, step)
        if not problem:
            batch = dict(member.at(step))
            of_step[bucket] = of_step.get(bucket) or Blame(look, batch, *roots)
            problem = of_step[bucket].problem(batch, step)
        if problem:
            return sentence(step, problem)
    return ""


@contextlib.contextmanager
def explained(problem: Callable[[], str]) -> Iterator[None]:
    """Turns what a kernel raises about its inputs into UserError(problem()), unless that is ''."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        sentence = problem()
        if not sentence:
            raise
        raise UserError(sentence) from error


def _sentence(guard: guards.Guard, bad: np.ndarray, values: np.ndarray | None, layer: str, examples: int | None) -> str:
    made = place(guard.operation)
    where = f"layer '{layer}'" if layer else "the loss" if made is None else f"{made[0]} ({made[1]}:{made[2]})"
    fields = " and ".join(f"'{name}'" for name in guard.fields)
    if values is None:
        return f"{where}: {guard.problem}{f', computed from {fields} of the batch' if fields else ''}."
    first = tuple(np.argwhere(np.broadcast_to(bad, values.shape))[0]) if values.shape else ()
    value = values[first] if np.shape(bad) else values
    example = f", example {first[0]}" if first and values.shape[0] == examples else ""
    origin = f"; it comes from {fields} of the batch{example}" if fields else ", whatever the batch is"
    return f"{where} takes {value}, {guard.problem}{origin}."


@contextlib.contextmanager
def _recorded(roots: tuple[Any, ...], calls: _Calls) -> Iterator[None]:
    """While open, records which operations the call of each layer makes."""
    layers = {
        path or "the model": child
        for root in roots
        if root is not None
        for path, child in paths.objects(root).items()
        if isinstance(child, keras.layers.Layer)
    }
    before = {path: layer.__dict__.get("call") for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.call = _recording(layer.call, path, calls)
    try:
        yield
    finally:
        for path, layer in layers.items():
            if before[path] is None:
                del layer.call
            else:
                layer.call = before[path]


def _recording(call: Callable[..., Any], path: str, calls: _Calls) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        graph = tf.compat.v1.get_default_graph()
        start = len(graph.get_operations())
        outputs = call(*args, **kwargs)
        calls.append((graph, start, len(graph.get_operations()), path))
        return outputs

    return recorded

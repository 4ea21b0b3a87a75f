"""The protocol of an export hook, the signatures that it exports, and the report on its artefact.

    signature = Signature(
        fn=lambda model, inputs: {"logits": model(inputs["image"], training=False)},
        inputs={"image": tf.TensorSpec([None, 28, 28], tf.float32)},
    )
    hooks = [SavedModel({SERVING: signature}), Lite(signature)]

`runner.py` runs the hooks, `verify.py` checks their artefacts.
"""

import dataclasses
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from framework import compat, optim, paths
from framework.compile import jit
from framework.errors import UserError
from framework.export.bounds import Bounds
from framework.trace import guards
from framework.trace.assigned import assigned
from framework.trace.graphs import called

_NAME = r"[A-Za-z][A-Za-z0-9_]*"
SERVING = "serving_default"  # the signature that every export has, and that latency and metrics are measured on

Arrays = dict[str, np.ndarray]
Call = Callable[[Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Describes a function of the model that is exported.

    Attributes:
      fn: (model, {name: tensor}) -> {name: tensor}; calls the model with `training=False` and changes no state. The
        first dimension of every output is the batch.
      inputs: {name: tf.TensorSpec}: the names and dtypes that clients send. The first dimension is the batch: None.
      from_batch: held-out batch -> inputs, {name: NumPy array}, row by row, if clients send what the batches do not
        hold, such as text. None takes the arrays of the batch that have the names of the inputs.
      has_metrics: False if the outputs are not those that the run's metrics read, such as decoded tokens: outputs are
        compared then, and no metrics.
      uses: objects with variables or lookup tables that `fn` uses beside the model, such as a tokenizer.
      holds: whose data the export holds as it is, such as titles, and on what terms; the report repeats it.
    """

    fn: Callable[[Any, dict[str, tf.Tensor]], Mapping[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    from_batch: Callable[[Arrays], Arrays] | None = None
    has_metrics: bool = True
    uses: Sequence[Any] = ()
    holds: str = ""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError('Signature.inputs is empty. Name inputs, e.g. {"image": tf.TensorSpec([None, 28, 28])}.')
        for name, spec in self.inputs.items():
            if not re.fullmatch(_NAME, name) or keyword.iskeyword(name) or name == "self":
                raise UserError(
                    f"Signature.inputs['{name}']: TensorFlow gives such an input another name. Use letters of ASCII,"
                    " digits and _, begin with a letter, and leave out 'self' and Python's own words."
                )
            if same := [other for other in self.inputs if other != name and other.lower() == name.lower()]:
                raise UserError(
                    f"Signature.inputs['{name}'] and ['{same[0]}'] are one name to TensorFlow, which reads no capitals."
                    " Give one another name."
                )
            if spec.shape.rank in (None, 0) or spec.shape[0] is not None:
                raise UserError(
                    f"Signature.inputs['{name}'] has shape {spec.shape}: its first dimension is the batch and must be"
                    " free. Use tf.TensorSpec([None, ...])."
                )

    def inputs_of(self, batch: Arrays) -> Arrays:
        """Returns {name: array} of the inputs for a held-out batch; what the batch does not have is left out."""
        arrays = batch if self.from_batch is None else self.from_batch(batch)
        return {name: arrays[name] for name in self.inputs if name in arrays}

    def check(self, name: str, batch: Arrays, split: str) -> None:
        """Raises UserError unless a batch has every input, with its dtype and shape, and a row for each example.

        Args:
          name: the signature, as errors name it.
          batch: {name: [n, …]}.
          split: the batches, as errors name them: 'held-out'.
        """
        arrays = self.inputs_of(batch)
        for key, spec in self.inputs.items():
            if key not in arrays:
                raise UserError(
                    f"signature '{name}' takes '{key}', which is not in the {split} batches:"
                    f" {', '.join(sorted(batch))}. Take inputs that the batches have, or make them by"
                    " Signature(from_batch=…)."
                )
            array = np.asarray(arrays[key])
            kind = tf.as_dtype(array.dtype)
            if kind != spec.dtype or not spec.shape.is_compatible_with(array.shape):
                raise UserError(
                    f"signature '{name}' takes '{key}' as {spec.dtype.name} {spec.shape}, but the {split} batches hold"
                    f" {kind.name} {array.shape}."
                )
            if len(array) != len(batch["weight"]):
                raise UserError(
                    f"signature '{name}': from_batch gives {len(array)} rows of '{key}' for {len(batch['weight'])}"
                    f" examples of the {split} batches. Give one for each, in their order."
                )

    def trace(self, model: Any, jit_compile: bool = False) -> tf.types.experimental.ConcreteFunction:
        """Returns a new graph of `fn` on `model`, which takes the inputs as keywords; XLA compiles it if asked to.

        An index out of range is an error of each call, also where `fn` compiles a part of itself: XLA would take the
        nearest one.

        Raises:
          UserError: `fn` does not return a dict of named dense tensors, changes a variable, or calls a tf.function that
            was traced where a quantised model computed in another mode.
        """

        def serve(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs, checks = (_by_xla if jit_compile else _by_graph)(self.fn, model, inputs)
            if not isinstance(outputs, Mapping) or not outputs:
                raise UserError(
                    f"Signature.fn returned {type(outputs).__name__}. Return a dict of named tensors,"
                    ' e.g. {"logits": logits}.'
                )
            dense = {name: _dense(name, output) for name, output in outputs.items()}
            with tf.control_dependencies(checks):
                return {name: tf.identity(output) for name, output in dense.items()} if checks else dense

        specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()}
        function = tf.function(serve, autograph=False).get_concrete_function(**specs)
        optim.check_traced(function.graph)
        if changed := assigned(function.graph, model):
            raise UserError(
                f"Signature.fn changes the variable '{changed[0].name}', so an answer would depend on earlier requests."
                " Call the model with training=False, and let it count nothing then."
            )
        return function


def _by_graph(
    fn: Callable[..., Mapping[str, Any]], model: Any, inputs: dict[str, tf.Tensor]
) -> tuple[Any, list[tf.Operation]]:
    """Returns what `fn` does as a graph, and assertions on the guards of what it compiles by XLA itself."""
    graph = tf.compat.v1.get_default_graph()
    watch = guards.Watch(inputs, graph, of_shapes=True)
    outputs = fn(model, inputs)
    if not _has_xla(graph):  # kernels raise by themselves, and a guard would be computed at each request
        return outputs, []
    watch.read()
    return outputs, [_assertion(guard, *_flag(guard)) for guard in watch.guards]


def _has_xla(graph: Any) -> bool:
    """Returns whether a graph, or a function in it, calls a program of XLA."""
    if any(operation.node_def.attr["_XlaMustCompile"].b for operation in graph.get_operations() if called(operation)):
        return True
    return any(map(_has_xla, compat.function_graphs(graph)))


def _by_xla(
    fn: Callable[..., Mapping[str, Any]], model: Any, inputs: dict[str, tf.Tensor]
) -> tuple[Any, list[tf.Operation]]:
    """Returns what `fn` does as an XLA program, and assertions, outside of it, on the guards that it computes too.

    Raises:
      UserError: a lookup is in a loop or function of its own, and so cannot be guarded.
    """
    found: list[guards.Guard] = []

    def program() -> Any:
        with guards.watched(inputs, of_shapes=True, instead="Leave the format of XLA programs out.") as watch:
            outputs = fn(model, inputs)
        found.extend(watch.guards)
        return outputs, [_flag(guard) for guard in watch.guards]

    outputs, flags = jit(program)()
    return outputs, [_assertion(guard, *pair) for guard, pair in zip(found, flags, strict=True)]


def _flag(guard: guards.Guard) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where a guard does not hold, and the values there; an assertion has none, and a program no None."""
    return guard.bad, guard.bad if guard.value is None else guard.value


def _assertion(guard: guards.Guard, bad: tf.Tensor, value: tf.Tensor) -> tf.Operation:
    """Returns an operation that raises InvalidArgumentError, with the values, where a guard does not hold."""
    values = [] if guard.value is None else [tf.boolean_mask(tf.reshape(value, [-1]), tf.reshape(bad, [-1]))]
    message = [f"{' and '.join(guard.fields) or 'an index'}:", *values, guard.problem]
    return tf.debugging.Assert(~tf.reduce_any(bad), message, summarize=3)


def _dense(name: Any, output: Any) -> tf.Tensor:
    """Returns an output of a signature as a tensor.

    Raises:
      UserError: its name is no text, or it is None, a dict, ragged or sparse.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"Signature.fn returned an output named {name!r}. Name it by text, e.g. 'logits'.")
    try:
        return tf.convert_to_tensor(output)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Signature.fn returned a value of type {type(output).__name__} as '{name}'. Return dense tensors, e.g."
            " ragged.to_tensor() or tf.sparse.to_dense(sparse), each under a name of its own."
        ) from error


def check_names(kind: str, signatures: Mapping[str, Signature]) -> None:
    """Raises UserError unless a hook, of the class `kind`, has signatures that a client can name."""
    for name in signatures:
        if not isinstance(name, str) or not name or name.startswith("__"):
            raise UserError(
                f"{kind} has a signature named {name!r}. Name it by a text, e.g. 'features'; names that begin with __"
                " are TensorFlow's own."
            )


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Says how a fresh process loads an artefact.

    Attributes:
      file: a Python file, which imports what the format needs and nothing of this project, because the process has to
        show that the artefact needs no more.
      function: the name of a function in it, (path as str, **settings) -> {signature: NumPy inputs -> NumPy outputs}.
      settings: further arguments, of values that JSON has.
    """

    file: Path
    function: str = "load"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class ExportHook(Protocol):
    """Writes and loads one export format; an immutable value, so the artefact depends on the model alone.

    A hook whose artefact is to be verified in a fresh process also has `runtime`, a `Runtime`.

    A hook whose artefact computes in another precision than the model also has `arithmetic(model)`: a context in which
    the model computes in the artefact's precision, for the comparison.

    A hook with `complete(path, batches)` adds to what it has written, from held-out batches. One with `beside`, {file
    name: text}, has these files in exports/<name>/, unless they are there already, for people to edit.

    A hook that needs examples of the training split, for the ranges of int8 say, also has `representative`, their
    number; `write(model, path, batches)` gets them as batches {name: [n, …]} without padding.

    A hook with `measure(model, batches)`, unless it is None, adds the {name: JSON} that it returns to the report of an
    artefact that has passed.
    """

    @property
    def name(self) -> str:
        """Returns the name of the folder below exports/."""

    @property
    def bound(self) -> float | Bounds:
        """Returns how far outputs may be from those of the trained model.

        A number is the allowed error of a floating-point output, relative to max(1, max|reference|) of that output, for
        formats that compute as the model does: rows keep their argmax but for ties, and metrics differ by at most 1e-3.
        `Bounds` are for formats that approximate the model.
        """

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Returns {name: signature}; 'serving_default' is one of them."""

    def target(self, folder: Path) -> Path:
        """Returns the place of the next artefact, directly below `folder` (exports/<name>, which may not exist yet)."""

    def write(self, model: Any, path: Path) -> None:
        """Writes the artefact, a file or a folder, at exactly `path`."""

    def load(self, path: Path) -> Mapping[str, Call]:
        """Returns {signature: NumPy inputs -> NumPy outputs} of the artefact, loaded here in its own runtime."""


def first_rows(batch: Arrays, size: int) -> Arrays:
    """Returns the first rows of a batch, from the start again if it has fewer."""
    return {name: np.take(array, np.arange(size), axis=0, mode="wrap") for name, array in batch.items()}


def make_servable(model: Any) -> tf.Module:
    """Returns a module with the variables and lookup tables of a model, so that no Python class is exported.

    Args:
      model: a Keras model, a tf.Module or a dict of them.
    """
    holder = tf.Module()
    holder.model = model
    kinds = (tf.Variable, tf.saved_model.experimental.TrackableResource)
    servable = tf.Module()
    servable.objects = {path: child for path, child in paths.objects(holder).items() if isinstance(child, kinds)}
    return servable

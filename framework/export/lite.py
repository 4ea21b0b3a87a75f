"""The LiteRT format, for phones and small boards, in float32, float16 or int8: exports/lite/model.tflite.

    signature = Signature(fn, {"image": tf.TensorSpec([None, 28, 28], tf.float32)})
    [Lite(signature), Lite(signature, "int8")]            # exports/lite/, exports/lite_int8/
    Lite({"serving_default": signature, "features": embed})     # one file, whose signatures share the weights

    interpreter = ai_edge_litert.interpreter.Interpreter("exports/lite/model.tflite")
    runner = interpreter.get_signature_runner("serving_default")
    runner(image=images)["logits"]              # any batch size; the runner resizes the input

A model that was trained in half precision computes in float32 here, from the same float32 weights. The int8 formats of
a run with `quantize` hold the ranges that were trained; its other formats compute with the weights as they are.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from framework import optim, precision
from framework.errors import UserError, near
from framework.export.base import SERVING, Arrays, Call, Runtime, Signature, check_names, make_servable
from framework.export.bounds import Bounds
from framework.export.lite_formats import FORMATS
from framework.layers.attention import finite_masks

_MISSING_OPS = re.compile(r"^(?:TF Select|Flex|Custom) ops: (.+?)\s*$", re.MULTILINE)
_LISTS = re.compile(r"'tf\.TensorList\w+' op requires element_shape to be static")


@dataclasses.dataclass(frozen=True)
class Lite:
    """Exports one signature for LiteRT, or several in one file.

    | format | weights | arithmetic | inputs and outputs |
    |---|---|---|---|
    | `float32` | float32 | float32 | as of the signature |
    | `float16` | float16 | float32 | as of the signature |
    | `sparse` | float32, of pruned weights only those that are not 0 | float32 | as of the signature |
    | `dynamic` | int8 | int8 in products, by ranges found at each call; else float32 | as of the signature |
    | `int8` | int8 | int8, by ranges found in training examples; float32 where there is no int8 | as of the signature |
    | `int8_io` | int8 | the same | int8 in place of float32: the host quantises |

    Attributes:
      signature: the signature, exported as 'serving_default'; or {name: Signature}, of which one is 'serving_default'.
      format: one of the table.
      bound: allowed error, see `ExportHook.bound`; None is that of the format in `FORMATS` of `lite_formats.py`.
      name: name of the folder below exports/; '' is 'lite' for float32, and 'lite_<format>' for the others.
      examples: number of training examples by which `int8` and `int8_io` find the ranges of activations, unless these
        were trained.

    Raises:
      UserError: there is no such format, `examples` is below 1, there is no 'serving_default', or a host cannot name a
        signature.
    """

    signature: Signature | Mapping[str, Signature]
    format: str = "float32"
    bound: float | Bounds = None  # type: ignore[assignment]  # __post_init__ sets it
    name: str = ""
    examples: int = 200

    def __post_init__(self) -> None:
        set_defaults(self, "lite")
        check_names("Lite", self.signatures)
        if SERVING not in self.signatures:
            raise UserError(
                f"Lite has the signatures {', '.join(sorted(self.signatures)) or '(none)'}, but no '{SERVING}', whose"
                f' latency and metrics are measured. Use Lite({{"{SERVING}": Signature(...)}}).'
            )

    @property
    def signatures(self) -> dict[str, Signature]:
        return {SERVING: self.signature} if isinstance(self.signature, Signature) else dict(self.signature)

    @property
    def representative(self) -> int:
        """Returns how many examples of the training split `write` needs, see `ExportHook`."""
        return self.examples if FORMATS[self.format].is_calibrated else 0

    def target(self, folder: Path) -> Path:
        return folder / "model.tflite"

    def write(self, model: Any, path: Path, examples: Iterable[Arrays] = ()) -> None:
        """Converts the signatures and writes the file.

        Raises:
          UserError: a graph computes in another precision, has an operation that LiteRT does not have, the examples
            do not have the inputs of a signature, or no weight is sparse for 'sparse'.
        """
        is_trained = self._is_trained(model)
        made = FORMATS[self.format]
        masks = finite_masks(model) if made.is_calibrated else contextlib.nullcontext()
        with self.arithmetic(model), optim.computing(optim.CONVERTED if is_trained else optim.FLOAT), masks:
            functions = {name: signature.trace(model) for name, signature in self.signatures.items()}
        for function in functions.values():
            check_float32(self.name, function)
        # Those of `quantize`, or of tensorflow_model_optimization: the converter takes no examples beside them.
        has_ranges = self._has_ranges(functions)
        set_up = made.set_up_trained if has_ranges and made.set_up_trained else made.set_up
        with _converter(functions, make_servable(model), path.parent) as converter:
            set_up(converter)
            if self.representative and not has_ranges:
                rows = self._rows(list(examples))
                converter.representative_dataset = lambda: iter(rows)
            convert(self.name, converter, path)
        if made.is_sparse:
            check_sparse(self.name, path)
        elif self.format == "dynamic":
            check_dynamic(self.name, path)

    def _has_ranges(self, functions: Mapping[str, tf.types.experimental.ConcreteFunction]) -> bool:
        """Returns whether the graphs hold ranges of activations that were trained; refuses an int8 of both kinds."""
        of_each = {name: _has_ranges(function) for name, function in functions.items()}
        if self.representative and len({*of_each.values()}) > 1:
            without = ", ".join(name for name, has in of_each.items() if not has)
            raise UserError(
                f"export '{self.name}': the signatures {without} have no ranges of activations from training, and the"
                " others have, so one file cannot hold both in int8. Give each kind a Lite of its own."
            )
        return any(of_each.values())

    def _rows(self, batches: Sequence[Arrays]) -> list[Any]:
        """Returns the inputs of training examples; of several signatures, (name, inputs)."""
        rows = {name: list(rows_of(self.name, one, batches, name)) for name, one in self.signatures.items()}
        if len(rows) == 1:
            return rows[SERVING]
        return [(name, row) for name, of_one in rows.items() for row in of_one]

    @contextlib.contextmanager
    def arithmetic(self, model: Any) -> Iterator[None]:
        """Opens the context in which the model computes as the artefact does, see `ExportHook`.

        An int8 format is compared with the rounded forward pass that a run with `quantize` has trained, if it has one.
        """
        with in_float32(model), optim.computing(optim.ROUNDED if self._is_trained(model) else optim.FLOAT):
            yield

    def _is_trained(self, model: Any) -> bool:
        """Returns whether the file holds the ranges that were trained, and needs no examples."""
        return FORMATS[self.format].set_up_trained is not None and optim.quantizer_of(model) is not None

    @property
    def runtime(self) -> Runtime:
        """Returns how a fresh process loads the artefact, see `ExportHook`."""
        return Runtime(Path(__file__).with_name("lite_runtime.py"))

    def load(self, path: Path) -> dict[str, Call]:
        # Imported here, because a run that exports no .tflite does not need LiteRT.
        from framework.export import lite_runtime

        return lite_runtime.load(str(path))


def set_defaults(hook: Any, base: str) -> None:
    """Checks the format and the examples of a hook, and sets its name and bound unless they were given.

    Raises:
      UserError: there is no such format, or `examples` is below 1.
    """
    kind = type(hook).__name__
    if hook.format not in FORMATS:
        raise UserError(
            f"{kind}: there is no format '{hook.format}'. Use one of {', '.join(FORMATS)}.{near(hook.format, FORMATS)}"
        )
    if hook.examples < 1:
        raise UserError(f"{kind}: examples={hook.examples} is out of range: it must be at least 1.")
    defaults = {
        "name": hook.name or (base if hook.format == "float32" else f"{base}_{hook.format}"),
        "bound": FORMATS[hook.format].bound if hook.bound is None else hook.bound,
    }
    for name, value in defaults.items():
        object.__setattr__(hook, name, value)  # the way to set a field of a frozen dataclass


@contextlib.contextmanager
def _converter(
    functions: Mapping[str, tf.types.experimental.ConcreteFunction], servable: tf.Module, folder: Path
) -> Iterator[Any]:
    """Yields a converter of the graphs of signatures.

    Args:
      functions: {name: graph}.
      servable: holds their variables.
      folder: a place for what the converter reads while the context is open.
    """
    if len(functions) == 1:
        yield tf.lite.TFLiteConverter.from_concrete_functions([*functions.values()], servable)
        return
    servable.functions = functions
    with tempfile.TemporaryDirectory(dir=folder) as saved:  # the converter takes one concrete function alone
        tf.saved_model.save(servable, saved, signatures=dict(functions))
        yield tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=[*functions])


def rows_of(hook: str, signature: Signature, batches: Iterable[Arrays], name: str = SERVING) -> Iterator[Arrays]:
    """Yields the inputs of one training example at a time, for the ranges of activations.

    Args:
      hook: its name, for errors.
      signature: takes the inputs.
      batches: of the training split.
      name: of the signature, for errors.

    Raises:
      UserError: an input is missing, has another shape or dtype, or is not finite; or there is no example.
    """
    number = 0
    for batch in batches:
        signature.check(name, batch, "training")
        inputs = signature.inputs_of(batch)
        for key, array in inputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise UserError(
                    f"export '{hook}': '{key}' of the training batches has NaN or infinite values, so the"
                    " ranges of activations cannot be found. Mend the data, or leave the format out."
                )
        for row in range(len(batch["weight"])):
            yield {key: array[row : row + 1] for key, array in inputs.items()}
            number += 1
    if not number:
        raise UserError(
            f"export '{hook}': there is no training example to find the ranges of activations by."
            " Give export_all(training=…), or leave the format out."
        )


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """While open, a model computes in float32, and rounds nothing, whatever it was trained in."""
    with precision.in_float32(model), optim.computing(optim.FLOAT):
        yield


def check_float32(name: str, function: tf.types.experimental.ConcreteFunction) -> None:
    """Raises UserError, which names the export, if an operation computes in another precision than float32."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for nested in graph.library.function for node in nested.node_def)]
    for node in nodes:
        for kind in (tf.float64, tf.bfloat16, tf.float16):
            if any(attribute.type == kind.as_datatype_enum for attribute in node.attr.values()):
                own = "" if kind == tf.float64 else ", whatever its layer's precision"
                raise UserError(
                    f"export '{name}': '{node.name}' is {kind.name}{own}, which LiteRT cannot run."
                    " Use --config.train.precision=float32, or leave Lite out of make_exports."
                )


def _has_ranges(function: tf.types.experimental.ConcreteFunction) -> bool:
    """Returns whether a graph holds ranges of activations that were trained."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for nested in graph.library.function for node in nested.node_def)]
    return any(node.op.startswith("FakeQuant") for node in nodes)


def convert(name: str, converter: Any, path: Path) -> None:
    """Writes what a converter makes.

    Raises:
      UserError: LiteRT does not have an operation or must know the shape of a list, or the converter cannot make a
        weight sparse.
    """
    from framework.export.lite_runtime import caught_stderr

    chatter: list[bytes] = []
    try:
        with caught_stderr(chatter):
            converted = converter.convert()
    except Exception as error:
        (path.parent / "converter.txt").write_bytes(b"".join(chatter))
        # It prints why, at a log level that a launch hides, and raises an error without a word.
        if tf.lite.Optimize.EXPERIMENTAL_SPARSITY in converter.optimizations and not str(error):
            raise UserError(
                f"export '{name}': the converter cannot leave the zeros out of a weight that several operations read,"
                " such as a table that embeds tokens and makes logits. Train with e.g."
                " --config.prune.exclude='.*table', or leave the format out."
            ) from error
        if _LISTS.search(str(error)):
            raise UserError(
                f"export '{name}': a loop of the signature, such as that of a recurrent layer or of tf.map_fn, collects"
                " outputs whose shape LiteRT must know. Make LSTM, GRU and RNN with unroll=True and give their input a"
                " fixed length, or leave Lite out of make_exports."
            ) from error
        missing = _MISSING_OPS.search(str(error))
        if missing is None:
            raise
        raise UserError(
            f"export '{name}': LiteRT does not have {missing[1]}. Use other operations in the signature's fn,"
            " or leave Lite out of make_exports."
        ) from error
    path.write_bytes(converted)


def _tensors(path: Path) -> Iterator[dict[str, Any]]:
    """Yields what the interpreter knows of each tensor of a file, of all its signatures and functions."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    for subgraph in range(interpreter.num_subgraphs()):
        yield from interpreter.get_tensor_details(subgraph)


def check_sparse(name: str, path: Path) -> None:
    """Raises UserError, and removes the file, if all weights in it are dense: it would be a float32 file."""
    if not any(tensor["sparsity_parameters"] for tensor in _tensors(path)):
        path.unlink()
        raise UserError(
            f"export '{name}': no weight is sparse, so the file would be that of float32. A weight of a dense or"
            " convolution layer is stored so if at least 30 % of it are 0. Train with --config.prune.sparsity=0.8, or"
            " leave the format out."
        )


def check_dynamic(name: str, path: Path) -> None:
    """Raises UserError, and removes the file, if it has no int8: it would be a float32 file."""
    if not any(tensor["dtype"] is np.int8 for tensor in _tensors(path)):
        path.unlink()
        raise UserError(
            f"export '{name}': no weight is int8, so the file would be that of float32. The converter leaves weights"
            " of fewer than 1,024 numbers in float32. Take int8 or weights8, or leave the format out."
        )

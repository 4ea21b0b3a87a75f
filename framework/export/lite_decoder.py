"""A sequence model for LiteRT: an encoder and a decoder step in one file, between which the host loops.

    LiteDecoder(
        start=lambda model, inputs: model.start(inputs["source"]),                      # -> state, [batch, …] each
        step=lambda model, tokens, state, position: model.step(tokens, state, position),  # -> logits, state
        inputs={"source": tf.TensorSpec([None, 24], tf.int32)},
        begin=1, end=2, length=24,
    )

    runner = ai_edge_litert.interpreter.Interpreter("exports/lite_decoder/model.tflite").get_signature_runner
    ids = greedy(runner("start"), runner("step"), {"source": source}, begin=1, end=2, length=24)

`format` is one of those of `Lite`, such as 'dynamic' with int8 weights: exports/lite_decoder_dynamic/. The signature
`start` takes the inputs and returns `state_0`, `state_1`, …; `step` takes `tokens`, `position` and these,
and returns `logits` and the next ones. `greedy` of `lite_runtime.py` is the loop, in NumPy alone, for the host to copy.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from framework import optim
from framework.decoding import Greedy, decode
from framework.errors import UserError
from framework.export.base import SERVING, Arrays, Call, Runtime, Signature, make_servable
from framework.export.bounds import Bounds
from framework.export.lite import check_dynamic, check_float32, check_sparse, convert, in_float32, rows_of, set_defaults
from framework.export.lite_formats import FORMATS
from framework.layers.attention import finite_masks

_STATE = "state_"


@dataclasses.dataclass(frozen=True)
class LiteDecoder:
    """Exports two signatures, `start` and `step`, and verifies that greedy decoding with them gives the same tokens.

    The reference is `framework.decode` with the trained model in float32. In the format float32 every id must be equal;
    of the others, `bound` says which part.

    Attributes:
      start: (model, {name: tensor}) -> state, a nest of tensors [batch, …].
      step: (model, tokens int32 [batch], state, position int32 scalar) -> (logits [batch, vocabulary], state).
      inputs: {name: tf.TensorSpec}, as of a `Signature`; all dimensions but the batch are static.
      begin: the token before the first position.
      end: the token that ends a sequence.
      length: most tokens of a sequence.
      padding: the id after the end.
      from_batch: as of a `Signature`.
      bound: of `Bounds` only `agreement` has an effect, the least part of equal ids; None is that of the format in
        `FORMATS` of `lite_formats.py`.
      name: name of the folder below exports/; '' is 'lite_decoder' for float32, and 'lite_decoder_<format>' for others.
      format: one of `Lite` but 'int8_io': states pass from step to step as they are.
      examples: number of training examples that are decoded to find the ranges of activations for `int8`.

    Raises:
      UserError: there is no such format, or `examples` is below 1.
    """

    start: Callable[[Any, dict[str, tf.Tensor]], Any]
    step: Callable[[Any, tf.Tensor, Any, tf.Tensor], tuple[tf.Tensor, Any]]
    inputs: Mapping[str, tf.TensorSpec]
    begin: int
    end: int
    length: int
    padding: int = 0
    from_batch: Callable[[Arrays], Arrays] | None = None
    bound: float | Bounds = None  # type: ignore[assignment]  # __post_init__ sets it
    name: str = ""
    format: str = "float32"
    examples: int = 20

    def __post_init__(self) -> None:
        if self.format == "int8_io":
            raise UserError(
                "LiteDecoder: states pass from step to step, whose int8 would have other scales. Use format='int8'."
            )
        set_defaults(self, "lite_decoder")

    @property
    def representative(self) -> int:
        """Returns how many examples of the training split `write` needs, see `ExportHook`."""
        return self.examples if FORMATS[self.format].is_calibrated else 0

    @property
    def signatures(self) -> dict[str, Signature]:
        return {SERVING: Signature(self._decoded, self.inputs, self.from_batch, has_metrics=False)}

    def _decoded(self, model: Any, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        def step(tokens: tf.Tensor, state: Any, position: tf.Tensor) -> tuple[tf.Tensor, Any]:
            return self.step(model, tokens, state, position)

        state = self.start(model, inputs)
        result = decode(step, state, self.begin, self.end, self.length, Greedy(), padding=self.padding)
        return {"ids": result.ids[:, 0]}

    def target(self, folder: Path) -> Path:
        return folder / "model.tflite"

    def write(self, model: Any, path: Path, examples: Iterable[Arrays] = ()) -> None:
        """Converts both signatures and writes the file.

        Raises:
          UserError: a graph computes in another precision, or has an operation that LiteRT does not have, the examples
            do not have the inputs, or no weight is sparse for 'sparse'.
        """
        masks = finite_masks(model) if FORMATS[self.format].is_calibrated else contextlib.nullcontext()
        with self.arithmetic(model), masks:
            functions = self._functions(model)
            for function in functions.values():
                optim.check_traced(function.graph)
        for function in functions.values():
            check_float32(self.name, function)
        servable = make_servable(model)
        servable.functions = functions
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            tf.saved_model.save(servable, folder, signatures=dict(functions))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[*functions])
            FORMATS[self.format].set_up(converter)
            if self.representative:
                calls = self._calls(functions, examples)
                converter.representative_dataset = lambda: iter(calls)
            convert(self.name, converter, path)
        if FORMATS[self.format].is_sparse:
            check_sparse(self.name, path)
        elif self.format == "dynamic":
            check_dynamic(self.name, path)

    def _calls(self, functions: Mapping[str, Any], examples: Iterable[Arrays]) -> list[tuple[str, Arrays]]:
        """Returns (signature, inputs) of each call while training examples are decoded one by one."""
        from framework.export.lite_runtime import greedy

        calls: list[tuple[str, Arrays]] = []

        def recorded(name: str) -> Callable[..., Arrays]:
            def call(**inputs: np.ndarray) -> Arrays:
                calls.append((name, inputs))
                outputs = functions[name](**{key: tf.constant(array) for key, array in inputs.items()})
                return {key: output.numpy() for key, output in outputs.items()}

            return call

        for inputs in rows_of(self.name, self.signatures[SERVING], examples):
            greedy(recorded("start"), recorded("step"), inputs, **self._loop)
        return calls

    def arithmetic(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which the model computes as the artefact does, see `ExportHook`."""
        return in_float32(model)

    def _functions(self, model: Any) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Returns new graphs of `start` and `step`."""
        like: list[Any] = []

        def start(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            state = self.start(model, inputs)
            like[:] = [state]
            return _named(state)

        def step(tokens: tf.Tensor, position: tf.Tensor, **leaves: tf.Tensor) -> dict[str, tf.Tensor]:
            flat = [leaves[f"{_STATE}{place}"] for place in range(len(leaves))]
            logits, state = self.step(model, tokens, tf.nest.pack_sequence_as(like[0], flat), position)
            return {"logits": tf.convert_to_tensor(logits), **_named(state)}

        specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()}
        started = tf.function(start, autograph=False).get_concrete_function(**specs)
        states = {
            name: tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, name)
            for name, spec in started.structured_outputs.items()
        }
        stepped = tf.function(step, autograph=False).get_concrete_function(
            tf.TensorSpec([None], tf.int32, "tokens"), tf.TensorSpec([], tf.int32, "position"), **states
        )
        return {"start": started, "step": stepped}

    @property
    def runtime(self) -> Runtime:
        """Returns how a fresh process loads the artefact, see `ExportHook`."""
        return Runtime(Path(__file__).with_name("lite_runtime.py"), "load_decoder", self._loop)

    def load(self, path: Path) -> dict[str, Call]:
        # Imported here, because a run that exports no .tflite does not need LiteRT.
        from framework.export import lite_runtime

        return lite_runtime.load_decoder(str(path), **self._loop)

    @property
    def _loop(self) -> dict[str, int]:
        """Returns the arguments of `greedy` that are the hook's own."""
        return {"begin": self.begin, "end": self.end, "length": self.length, "padding": self.padding}


def _named(state: Any) -> dict[str, tf.Tensor]:
    """Returns the tensors of a state by the names that they have in the signatures."""
    leaves = tf.nest.flatten(state)
    if any(leaf is None for leaf in leaves):
        raise UserError("LiteDecoder: a leaf of the state is None. Leave it out of the state.")
    return {f"{_STATE}{place}": tf.identity(leaf) for place, leaf in enumerate(leaves)}

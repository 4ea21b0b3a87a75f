"""The SavedModel format, in the layout of TensorFlow Serving: exports/saved_model/<version>/saved_model.pb.

SavedModel({"serving_default": classify, "features": embed}, serving=Serving("mnist", warm_up=(1, 32)))

loaded = tf.saved_model.load("exports/saved_model/1")
loaded.signatures["serving_default"](image=images)["logits"]
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from framework import manifest, optim
from framework.errors import UserError
from framework.export import saved_model_runtime
from framework.export.base import SERVING, Arrays, Call, Runtime, Signature, check_names, make_servable
from framework.export.serving import Serving


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """Exports graphs and variables, which load without this project and without Keras. Each export is a new version.

    Attributes:
      signatures: {name: Signature}; one is 'serving_default', which TensorFlow Serving calls by default.
      bound: allowed relative error, see `ExportHook.bound`.
      name: name of the folder below exports/.
      measure: (model, held-out batches) -> {name: JSON} for the report, such as the recall of an approximate index.
      serving: what TensorFlow Serving gets beside the SavedModel; None is nothing.
      jit_compile: whether the signatures are XLA programs, compiled at the first call of each batch size.

    Raises:
      UserError: there is no 'serving_default', or a client cannot name a signature.
    """

    signatures: Mapping[str, Signature]
    bound: float = 2e-6
    name: str = "saved_model"
    measure: Callable[[Any, Sequence[Arrays]], Mapping[str, Any]] | None = None
    serving: Serving | None = None
    jit_compile: bool = False

    def __post_init__(self) -> None:
        check_names("SavedModel", self.signatures)
        if SERVING not in self.signatures:
            raise UserError(
                f"SavedModel has the signatures {', '.join(sorted(self.signatures)) or '(none)'}, but no '{SERVING}',"
                f' which TensorFlow Serving calls by default. Use SavedModel({{"{SERVING}": Signature(...)}}).'
            )

    def target(self, folder: Path) -> Path:
        newest = max((manifest.number(child.name) or 0 for child in folder.glob("*")), default=0)
        if newest == manifest.LARGEST:
            raise UserError(f"{folder / str(newest)} has the largest number of a version. Remove it, and export again.")
        return folder / str(newest + 1)

    def write(self, model: Any, path: Path) -> None:
        """Writes the folder of a version.

        Raises:
          UserError: a signature that XLA compiles has texts, or one uses an object that is neither the model's nor in
            `uses`.
        """
        servable = make_servable(model)
        with self.arithmetic(model):
            servable.functions = {
                name: signature.trace(model, self.jit_compile) for name, signature in self.signatures.items()
            }
        if self.jit_compile:
            for name, function in servable.functions.items():
                _check_no_text(self.name, name, function)
        # After the traces, which may fill what they use, such as an index.
        servable.used = [make_servable(used) for signature in self.signatures.values() for used in signature.uses]
        try:
            tf.saved_model.save(servable, str(path), signatures=dict(servable.functions))
        except AssertionError as error:
            if "'untracked' resource" not in str(error):
                raise
            names = ", ".join(f"'{name}'" for name in self.signatures)
            raise UserError(
                f"fn of a signature ({names}) uses a variable or a lookup table, such as that of layers.Lookup of"
                " strings, that is no attribute of the model. Make it one, or name the object that has it:"
                " Signature(…, uses=[films])."
            ) from error

    def arithmetic(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which the model computes as the artefact does, see `ExportHook`: rounding nothing."""
        return optim.computing(optim.FLOAT)

    def complete(self, path: Path, batches: Sequence[Arrays]) -> None:
        """Writes the warm-up requests, see `ExportHook`."""
        if self.serving:
            self.serving.write_warm_up(path, self.signatures, batches[0])

    @property
    def beside(self) -> dict[str, str]:
        """Returns the configs of TensorFlow Serving, see `ExportHook`."""
        return self.serving.files(self.jit_compile) if self.serving else {}

    @property
    def runtime(self) -> Runtime:
        """Returns how a fresh process loads the artefact, see `ExportHook`."""
        return Runtime(Path(saved_model_runtime.__file__))

    def load(self, path: Path) -> dict[str, Call]:
        return saved_model_runtime.load(str(path))


def _check_no_text(export: str, name: str, function: tf.types.experimental.ConcreteFunction) -> None:
    """Raises UserError, which names the export and the signature, if a graph has texts in or out."""
    tensors = {**function.structured_input_signature[1], **function.structured_outputs}
    if texts := [key for key, tensor in tensors.items() if tensor.dtype == tf.string]:
        raise UserError(
            f"export '{export}': '{texts[0]}' of signature '{name}' is a text, which XLA cannot compute. Leave the"
            " format out, or give fn a part of numbers alone that framework.compile.jit compiles."
        )

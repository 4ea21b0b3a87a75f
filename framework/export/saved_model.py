"""The SavedModel format, in the layout of TensorFlow Serving: exports/saved_model/<version>/saved_model.pb.

SavedModel({"serving_default": classify, "features": embed})

loaded = tf.saved_model.load("exports/saved_model/1")
loaded.signatures["serving_default"](image=images)["logits"]
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from framework.errors import UserError
from framework.export import saved_model_runtime
from framework.export.base import SERVING, Arrays, Call, Runtime, Signature, make_servable


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """Exports graphs and variables, which load without this project and without Keras. Each export is a new version.

    Attributes:
      signatures: {name: Signature}; one is 'serving_default', which TensorFlow Serving calls by default.
      bound: allowed relative error, see `ExportHook.bound`.
      name: name of the folder below exports/.
      measure: (model, held-out batches) -> {name: JSON} for the report, such as the recall of an approximate index.

    Raises:
      UserError: there is no 'serving_default'.
    """

    signatures: Mapping[str, Signature]
    bound: float = 2e-6
    name: str = "saved_model"
    measure: Callable[[Any, Sequence[Arrays]], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if SERVING not in self.signatures:
            raise UserError(
                f"SavedModel has the signatures {', '.join(sorted(self.signatures)) or '(none)'}, but no '{SERVING}',"
                f' which TensorFlow Serving calls by default. Use SavedModel({{"{SERVING}": Signature(...)}}).'
            )

    def target(self, folder: Path) -> Path:
        versions = [int(child.name) for child in folder.glob("*") if child.name.isdecimal()]
        return folder / str(max(versions, default=0) + 1)

    def write(self, model: Any, path: Path) -> None:
        servable = make_servable(model)
        servable.functions = {name: signature.trace(model) for name, signature in self.signatures.items()}
        # After the traces, which may fill what they use, such as an index.
        servable.used = [make_servable(used) for signature in self.signatures.values() for used in signature.uses]
        tf.saved_model.save(servable, str(path), signatures=dict(servable.functions))

    @property
    def runtime(self) -> Runtime:
        """Returns how a fresh process loads the artefact, see `ExportHook`."""
        return Runtime(Path(saved_model_runtime.__file__))

    def load(self, path: Path) -> dict[str, Call]:
        return saved_model_runtime.load(str(path))

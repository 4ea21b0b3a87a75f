"""What an export format is: the hook protocol, what it exports, and what is reported of it.

    signature = Signature(
        fn=lambda model, inputs: {"logits": model(inputs["image"], training=False)},
        inputs={"image": tf.TensorSpec([None, 28, 28], tf.float32)},
    )
    hooks = [SavedModel({"serving_default": signature}), Lite(signature)]

`export/verify.py` runs hooks and checks what they wrote.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from framework import paths
from framework.errors import UserError
from framework.trace.assigned import assigned

SERVING = "serving_default"  # the signature every export has, and the one that latency and metrics are taken from

Arrays = dict[str, np.ndarray]
Call = Callable[[Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Signature:
    """A named way to run the model.

    Attributes:
      fn: (model, {name: tensor}) -> {name: tensor}; inference only (`training=False`), no state changed. Every output
        has the batch as its first dimension.
      inputs: {name: tf.TensorSpec}; the names and dtypes that clients send. The first dimension is the batch: None.
    """

    fn: Callable[[Any, dict[str, tf.Tensor]], Mapping[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError('Signature.inputs is empty. Name them, e.g. {"image": tf.TensorSpec([None, 28, 28])}.')
        for name, spec in self.inputs.items():
            if spec.shape.rank in (None, 0) or spec.shape[0] is not None:
                raise UserError(
                    f"Signature.inputs['{name}'] has shape {spec.shape}: its first dimension is the batch and must be"
                    " free. Use tf.TensorSpec([None, ...])."
                )

    def trace(self, model: Any) -> tf.types.experimental.ConcreteFunction:
        """A new graph of `fn` on `model`, called with the inputs by keyword.

        Raises:
          UserError: `fn` returns something else than a dict of named tensors, or changes a variable.
        """

        def serve(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = self.fn(model, inputs)
            if not isinstance(outputs, Mapping) or not outputs:
                raise UserError(
                    f"Signature.fn returned {type(outputs).__name__}. Return a dict of named tensors,"
                    ' e.g. {"logits": logits}.'
                )
            return {name: tf.convert_to_tensor(output) for name, output in outputs.items()}

        specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()}
        function = tf.function(serve, autograph=False).get_concrete_function(**specs)
        if moved := assigned(function.graph, model):
            raise UserError(
                f"Signature.fn changes the variable '{moved[0].name}', so what is served would depend on what was"
                " served before. Call the model with training=False, and count nothing in it then."
            )
        return function


class ExportHook(Protocol):
    """One format. Implementations are immutable values: what they write depends on the model alone.

    A hook whose artefact computes in another precision than the model has `arithmetic(model)`, a context in which the
    model computes as the artefact does: there it is compared with the artefact.
    """

    @property
    def name(self) -> str:
        """Folder below exports/."""

    @property
    def bound(self) -> float:
        """Allowed error of a floating-point output, relative to max(1, max|reference|) of that output."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What is exported; contains 'serving_default'."""

    def target(self, folder: Path) -> Path:
        """Where the next artefact belongs, directly below `folder` (exports/<name>, which may not exist yet)."""

    def write(self, model: Any, path: Path) -> None:
        """Writes the artefact, a file or a folder, at exactly `path`."""

    def load(self, path: Path) -> Mapping[str, Call]:
        """{signature: numpy in -> numpy out} of a fresh load of the artefact, in its own runtime."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What one hook did; `exports/report.json` is a list of these.

    Attributes:
      hook: the hook's name.
      step: of the state that was exported.
      path: the artefact, relative to exports/; that of a failed export is below <hook>.failed/.
      passed: whether it agrees with the live model and was put in its place.
      failure: why not, in one line; '' when passed.
      bytes: size of the artefact.
      outputs: per output tensor ('<signature>/<output>' with several signatures) `max_error` and `p99_error` (over all
        values), `bound`, `max_reference` (largest magnitude), `argmax_mismatches` (beyond ties) and `nonfinite` (values
        that are NaN or infinite unlike the live model's, left out of the others). What is not floating point must be
        equal: error 0 or 1, bound 0.
      latency_ms: per batch size '1' and '32', `p50` and `p99` of one call in milliseconds.
      metrics: per metric its value from the live model (`trained`) and the artefact (`exported`); None = not finite.
      examples: held-out examples compared.
      seconds: time taken by writing and verifying.
      sha256: of the artefact, when passed.
    """

    hook: str
    step: int
    path: str
    passed: bool
    failure: str
    bytes: int
    outputs: dict[str, dict[str, float]]
    latency_ms: dict[str, dict[str, float]]
    metrics: dict[str, dict[str, float | None]]
    examples: int
    seconds: float
    sha256: str = ""


def make_servable(model: Any) -> tf.Module:
    """A module with the variables and lookup tables of `model` and nothing else, so that no Python class is exported.

    Args:
      model: what a trackable object can hold: a Keras model, a tf.Module or a dict of them.
    """
    holder = tf.Module()
    holder.model = model
    kinds = (tf.Variable, tf.saved_model.experimental.TrackableResource)
    servable = tf.Module()
    servable.objects = {path: child for path, child in paths.objects(holder).items() if isinstance(child, kinds)}
    return servable

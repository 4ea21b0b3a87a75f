"""An export hook of one's own: ONNX, written by tf2onnx and run by ONNX Runtime without TensorFlow.

    python -m pip install tf2onnx==1.17.0 onnx==1.23.2 onnxruntime==1.31.1
    python launch.py --config=tests/examples/onnx_export.py

leaves `exports/onnx/model.onnx`, whose inputs and outputs have the names of the signature. The packages are no
requirement; they were installed and tested beside requirements.txt. tf2onnx only warns of an operation that ONNX does
not have: ONNX Runtime refuses the file then, and the export fails with one line.
"""

import contextlib
import dataclasses
from pathlib import Path

import tensorflow as tf

from framework import export, optim
from tests.examples import onnx_runtime
from tests.tiny import get_config, make_data, make_loss, make_metrics, make_model, make_schedule  # noqa: F401

OPSET = 18


@dataclasses.dataclass(frozen=True)
class Onnx:
    """Exports the signature `serving_default`; `framework.export.ExportHook` says what each member is for."""

    signature: export.Signature
    bound: float | export.Bounds = 2e-6
    name: str = "onnx"

    @property
    def signatures(self):
        return {export.SERVING: self.signature}

    @property
    def runtime(self):
        return export.Runtime(Path(onnx_runtime.__file__))

    def target(self, folder):
        return folder / "model.onnx"

    def write(self, model, path):
        import tf2onnx

        specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.signature.inputs.items()]
        with self.arithmetic(model):
            self.signature.trace(model)  # refuses what no signature may do, such as to change a variable
            function = tf.function(
                lambda *inputs: self.signature.fn(model, dict(zip(self.signature.inputs, inputs, strict=True))),
                autograph=False,
            )
            tf2onnx.convert.from_function(function, specs, opset=OPSET, output_path=str(path))

    def arithmetic(self, model) -> contextlib.AbstractContextManager[None]:
        return optim.computing(optim.FLOAT)  # of a run that trains for int8: without rounding

    def load(self, path):
        return onnx_runtime.load(str(path))


def make_exports(cfg):
    signature = export.Signature(
        lambda model, inputs: {"logits": model(inputs["image"], training=False)},
        {"image": tf.TensorSpec([None, 28, 28], tf.float32)},
    )
    return [Onnx(signature)]

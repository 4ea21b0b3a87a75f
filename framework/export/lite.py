"""float32 .tflite for phones and small boards: exports/lite/model.tflite.

Lite(Signature(fn, {"image": tf.TensorSpec([None, 28, 28], tf.float32)}))

runner = ai_edge_litert.interpreter.Interpreter("exports/lite/model.tflite").get_signature_runner("serving_default")
runner(image=images)["logits"]              # any batch size; the runner resizes the input
"""

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from framework.config import UserError
from framework.export.base import SERVING, Arrays, Call, Signature, make_servable

_MISSING_OPS = re.compile(r"^(?:TF Select|Flex|Custom) ops: (.+?)\s*$", re.MULTILINE)
_DELEGATE_NOTICE = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."


@dataclasses.dataclass(frozen=True)
class Lite:
    """One signature, weights and arithmetic in float32, run by LiteRT.

    Attributes:
      signature: exported as 'serving_default'.
      bound: allowed relative error, see `ExportHook`.
      name: folder below exports/.
    """

    signature: Signature
    bound: float = 2e-6
    name: str = "lite"

    @property
    def signatures(self) -> dict[str, Signature]:
        return {SERVING: self.signature}

    def target(self, folder: Path) -> Path:
        return folder / "model.tflite"

    def write(self, model: Any, path: Path) -> None:
        """Converts and writes.

        Raises:
          UserError: the graph computes in float64, or has an op that LiteRT lacks.
        """
        function = self.signature.trace(model)
        for operation in function.graph.get_operations():
            if any(output.dtype == tf.float64 for output in operation.outputs):
                raise UserError(
                    f"export '{self.name}': '{operation.name}' is float64, which LiteRT cannot run."
                    " Use --config.train.precision=float32, or leave Lite out of make_exports."
                )
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], make_servable(model))
        try:
            path.write_bytes(converter.convert())
        except Exception as error:
            missing = _MISSING_OPS.search(str(error))
            if missing is None:
                raise
            raise UserError(
                f"export '{self.name}': LiteRT has no {missing[1]}. Compute it from other ops in the signature's fn, or"
                " leave Lite out of make_exports."
            ) from error

    def load(self, path: Path) -> dict[str, Call]:
        # Imported here: whoever exports no .tflite needs no LiteRT.
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(model_path=str(path)).get_signature_runner(SERVING)
        first = iter([_without_delegate_notice()])

        def call(inputs: Arrays) -> Arrays:
            with next(first, contextlib.nullcontext()):
                return runner(**inputs)

        return {SERVING: call}


@contextlib.contextmanager
def _without_delegate_notice() -> Iterator[None]:
    """Drops the line that LiteRT's C++ code prints at the first call and no option turns off; other lines pass."""
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if line.strip() != _DELEGATE_NOTICE:
                    os.write(2, line)

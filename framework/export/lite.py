"""The LiteRT format in float32, for phones and small boards: exports/lite/model.tflite.

    Lite(Signature(fn, {"image": tf.TensorSpec([None, 28, 28], tf.float32)}))

    interpreter = ai_edge_litert.interpreter.Interpreter("exports/lite/model.tflite")
    runner = interpreter.get_signature_runner("serving_default")
    runner(image=images)["logits"]              # any batch size; the runner resizes the input

A model that was trained in half precision computes in float32 here, from the same float32 weights.
"""

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from framework import precision
from framework.errors import UserError
from framework.export.base import SERVING, Arrays, Call, Signature, make_servable

_MISSING_OPS = re.compile(r"^(?:TF Select|Flex|Custom) ops: (.+?)\s*$", re.MULTILINE)
_DELEGATE_NOTICE = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."


@dataclasses.dataclass(frozen=True)
class Lite:
    """Exports one signature with weights and arithmetic in float32, for LiteRT.

    Attributes:
      signature: the signature, exported as 'serving_default'.
      bound: allowed relative error, see `ExportHook.bound`.
      name: name of the folder below exports/.
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
        """Converts the signature and writes the file.

        Raises:
          UserError: the graph computes in another precision, or has an operation that LiteRT does not have.
        """
        with self.arithmetic(model):
            function = self.signature.trace(model)
        check_float32(self.name, function)
        convert(self.name, tf.lite.TFLiteConverter.from_concrete_functions([function], make_servable(model)), path)

    def arithmetic(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which the model computes as the artefact does, see `ExportHook`."""
        return precision.in_float32(model)

    def load(self, path: Path) -> dict[str, Call]:
        # Imported here, because a run that exports no .tflite does not need LiteRT.
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(model_path=str(path)).get_signature_runner(SERVING)
        first = iter([without_delegate_notice()])

        def call(inputs: Arrays) -> Arrays:
            with next(first, contextlib.nullcontext()):
                return runner(**inputs)

        return {SERVING: call}


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


def convert(name: str, converter: Any, path: Path) -> None:
    """Writes what a converter makes; raises UserError if LiteRT does not have an operation."""
    chatter: list[bytes] = []
    try:
        with _caught(chatter):
            converted = converter.convert()
    except Exception as error:
        (path.parent / "converter.txt").write_bytes(b"".join(chatter))
        missing = _MISSING_OPS.search(str(error))
        if missing is None:
            raise
        raise UserError(
            f"export '{name}': LiteRT does not have {missing[1]}. Use other operations in the signature's fn,"
            " or leave Lite out of make_exports."
        ) from error
    path.write_bytes(converted)


@contextlib.contextmanager
def without_delegate_notice() -> Iterator[None]:
    """Drops a line that LiteRT's C++ code prints at the first call, for which there is no option; others pass."""
    lines: list[bytes] = []
    try:
        with _caught(lines):
            yield
    finally:
        for line in lines:
            if line.strip() != _DELEGATE_NOTICE:
                os.write(2, line)


@contextlib.contextmanager
def _caught(lines: list[bytes]) -> Iterator[None]:
    """Collects in `lines` what the process writes to standard error meanwhile, from C++ code too."""
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            lines += caught

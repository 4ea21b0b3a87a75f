"""Loads .tflite files by LiteRT alone: nothing of TensorFlow, and nothing of this project, is imported.

    call = load("exports/lite/model.tflite")["serving_default"]
    call({"image": images})["logits"]           # any batch size; the runner resizes the input

Inputs and outputs that a file holds in int8 are quantised and dequantised here, by the scale and the zero point in the
file, as a host must do it.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

Arrays = dict[str, np.ndarray]
Call = Callable[[Arrays], Arrays]

_DELEGATE_NOTICE = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."


def load(path: str) -> dict[str, Call]:
    """Returns {signature: NumPy inputs -> NumPy outputs} of a file."""
    interpreter = Interpreter(model_path=path)
    return {name: _call(interpreter.get_signature_runner(name)) for name in interpreter.get_signature_list()}


def load_decoder(path: str, **settings: Any) -> dict[str, Call]:
    """Returns {'serving_default': inputs -> {'ids': …}} of the file of a `LiteDecoder`, decoded by `greedy`.

    Args:
      path: the file.
      settings: the arguments `begin`, `end`, `length` and `padding` of `greedy`.
    """
    interpreter = Interpreter(model_path=path)
    start, step = (interpreter.get_signature_runner(name) for name in ("start", "step"))

    def call(inputs: Arrays) -> Arrays:
        return {"ids": greedy(start, step, inputs, **settings)}

    return {"serving_default": _quiet_at_first(call)}


def greedy(
    start: Callable[..., Arrays],
    step: Callable[..., Arrays],
    inputs: Arrays,
    begin: int,
    end: int,
    length: int,
    padding: int = 0,
) -> np.ndarray:
    """Decodes a batch greedily with the two signatures of a `LiteDecoder`, and stops when all sequences have ended.

    Args:
      start: runner of the signature `start`.
      step: runner of the signature `step`.
      inputs: {name: array}, the inputs of `start`.
      begin, end, length, padding: as of the hook.

    Returns:
      int32 [batch, length].
    """
    state = start(**inputs)
    batch = len(next(iter(inputs.values())))
    tokens = np.full(batch, begin, np.int32)
    ids = np.full([batch, length], padding, np.int32)
    has_ended = np.zeros(batch, bool)
    for position in range(length):
        state = step(tokens=tokens, position=np.array(position, np.int32), **state)
        best = state.pop("logits").argmax(axis=-1).astype(np.int32)
        tokens = np.where(has_ended, np.int32(end), best)
        ids[:, position] = np.where(has_ended, padding, tokens)
        has_ended |= tokens == end
        if has_ended.all():
            break
    return ids


def _call(runner: Any) -> Call:
    inputs_of, outputs_of = runner.get_input_details(), runner.get_output_details()

    def call(inputs: Arrays) -> Arrays:
        given = {name: _quantised(array, inputs_of[name]) for name, array in inputs.items()}
        return {name: _dequantised(array, outputs_of[name]) for name, array in runner(**given).items()}

    return _quiet_at_first(call)


def _quantised(array: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    if not scale or array.dtype == details["dtype"]:
        return array
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(array / scale) + zero_point, limits.min, limits.max).astype(details["dtype"])


def _dequantised(array: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    if not scale:
        return array
    return (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def _quiet_at_first(call: Call) -> Call:
    """Returns the same function; its first call drops the notice of LiteRT's delegate."""
    first = iter([without_delegate_notice()])

    def quiet(inputs: Arrays) -> Arrays:
        with next(first, contextlib.nullcontext()):
            return call(inputs)

    return quiet


@contextlib.contextmanager
def without_delegate_notice() -> Iterator[None]:
    """Drops a line that LiteRT's C++ code prints at the first call, for which there is no option; others pass."""
    lines: list[bytes] = []
    try:
        with caught_stderr(lines):
            yield
    finally:
        for line in lines:
            if line.strip() != _DELEGATE_NOTICE:
                os.write(2, line)


@contextlib.contextmanager
def caught_stderr(lines: list[bytes]) -> Iterator[None]:
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

"""The program of the fresh process in which an artefact is loaded by its own runtime, run and timed.

    python worker.py RUNTIME.py         # reads requests, a JSON object a line, and answers each by a line

It imports NumPy and the runtime's file, a Python file with functions `(path, **settings) -> {signature: call}`, and
nothing of this project. Arrays pass through files, without pickle. `processes.py` is the other side.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Call = Callable[[Arrays], Arrays]

_WARM_UP_CALLS = 5
_TIMED_CALLS = 50


def timed(call: Call, inputs: Arrays) -> dict[str, float]:
    """Returns the median and the 99th percentile of the time of a call, in milliseconds."""
    for _ in range(_WARM_UP_CALLS):
        call(inputs)
    milliseconds = []
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        call(inputs)
        milliseconds.append((time.perf_counter() - start) * 1e3)
    return {"p50": float(np.percentile(milliseconds, 50)), "p99": float(np.percentile(milliseconds, 99))}


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Writes {name: array} to an .npz file; objects, which are texts as bytes, and types like bfloat16 are bytes."""
    header = []
    stored = {}
    for place, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        header.append({"name": name, "dtype": array.dtype.name, "shape": array.shape, "kind": array.dtype.kind})
        if array.dtype.kind == "O":
            texts = [text.encode() if isinstance(text, str) else bytes(text) for text in array.ravel()]
            stored[f"{place}_lengths"] = np.array([len(text) for text in texts], np.int64)
            array = np.frombuffer(b"".join(texts), np.uint8)
        elif array.dtype.kind == "V":
            array = np.frombuffer(array.tobytes(), np.uint8)
        stored[str(place)] = array
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **stored)  # type: ignore[arg-type]


def read_arrays(path: Path) -> Arrays:
    """Returns what `write_arrays` wrote."""
    arrays = {}
    with np.load(path, allow_pickle=False) as stored:
        for place, entry in enumerate(json.loads(stored["header"].tobytes())):
            array = stored[str(place)]
            if entry["kind"] == "O":
                ends = np.cumsum(stored[f"{place}_lengths"])
                content = array.tobytes()
                texts = [
                    content[end - length : end] for end, length in zip(ends, stored[f"{place}_lengths"], strict=True)
                ]
                array = np.array([*texts, None], object)[:-1].reshape(entry["shape"])
            elif entry["kind"] == "V":
                array = np.frombuffer(array.tobytes(), np.dtype(entry["dtype"])).reshape(entry["shape"])
            arrays[entry["name"]] = array
    return arrays


def _load(request: dict[str, Any], runtime_file: str) -> dict[str, Call]:
    spec = importlib.util.spec_from_file_location("runtime", runtime_file)
    assert spec and spec.loader, runtime_file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, request["function"])(request["path"], **request["settings"])


def main() -> None:
    """Answers requests until the other side closes its end or dies."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not be taken for an answer
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "load":
                calls = _load(request, sys.argv[1])
                answer = {"signatures": [*calls]}
            elif request["do"] == "call":
                write_arrays(
                    Path(request["outputs"]), calls[request["signature"]](read_arrays(Path(request["inputs"])))
                )
            else:
                answer = timed(calls[request["signature"]], read_arrays(Path(request["inputs"])))
        except BaseException as error:  # told to the other side, which decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

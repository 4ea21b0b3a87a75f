"""Runs a SavedModel by TensorFlow's C API, without its Python: the loader that servers in C++ have.

python c_api.py FOLDER_OF_TENSORFLOW FOLDER_OF_THE_VERSION INPUT OUTPUT GIVEN.npy ANSWER.npy

INPUT and OUTPUT are names of float32 tensors in the graph, such as 'serving_default_x:0'.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

FLOAT = 1  # TF_FLOAT


class Output(ctypes.Structure):
    """TF_Output: an operation, and the number of its output."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


def library(folder):
    """Both libraries: the second one finds in the first what it does not have."""
    framework = ctypes.CDLL(str(Path(folder, "libtensorflow_framework.so.2")), ctypes.RTLD_GLOBAL)
    whole = ctypes.CDLL(str(Path(folder, "libtensorflow_cc.so.2")), ctypes.RTLD_GLOBAL)

    def call(name, *arguments, gives=ctypes.c_void_p):
        found = getattr(framework if hasattr(framework, name) else whole, name)
        found.restype = gives
        return found(*arguments)

    return call


def pointer(address):
    return ctypes.c_void_p(address)


def main(tensorflow, version, input_name, output_name, given, answer):
    call = library(tensorflow)
    status = pointer(call("TF_NewStatus"))

    def check():
        if call("TF_GetCode", status, gives=ctypes.c_int):
            sys.exit(call("TF_Message", status, gives=ctypes.c_char_p).decode())

    def place(graph, name):
        operation, _, index = name.partition(":")
        found = call("TF_GraphOperationByName", graph, operation.encode())
        return Output(found or sys.exit(f"the graph has no {operation}"), int(index))

    graph = pointer(call("TF_NewGraph"))
    tags = (ctypes.c_char_p * 1)(b"serve")
    options = pointer(call("TF_NewSessionOptions"))
    loaded = call("TF_LoadSessionFromSavedModel", options, None, version.encode(), tags, 1, graph, None, status)
    check()
    array = np.load(given)
    dimensions = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor = call("TF_AllocateTensor", FLOAT, dimensions, array.ndim, ctypes.c_size_t(array.nbytes))
    ctypes.memmove(call("TF_TensorData", pointer(tensor)), array.tobytes(), array.nbytes)
    inputs, values = (Output * 1)(place(graph, input_name)), (ctypes.c_void_p * 1)(tensor)
    outputs, results = (Output * 1)(place(graph, output_name)), (ctypes.c_void_p * 1)()
    call(
        "TF_SessionRun",
        pointer(loaded),
        None,
        inputs,
        values,
        1,
        outputs,
        results,
        1,
        None,
        0,
        None,
        status,
        gives=None,
    )
    check()
    result = pointer(results[0])
    count = call("TF_NumDims", result, gives=ctypes.c_int)
    shape = [call("TF_Dim", result, number, gives=ctypes.c_int64) for number in range(count)]
    size = call("TF_TensorByteSize", result, gives=ctypes.c_size_t)
    content = ctypes.string_at(call("TF_TensorData", result), size)
    np.save(answer, np.frombuffer(content, np.float32).reshape(shape))
    print([name for name in sys.modules if name.startswith("tensorflow")])


if __name__ == "__main__":
    main(*sys.argv[1:])

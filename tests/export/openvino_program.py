"""Runs an export by OpenVINO, in an environment without TensorFlow and without this project.

python openvino_program.py MODEL GIVEN.npz ANSWER.npz

MODEL is the folder of a SavedModel or a .tflite file. The inputs are arrays by name, and so are the outputs of a
SavedModel; those of a .tflite file have the names of its tensors. It prints the version, or what OpenVINO cannot read.
"""

import importlib.util
import sys

import numpy as np
import openvino


def main(model, given, answer):
    assert not any(map(importlib.util.find_spec, ("tensorflow", "tf_keras", "framework")))
    core = openvino.Core()
    try:
        read = core.read_model(model)
    except RuntimeError as error:
        sys.exit(str(error))
    # Without the hint it computes in bfloat16 where the processor can.
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    places = {port.any_name.removeprefix("serving_default_").removesuffix(":0"): port for port in compiled.inputs}
    with np.load(given) as arrays:
        outputs = compiled({places[name]: array for name, array in arrays.items()})
    np.savez(answer, **{port.any_name: array for port, array in outputs.items()})
    print(openvino.__version__.partition("-")[0])


if __name__ == "__main__":
    main(*sys.argv[1:])

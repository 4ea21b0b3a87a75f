"""Loads .onnx files by ONNX Runtime alone: nothing of TensorFlow, and nothing of this project, is imported."""

import os


def load(path):
    """Returns {'serving_default': NumPy inputs -> NumPy outputs} of a file."""
    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # its import writes to the home folder, and sends what it counts
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {"serving_default": lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))}

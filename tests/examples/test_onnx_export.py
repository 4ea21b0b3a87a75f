"""tests/examples/onnx_export.py: ONNX Runtime, in a process of its own, computes what NumPy computes."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from framework import export, paths, testing
from framework.export import export_all
from framework.run import exporting
from tests.examples import onnx_export, onnx_runtime
from tests.export.fakes import Scale, X, make_batch

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tf2onnx", "onnx", "onnxruntime"))),
    reason="needs ONNX: python -m pip install tf2onnx==1.17.0 onnx==1.23.2 onnxruntime==1.31.1",
)
SETTINGS = {
    "train.compile": "graph",
    "train.duration": "1 step",
    "export.process": "fresh",
    "log.images": 0,
    "schedule.warmup": "",
}
PROGRAM = """
import runpy, sys, numpy as np
call = runpy.run_path(sys.argv[1])["load"](sys.argv[2])["serving_default"]
np.save("logits.npy", call({"image": np.load("image.npy")})["logits"])
assert not {"tensorflow", "framework"} & set(sys.modules)
"""


@pytest.fixture(autouse=True)
def log_level(monkeypatch):
    """Is put back after tf2onnx, whose import changes it."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", os.environ["TF_CPP_MIN_LOG_LEVEL"])


def logits(model, image):
    """In float64, of the weights alone."""
    weights = {path: variable.numpy().astype(np.float64) for path, variable in paths.trainable(model).items()}
    kernel, bias, last, offset = weights.values()
    return np.maximum(image.reshape(len(image), -1) @ kernel + bias, 0) @ last + offset


def test_a_file_computes_what_numpy_computes(tmp_path):
    run = testing.build(onnx_export, SETTINGS, tmp_path / "run")
    run.train_block(1)
    [report] = exporting.export_run(run)
    assert report.failure == "" and report.passed and report.path == "onnx/model.onnx"
    assert report.outputs["logits"]["max_error"] <= report.outputs["logits"]["bound"]
    for rows in (1, 33):
        image = np.random.default_rng(rows).random((rows, 28, 28), dtype=np.float32)
        np.save(tmp_path / "image.npy", image)
        path = tmp_path / "run/exports" / report.path
        command = [sys.executable, "-c", PROGRAM, onnx_runtime.__file__, path]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path / "home")}, check=True)
        expected = logits(run.model, image)
        bound = 2e-6 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=0, atol=bound)
        assert not (tmp_path / "home").exists()


def test_an_operation_that_onnx_lacks_fails_by_name(tmp_path):
    signature = export.Signature(
        lambda model, inputs: {"logits": tf.math.bessel_i0(inputs["x"]) * model.factor},
        {"x": tf.TensorSpec([None, 3], tf.float32)},
    )
    [report] = export_all([onnx_export.Onnx(signature)], Scale(), [make_batch(X)], {}, tmp_path, is_fresh=True)
    assert "BesselI0" in report.failure and not (tmp_path / "onnx").exists()

"""An export loaded by what is not this project's Python: the C API of TensorFlow, and saved_model_cli."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from framework.export import SavedModel, export_all
from tests.export import c_api
from tests.export.fakes import SIGNATURE, Scale, X, make_batch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    [report] = export_all([SavedModel({"serving_default": SIGNATURE})], Scale(1.5), [make_batch(X)], {}, folder)
    assert report.failure == ""
    return folder / "saved_model/1"


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_the_c_api_gives_the_values_of_numpy(version, tmp_path, rows):
    definition = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    signature = definition.meta_graphs[0].signature_def["serving_default"]
    x = np.random.default_rng(0).normal(size=[rows, 3]).astype(np.float32)
    given, answer = tmp_path / "x.npy", tmp_path / "logits.npy"
    np.save(given, x)
    names = signature.inputs["x"].name, signature.outputs["logits"].name
    command = [c_api.__file__, str(Path(tf.__file__).parent), str(version), *names, str(given), str(answer)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "[]\n", done.stdout + done.stderr
    np.testing.assert_array_equal(np.load(answer), x * np.float32(1.5), strict=True)


def test_saved_model_cli_gives_the_values_of_numpy(version, tmp_path):
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--dir", str(version)),
            *("--tag_set", "serve", "--signature_def", "serving_default"),
            *("--inputs", f"x={tmp_path / 'x.npy'}", "--outdir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), X * np.float32(1.5), strict=True)

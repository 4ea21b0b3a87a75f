import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

from framework.export import lite
from framework.export.base import Signature
from framework.export.lite import Lite
from framework.export.verify import export_all

SIGNATURE = Signature(
    lambda model, inputs: {"logits": model(inputs["image"], training=False)},
    {"image": tf.TensorSpec([None, 28, 28], tf.float32)},
)
HOOK = Lite(SIGNATURE)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    net = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(128, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    )
    net.build((None, 28, 28))
    for variable in net.trainable_variables:
        variable.assign(variable * 2)  # logits as large as trained ones
    return net


def make_batch(n, seed=0):
    return {
        "image": np.random.default_rng(seed).random((n, 28, 28), dtype=np.float32),
        "weight": np.ones(n, np.float32),
    }


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    [report] = export_all([HOOK], model, [make_batch(200), make_batch(9, 1)], {}, folder)
    return folder, report


def test_report_has_the_errors_of_a_separate_interpreter(model, exported):
    folder, report = exported
    assert report.failure == ""
    assert report.passed
    assert report.path == "lite/model.tflite"
    path = folder / "lite/model.tflite"
    assert report.bytes == path.stat().st_size
    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    errors, largest = [], 0.0
    for batch in (make_batch(200), make_batch(9, 1)):
        reference = tf.function(lambda image: model(image, training=False))(batch["image"]).numpy()
        errors.append(np.abs(runner(image=batch["image"])["logits"].astype(np.float64) - reference).ravel())
        largest = max(largest, float(np.abs(reference).max()))
    errors = np.concatenate(errors)
    assert report.outputs["logits"] == {
        "max_error": errors.max(),
        "p99_error": np.percentile(errors, 99),
        "bound": 2e-6 * largest,
        "max_reference": largest,
        "argmax_mismatches": 0,
        "nonfinite": 0,
    }
    assert 0 < errors.max() < 2e-6 * largest
    assert largest > 1


def test_names_dtypes_and_a_free_batch(exported):
    interpreter = Interpreter(model_path=str(exported[0] / "lite/model.tflite"))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}
    [details] = interpreter.get_input_details()
    assert details["dtype"] == np.float32
    assert details["shape_signature"].tolist() == [-1, 28, 28]


def test_batches_of_any_size_through_one_load(model, exported):
    first, hidden, second, last = [variable.numpy().astype(np.float64) for variable in model.weights]
    call = HOOK.load(exported[0] / "lite/model.tflite")["serving_default"]
    for n in (1, 7, 32, 1):
        image = make_batch(n, seed=n)["image"]
        logits = np.maximum(image.reshape(n, -1).astype(np.float64) @ first + hidden, 0) @ second + last
        outputs = call({"image": image})
        assert outputs["logits"].shape == (n, 10)
        assert outputs["logits"].dtype == np.float32
        np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=2e-6 * max(1, np.abs(logits).max()))


def test_whole_number_inputs_keep_their_dtype(model, tmp_path):
    signature = Signature(
        lambda net, inputs: {"logits": net(tf.cast(inputs["pixels"], tf.float32) / 255.0, training=False)},
        {"pixels": tf.TensorSpec([None, 28, 28], tf.uint8)},
    )
    batch = {"pixels": (make_batch(5)["image"] * 255).astype(np.uint8), "weight": np.ones(5, np.float32)}
    [report] = export_all([Lite(signature)], model, [batch], {}, tmp_path)
    assert report.failure == ""
    [details] = Interpreter(model_path=str(tmp_path / report.path)).get_input_details()
    assert details["dtype"] == np.uint8


def test_float64_is_refused_with_a_way_out(tmp_path):
    net = tf.Module()
    net.w = tf.Variable(2.0, dtype=tf.float64)
    signature = Signature(lambda m, x: {"y": x["x"] * m.w}, {"x": tf.TensorSpec([None], tf.float64)})
    batch = {"x": np.array([1.0, 3.0]), "weight": np.ones(2, np.float32)}
    [report] = export_all([Lite(signature)], net, [batch], {}, tmp_path)
    assert report.failure == (
        "export 'lite': 'x' is float64, which LiteRT cannot run."
        " Use --config.train.precision=float32, or leave Lite out of make_exports."
    )


def test_an_op_without_a_kernel_is_named(tmp_path):
    signature = Signature(
        lambda model, inputs: {"s": tf.linalg.svd(inputs["x"], compute_uv=False)}, {"x": tf.TensorSpec([None, 3, 3])}
    )
    batch = {"x": np.ones((2, 3, 3), np.float32), "weight": np.ones(2, np.float32)}
    [report] = export_all([Lite(signature)], tf.Module(), [batch], {}, tmp_path)
    assert report.failure == (
        "export 'lite': LiteRT has no Svd. Compute it from other ops in the signature's fn, or leave Lite out of"
        " make_exports."
    )
    assert report.path == "lite.failed"


def test_a_failed_conversion_leaves_the_earlier_file(model, exported, tmp_path):
    assert export_all([HOOK], model, [make_batch(3)], {}, tmp_path)[0].passed
    before = (tmp_path / "lite/model.tflite").read_bytes()
    strict = Lite(SIGNATURE, bound=0.0)
    [report] = export_all([strict], model, [make_batch(200)], {}, tmp_path)
    assert not report.passed
    assert report.path == "lite.failed/model.tflite"
    assert (tmp_path / "lite/model.tflite").read_bytes() == before


def test_only_the_delegate_notice_is_dropped(capfd):
    with lite._without_delegate_notice():
        os.write(2, b"first\n" + lite._DELEGATE_NOTICE + b"\nERROR: last")
    os.write(2, b", and after")
    assert capfd.readouterr().err == "first\nERROR: last, and after"


def test_the_delegate_notice_is_what_litert_prints(exported):
    script = (
        "import sys, numpy as np\n"
        "from ai_edge_litert.interpreter import Interpreter\n"
        "runner = Interpreter(model_path=sys.argv[1]).get_signature_runner('serving_default')\n"
        "runner(image=np.zeros((1, 28, 28), np.float32))\n"
    )
    path = str(exported[0] / "lite/model.tflite")
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, timeout=60, check=True)
    # Where LiteRT has no such delegate, it prints nothing.
    assert done.stderr.strip() in (b"", lite._DELEGATE_NOTICE)

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

from framework import layers, metrics, precision
from framework.export import lite_runtime
from framework.export.base import Signature
from framework.export.lite import Lite
from framework.export.runner import export_all
from framework.export.saved_model import SavedModel

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
    errors, largest, largest_value, smallest_value = [], 0.0, -np.inf, np.inf
    for batch in (make_batch(200), make_batch(9, 1)):
        reference = tf.function(lambda image: model(image, training=False))(batch["image"]).numpy()
        errors.append(np.abs(runner(image=batch["image"])["logits"].astype(np.float64) - reference).ravel())
        largest = max(largest, float(np.abs(reference).max()))
        largest_value, smallest_value = max(largest_value, reference.max()), min(smallest_value, reference.min())
    errors = np.concatenate(errors)
    assert report.outputs["logits"] == {
        "max_error": errors.max(),
        "p99_error": np.percentile(errors, 99),
        "bound": 2e-6 * largest,
        "range": pytest.approx(largest_value - smallest_value),
        "max_reference": largest,
        "agreement": 1.0,
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


class Mixed(keras.Model):
    """Convolution, normalisation, attention and a dense layer; `make` is called under the policy of a run."""

    def __init__(self):
        super().__init__()
        self.convolution = keras.layers.Conv2D(4, 3, activation="relu")
        self.norm, self.flat = keras.layers.BatchNormalization(), keras.layers.Reshape([26, 104])
        self.encoder = layers.EncoderLayer(16, 4, 32)
        self.project, self.out = keras.layers.Dense(16, "gelu"), keras.layers.Dense(3, dtype="float32")

    def call(self, inputs, training=None):
        features = self.flat(self.norm(self.convolution(inputs[..., tf.newaxis]), training=training))
        encoded = self.encoder(self.project(features), training=training)
        return self.out(tf.reduce_mean(encoded, axis=1))


@pytest.mark.parametrize("half", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_model_of_half_precision_is_exported_in_float32(tmp_path, half, capfd):
    """As one built in float32 with the same weights; the model itself, and its SavedModel, stay as they are."""

    def make(kind):
        with precision.scope(kind):
            keras.utils.set_random_seed(3)
            net = Mixed()
            net(np.zeros([1, 28, 28], np.float32))
        return net

    net, twin, batch = make(half), make("float32"), make_batch(40)
    before = [layer.compute_dtype for layer in net.submodules if isinstance(layer, keras.layers.Layer)]
    assert before.count(half) > 8
    capfd.readouterr()  # Keras says once a process that float16 is slow without a GPU
    reports = export_all([HOOK, SavedModel({"serving_default": SIGNATURE})], net, [batch], {}, tmp_path)
    assert [report.failure for report in reports] == ["", ""]
    assert [layer.compute_dtype for layer in net.submodules if isinstance(layer, keras.layers.Layer)] == before
    expected = twin(batch["image"]).numpy()
    found = HOOK.load(tmp_path / "lite/model.tflite")["serving_default"]({"image": batch["image"]})["logits"]
    bound = 2e-6 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    in_half = net(batch["image"]).numpy()
    assert np.abs(in_half - expected).max() > 10 * bound  # another bound would be needed for these
    served = tf.saved_model.load(str(tmp_path / "saved_model/1")).signatures["serving_default"]
    np.testing.assert_allclose(served(image=tf.constant(batch["image"]))["logits"], in_half, atol=0.02)
    ours = (" runner.py:", "oneDNN supports DT_HALF")  # the second once a process, of the model itself
    assert not [line for line in capfd.readouterr().err.splitlines() if not any(text in line for text in ours)]


def test_metrics_of_a_model_of_half_precision_are_those_of_its_float32_form(tmp_path):
    """An argmax that rounding turns is no fault of the export, but another preprocessing is still found."""
    with precision.scope("bfloat16"):
        keras.utils.set_random_seed(3)
        net = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10), keras.layers.Activation("linear")])
        net.build((None, 28, 28))
    batch = make_batch(400)
    exact = net.layers[1].kernel.numpy()
    batch["label"] = (batch["image"].reshape(400, -1) @ exact).argmax(-1).astype(np.int32)

    def own(batch):
        return {"logits": net(batch["image"], training=False).numpy()}

    in_half = float(np.mean(own(batch)["logits"].argmax(-1) == batch["label"]))
    assert in_half < 1
    named = {"accuracy": metrics.Accuracy()}
    [report] = export_all([HOOK], net, [batch], named, tmp_path, own_outputs=own)
    assert (report.failure, report.metrics["accuracy"]) == ("", {"trained": 1.0, "exported": 1.0})
    other = Signature(lambda m, x: {"logits": m(1 - x["image"], training=False)}, SIGNATURE.inputs)
    [report] = export_all([Lite(other)], net, [batch], named, tmp_path, own_outputs=own)
    assert "once exported, but 1.0 in the run's own evaluation" in report.failure


def test_half_precision_that_a_layer_does_not_decide_is_refused(tmp_path):
    net = tf.Module()
    net.w = tf.Variable([2.0, 3.0])
    fn = tf.function(lambda x, w: tf.cast(tf.cast(x, tf.bfloat16) * tf.cast(w, tf.bfloat16), tf.float32))
    signature = Signature(lambda m, x: {"y": fn(x["x"], m.w)}, {"x": tf.TensorSpec([None, 2])})
    [report] = export_all(
        [Lite(signature)], net, [{"x": np.ones([3, 2], np.float32), "weight": np.ones(3)}], {}, tmp_path
    )
    assert report.failure == (
        "export 'lite': 'Cast' is bfloat16, whatever its layer's precision, which LiteRT cannot run."
        " Use --config.train.precision=float32, or leave Lite out of make_exports."
    )


def test_what_the_converter_says_is_kept_in_a_file(tmp_path, capfd):
    signature = Signature(
        lambda model, inputs: {"s": tf.linalg.svd(inputs["x"], compute_uv=False)}, {"x": tf.TensorSpec([None, 3, 3])}
    )
    batch = {"x": np.ones((2, 3, 3), np.float32), "weight": np.ones(2, np.float32)}
    capfd.readouterr()
    export_all([Lite(signature)], tf.Module(), [batch], {}, tmp_path)
    err = capfd.readouterr().err.splitlines()
    assert not [line for line in err if " runner.py:" not in line] and len(err) <= 1
    assert b"loc(" in (tmp_path / "lite.failed" / "converter.txt").read_bytes()


def test_an_op_without_a_kernel_is_named(tmp_path):
    signature = Signature(
        lambda model, inputs: {"s": tf.linalg.svd(inputs["x"], compute_uv=False)}, {"x": tf.TensorSpec([None, 3, 3])}
    )
    batch = {"x": np.ones((2, 3, 3), np.float32), "weight": np.ones(2, np.float32)}
    [report] = export_all([Lite(signature)], tf.Module(), [batch], {}, tmp_path)
    assert report.failure == (
        "export 'lite': LiteRT does not have Svd. Use other operations in the signature's fn, or leave Lite out of"
        " make_exports."
    )
    assert report.path == "lite.failed"


@pytest.mark.parametrize("unroll", [False, True])
def test_a_recurrent_layer_is_exported_if_it_is_unrolled(tmp_path, unroll):
    net = keras.Sequential([keras.layers.LSTM(2, unroll=unroll)])
    net.build((None, 3, 2))
    signature = Signature(
        lambda model, inputs: {"y": model(inputs["x"], training=False)}, {"x": tf.TensorSpec([None, 3, 2], tf.float32)}
    )
    batch = {"x": np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32), "weight": np.ones(4, np.float32)}
    [report] = export_all([Lite(signature)], net, [batch], {}, tmp_path)
    assert report.failure == (
        ""
        if unroll
        else "export 'lite': a loop of the signature, such as that of a recurrent layer or of tf.map_fn, collects"
        " outputs whose shape LiteRT must know. Make LSTM, GRU and RNN with unroll=True and give their input a fixed"
        " length, or leave Lite out of make_exports."
    )


def test_a_failed_conversion_leaves_the_earlier_file(model, exported, tmp_path):
    assert export_all([HOOK], model, [make_batch(3)], {}, tmp_path)[0].passed
    before = (tmp_path / "lite/model.tflite").read_bytes()
    strict = Lite(SIGNATURE, bound=0.0)
    [report] = export_all([strict], model, [make_batch(200)], {}, tmp_path)
    assert not report.passed
    assert report.path == "lite.failed/model.tflite"
    assert (tmp_path / "lite/model.tflite").read_bytes() == before


def test_only_the_delegate_notice_is_dropped(capfd):
    with lite_runtime.without_delegate_notice():
        os.write(2, b"first\n" + lite_runtime._DELEGATE_NOTICE + b"\nERROR: last")
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
    assert done.stderr.strip() in (b"", lite_runtime._DELEGATE_NOTICE)

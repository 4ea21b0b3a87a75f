"""What TensorFlow Serving gets: warm-up requests, configs, XLA programs."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from framework import extras
from framework.errors import UserError
from framework.export import SavedModel, Serving, Signature, export_all
from tests.export.fakes import SIGNATURE, Scale, X, make_batch

TEXTS = Signature(
    lambda model, inputs: {"text": tf.strings.join(["<", inputs["word"], ">"])},
    {"word": tf.TensorSpec([None], tf.string)},
)
BATCH = {**make_batch(X), "word": np.array([b"a", b"\xff\0", b""], object)}


def export(folder, factor=1.5, **settings):
    [report] = export_all([SavedModel(**settings)], Scale(factor), [BATCH], {}, folder)
    return report


@pytest.fixture
def logs():
    reason = "tensorflow-serving-api is not installed: make test EXTRAS=serve"
    return pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason=reason)


def test_warm_up_requests_replay_to_the_outputs_of_the_model(tmp_path, logs):
    signatures = {"serving_default": SIGNATURE, "texts": TEXTS}
    report = export(tmp_path, signatures=signatures, serving=Serving("scale", warm_up=(1, 4)))
    assert report.failure == ""
    version = tmp_path / "saved_model/1"
    loaded = tf.saved_model.load(str(version))
    seen = []
    for record in tf.data.TFRecordDataset(str(version / "assets.extra/tf_serving_warmup_requests")):
        log = logs.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        name = request.model_spec.signature_name
        assert request.model_spec.name == "scale"
        inputs = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
        outputs = loaded.signatures[name](**{key: tf.constant(array) for key, array in inputs.items()})
        rows = np.arange(len(next(iter(inputs.values())))) % 3
        if name == "texts":
            assert [*outputs["text"].numpy()] == [b"<" + BATCH["word"][row] + b">" for row in rows]
        else:
            np.testing.assert_array_equal(outputs["logits"], np.float32(1.5) * X[rows])
        seen.append((name, len(rows)))
    assert seen == [("serving_default", 1), ("serving_default", 4), ("texts", 1), ("texts", 4)]


def test_the_config_of_models_is_one_that_serving_reads(tmp_path):
    reason = "tensorflow-serving-api is not installed: make test EXTRAS=serve"
    configs = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2", reason=reason)
    from google.protobuf import text_format

    parsed = text_format.Parse(Serving("mnist").files(False)["models.config"], configs.ModelServerConfig())
    [model] = parsed.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("mnist", "/models/mnist", "tensorflow")


def test_configs_are_written_once_and_then_belong_to_people(tmp_path):
    signatures = {"serving_default": SIGNATURE}
    assert export(tmp_path, signatures=signatures, serving=Serving("scale", max_batch=8)).passed
    folder = tmp_path / "saved_model"
    assert (folder / "batching.config").read_text() == (
        "max_batch_size { value: 8 }\nbatch_timeout_micros { value: 1000 }\n"
    )
    (folder / "batching.config").write_text("max_batch_size { value: 99 }\n")
    (folder / "models.config").unlink()
    assert export(tmp_path, signatures=signatures, serving=Serving("other")).passed
    assert (folder / "batching.config").read_text() == "max_batch_size { value: 99 }\n"
    assert 'base_path: "/models/other"' in (folder / "models.config").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "1",
        "2",
        "batching.config",
        "manifest.json",
        "models.config",
        "monitoring.config",
    ]
    assert not (folder / "1/assets.extra").exists()


def test_batches_of_an_xla_program_have_few_sizes():
    assert Serving("m", max_batch=20).files(True)["batching.config"].splitlines()[2:] == [
        f"allowed_batch_sizes: {size}" for size in (1, 2, 4, 8, 16, 20)
    ]
    assert Serving("m", max_batch=4)._sizes() == [1, 2, 4]


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    for module in ("tensorflow_serving", "tensorflow_serving.apis.prediction_log_pb2"):
        monkeypatch.setitem(sys.modules, module, None)
    report = export(tmp_path, signatures={"serving_default": SIGNATURE}, serving=Serving("scale", warm_up=(1,)))
    assert report.failure.startswith("tensorflow_serving")
    assert report.failure.endswith(f"Type python -m pip install {extras.pins('serve')[0]}")
    assert export(tmp_path, signatures={"serving_default": SIGNATURE}, serving=Serving("scale")).passed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, "Serving: name='a/b' is not a model's name. Use letters, digits and any of _.-"),
        ({"warm_up": (1, 0)}, "Serving: warm_up[1]=0 is out of range: it must be at least 1."),
        ({"max_batch": 0}, "Serving: max_batch=0 is out of range: it must be at least 1."),
        ({"batch_timeout_us": -1}, "Serving: batch_timeout_us=-1 is out of range: it must be 0 or more."),
    ],
)
def test_what_is_out_of_range(settings, message):
    with pytest.raises(UserError) as error:
        Serving(**{"name": "scale", **settings})
    assert str(error.value) == message


def test_too_many_requests_are_refused(tmp_path, logs):
    serving = Serving("scale", warm_up=range(1, 1002))
    assert export(tmp_path, signatures={"serving_default": SIGNATURE}, serving=serving).failure == (
        "Serving: warm_up has 1001 batch sizes for 1 signatures, but TensorFlow Serving takes 1000 requests."
        " Leave some out."
    )


def compiled_functions(version):
    """The functions of a SavedModel that XLA must compile."""
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    return [function for function in functions if function.attr["_XlaMustCompile"].b]


def test_an_xla_program_stays_one(tmp_path):
    signatures = {"serving_default": SIGNATURE}
    assert export(tmp_path, signatures=signatures, jit_compile=True, name="compiled").failure == ""
    assert export(tmp_path, signatures=signatures, name="graph").failure == ""
    assert compiled_functions(tmp_path / "compiled/1") and not compiled_functions(tmp_path / "graph/1")
    # XLA has no texts: that it refuses them once loaded shows that it compiles.
    refused = export(tmp_path, signatures={"serving_default": TEXTS}, jit_compile=True, name="texts")
    assert "XLA" in refused.failure or "unsupported" in refused.failure, refused.failure

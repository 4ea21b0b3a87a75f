"""Formats of LiteRT: what the file holds, how far it is from the model, and which examples int8 is made by."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

from framework.errors import UserError
from framework.export import SERVING, Bounds, Lite, SavedModel, Signature, export_all, formats
from framework.export.lite_formats import FORMATS
from framework.metrics import Accuracy

SIGNATURE = Signature(
    lambda model, inputs: {"logits": model(inputs["image"], training=False)},
    {"image": tf.TensorSpec([None, 8, 8, 3], tf.float32)},
)
KINDS = ("float32", "float16", "dynamic", "int8", "int8_io")


def make_batch(n, seed=0):
    draws = np.random.default_rng(seed)
    image = draws.random((n, 8, 8, 3), dtype=np.float32)
    return {"image": image, "label": draws.integers(0, 10, n).astype(np.int32), "weight": np.ones(n, np.float32)}


def training(examples):
    yield make_batch(examples - 3, 5)
    yield {**make_batch(5, 6), "weight": np.float32([0, 1, 1, 0, 1])}  # two of padding


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    net = keras.Sequential(
        [
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10),
        ]
    )
    net.build((None, 8, 8, 3))
    net.layers[-1].bias.assign(np.linspace(-1, 1, 10))
    return net


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    hooks = [Lite(SIGNATURE, kind) for kind in KINDS]
    batches = [make_batch(200, 1), make_batch(50, 2)]
    reports = export_all(hooks, model, batches, {"accuracy": Accuracy()}, folder, training=training)
    return folder, dict(zip(KINDS, reports, strict=True))


def test_each_format_has_a_folder_and_passes(exported):
    assert [(report.hook, report.failure) for report in exported[1].values()] == [
        ("lite", ""),
        ("lite_float16", ""),
        ("lite_dynamic", ""),
        ("lite_int8", ""),
        ("lite_int8_io", ""),
    ]


def weights_of(path):
    """{dtype of the kernel of the large dense layer}, and the dtypes of input and output."""
    interpreter = Interpreter(model_path=str(path))
    kernels = {
        np.dtype(tensor["dtype"]).name
        for tensor in interpreter.get_tensor_details()
        if [*tensor["shape"]] in ([64, 576], [576, 64])
    }
    io = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    return kernels, [np.dtype(tensor["dtype"]).name for tensor in io]


@pytest.mark.parametrize(
    ("kind", "kernel", "io"),
    [
        ("float32", "float32", "float32"),
        ("float16", "float16", "float32"),
        ("dynamic", "int8", "float32"),
        ("int8", "int8", "float32"),
        ("int8_io", "int8", "int8"),
    ],
)
def test_what_the_file_holds(exported, kind, kernel, io):
    folder, reports = exported
    kernels, dtypes = weights_of(folder / reports[kind].path)
    assert kernel in kernels and (kind == "float16" or kernels == {kernel})
    assert dtypes == [io, io]


def test_the_numbers_are_those_of_a_separate_interpreter(exported, model):
    """A separate interpreter, and float32 of the model, give the errors of the report."""
    folder, reports = exported
    image = np.concatenate([make_batch(200, 1)["image"], make_batch(50, 2)["image"]])
    expected = tf.function(lambda x: model(x, training=False))(image).numpy()
    for kind in ("float16", "int8", "int8_io"):
        report = reports[kind]
        interpreter = Interpreter(model_path=str(folder / report.path))
        runner = interpreter.get_signature_runner("serving_default")
        scale, zero = runner.get_input_details()["image"]["quantization"]
        given = np.clip(np.round(image / scale) + zero, -128, 127).astype(np.int8) if kind == "int8_io" else image
        found = np.concatenate([runner(image=given[:200])["logits"], runner(image=given[200:])["logits"]])
        if kind == "int8_io":
            scale, zero = runner.get_output_details()["logits"]["quantization"]
            found = (found.astype(np.float64) - zero) * scale
        errors = np.abs(found.astype(np.float64) - expected)
        summary = report.outputs["logits"]
        assert summary["max_error"] == pytest.approx(errors.max(), abs=2e-6)
        assert summary["p99_error"] == pytest.approx(np.percentile(errors, 99), abs=2e-6)
        assert summary["agreement"] == pytest.approx((found.argmax(-1) == expected.argmax(-1)).mean())
        assert summary["range"] == pytest.approx(expected.max() - expected.min())
        assert summary["bound"] == pytest.approx(FORMATS[kind].bound.max_error * summary["range"])
        assert 0 < summary["p99_error"] < summary["max_error"] < summary["bound"]


def test_sizes_and_speed(exported):
    folder, reports = exported
    for report in reports.values():
        content = (folder / report.path).read_bytes()
        assert report.bytes == len(content) and 0 < report.gzip_bytes < len(content)
        assert report.throughput.keys() == report.latency_ms.keys() == {"1", "32"}
        assert report.throughput["32"] == pytest.approx(32e3 / report.latency_ms["32"]["p50"])
    weights = 3 * 3 * 3 * 16 + 576 * 64 + 64 * 10
    assert reports["float32"].bytes - reports["int8"].bytes == pytest.approx(3 * weights, rel=0.1)
    assert reports["float32"].bytes - reports["float16"].bytes == pytest.approx(2 * weights, rel=0.1)


def test_the_ranges_are_those_of_the_training_examples(model, tmp_path):
    """The input's scale in the file is the range of the examples over 255."""
    rows = make_batch(4, 7)
    rows["image"] = rows["image"] * 3
    rows["image"].flat[:2] = [0.0, 3.0]
    rows["weight"] = np.float32([1, 1, 1, 0])
    rows["image"][3] = 1000  # padding
    asked = []

    def of_training(examples):
        asked.append(examples)
        return [rows]

    hook = Lite(SIGNATURE, "int8_io", Bounds(1, 1, 0, 1), examples=3)
    [report] = export_all([hook], model, [make_batch(20, 1)], {}, tmp_path, training=of_training)
    assert (report.failure, asked) == ("", [3])
    runner = Interpreter(model_path=str(tmp_path / report.path)).get_signature_runner("serving_default")
    scale, zero = runner.get_input_details()["image"]["quantization"]
    assert (scale, zero) == (pytest.approx(3 / 255), -128)


def spoiled(batch, **changes):
    return {name: array for name, array in {**batch, **changes}.items() if array is not None}


NAN = make_batch(4)["image"].copy()
NAN[2, 3, 4, 1] = np.nan


@pytest.mark.parametrize(
    ("batches", "failure"),
    [
        (
            [spoiled(make_batch(4), image=None)],
            "signature 'serving_default' takes 'image', which is not in the training batches: label, weight."
            " Take inputs that the batches have, or make them by Signature(from_batch=…).",
        ),
        (
            [make_batch(4), spoiled(make_batch(4), image=np.ones([4, 8, 8], np.float32))],
            "signature 'serving_default' takes 'image' as float32 (None, 8, 8, 3), but the training batches hold"
            " float32 (4, 8, 8).",
        ),
        (
            [spoiled(make_batch(4), image=np.ones([4, 8, 8, 3], np.uint8))],
            "signature 'serving_default' takes 'image' as float32 (None, 8, 8, 3), but the training batches hold"
            " uint8 (4, 8, 8, 3).",
        ),
        (
            [spoiled(make_batch(4), image=make_batch(3)["image"])],  # the last slice would have no row
            "signature 'serving_default': from_batch gives 3 rows of 'image' for 4 examples of the training batches."
            " Give one for each, in their order.",
        ),
        (
            [spoiled(make_batch(4), image=NAN)],
            "export 'lite_int8': 'image' of the training batches has NaN or infinite values, so the ranges of"
            " activations cannot be found. Mend the data, or leave the format out.",
        ),
        (
            [],
            "export 'lite_int8': there is no training example to find the ranges of activations by."
            " Give export_all(training=…), or leave the format out.",
        ),
    ],
)
def test_wrong_examples_are_refused_in_one_line(model, tmp_path, batches, failure):
    hook = Lite(SIGNATURE, "int8")
    [report] = export_all([hook], model, [make_batch(4)], {}, tmp_path, training=lambda examples: batches)
    assert report.failure == failure


def test_an_experiment_without_training_examples(model, tmp_path):
    [report] = export_all([Lite(SIGNATURE, "int8")], model, [make_batch(4)], {}, tmp_path)
    assert "Give export_all(training=…)" in report.failure


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Lite(SIGNATURE, "int4"),
            "Lite: there is no format 'int4'. Use one of float32, float16, sparse, dynamic, int8, int8_io."
            " Did you mean 'int8'?",
        ),
        (
            lambda: Lite(SIGNATURE, "int8", examples=0),
            "Lite: examples=0 is out of range: it must be at least 1.",
        ),
        (lambda: Bounds(-1, 0, 0, 0), "Bounds(max_error=-1) is out of range. Use 0 or more."),
        (lambda: Bounds(1, 1, 97, 0), "Bounds(agreement=97) is out of range. Use a part of the rows, 0 to 1."),
    ],
)
def test_what_a_hook_refuses(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value) == message


def test_formats_by_name():
    hooks = [SavedModel({"serving_default": SIGNATURE}), Lite(SIGNATURE), Lite(SIGNATURE, "int8", name="small")]
    names = [f"lite_{kind}" for kind in ("float16", "sparse", *KINDS[2:], "weights8", "weights4")]
    assert [*formats.available(hooks)] == ["saved_model", "lite", "small", "saved_model_xla", *names]
    assert formats.select(hooks, ["small", "saved_model"]) == [hooks[2], hooks[0]]
    [compiled] = formats.select(hooks, ["saved_model_xla"])
    assert compiled == SavedModel({"serving_default": SIGNATURE}, name="saved_model_xla", jit_compile=True)
    [made] = formats.select(hooks, ["lite_int8"])
    assert made == Lite(SIGNATURE, "int8")
    own = dataclasses.replace(hooks[1], name="lite_int8", format="int8", examples=9)
    assert formats.select([hooks[1], own], ["lite_int8"]) == [own]
    for names, message in (
        (
            ["lite_int9"],
            "--formats: there is no format 'lite_int9'. Did you mean 'lite_int8'? This experiment has saved_model,"
            " lite, small, saved_model_xla, lite_float16, lite_sparse, lite_dynamic, lite_int8, lite_int8_io,"
            " lite_weights8, lite_weights4.",
        ),
        (["lite", "lite"], "--formats names lite twice. Leave one out."),
    ):
        with pytest.raises(UserError) as error:
            formats.select(hooks, names)
        assert str(error.value) == message


def test_sparse_holds_what_pruning_has_left(model, tmp_path):
    dense = model.get_weights()
    draws = np.random.default_rng(4)
    try:
        for share in (0.8, 0.31):
            kernels = model.trainable_variables[::2]
            for weight in kernels:
                is_zero = draws.permutation(weight.shape.num_elements()).reshape(weight.shape) < share * np.size(weight)
                weight.assign(np.where(is_zero, 0, draws.normal(size=weight.shape)))
            hooks = [Lite(SIGNATURE), Lite(SIGNATURE, "sparse")]
            plain, sparse = export_all(hooks, model, [make_batch(9)], {}, tmp_path / str(share))
            assert (plain.failure, sparse.failure) == ("", "")
            assert sparse.outputs["logits"]["max_error"] == plain.outputs["logits"]["max_error"]
            left = sum(np.count_nonzero(weight) for weight in kernels)
            rest = plain.bytes - 4 * sum(map(np.size, kernels))
            # A number has four bytes, its place in the row one or two; rows have an end each.
            assert 5 * left < sparse.bytes - rest < 6 * left + 2000
    finally:
        model.set_weights(dense)


def test_sparse_refuses_a_model_without_zeros(model, tmp_path):
    with pytest.raises(UserError) as error:
        Lite(SIGNATURE, "sparse").write(model, tmp_path / "model.tflite")
    assert str(error.value) == (
        "export 'lite_sparse': no weight is sparse, so the file would be that of float32. A weight of a dense or"
        " convolution layer is stored so if at least 30 % of it are 0. Train with --config.prune.sparsity=0.8, or leave"
        " the format out."
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("inputs", "is_made"), [(1023, False), (1024, True)])
def test_dynamic_refuses_a_model_whose_weights_all_stay_in_float32(tmp_path, inputs, is_made):
    net = keras.Sequential([keras.layers.Dense(1)])
    net.build((None, inputs))
    signature = Signature(lambda model, given: {"y": model(given["x"])}, {"x": tf.TensorSpec([None, inputs])})
    path = tmp_path / "model.tflite"
    if is_made:
        Lite(signature, "dynamic").write(net, path)
        assert {tensor["dtype"] for tensor in Interpreter(str(path)).get_tensor_details()} == {np.float32, np.int8}
        return
    with pytest.raises(UserError, match=r"^export 'lite_dynamic': no weight is int8, so the file would be that of flo"):
        Lite(signature, "dynamic").write(net, path)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["dynamic", "sparse"])
def test_a_weight_of_the_last_signature_alone_counts(tmp_path, kind):
    net = keras.Sequential([keras.layers.Dense(32)])
    net.build((None, 64))
    net.layers[0].kernel.assign(np.where(np.random.default_rng(0).random((64, 32)) < 0.9, 0, 1).astype(np.float32))
    given = {"x": tf.TensorSpec([None, 64])}
    signatures = {
        "a_sum": Signature(lambda model, given: {"y": tf.reduce_sum(given["x"], 1)}, given),
        SERVING: Signature(lambda model, given: {"y": model(given["x"])}, given),
    }
    path = tmp_path / "model.tflite"
    Lite(signatures, kind).write(net, path)
    interpreter = Interpreter(str(path))
    first, last = (interpreter.get_tensor_details(subgraph) for subgraph in range(2))
    found = [[t["dtype"] is np.int8 or bool(t["sparsity_parameters"]) for t in tensors] for tensors in (first, last)]
    assert not any(found[0]) and any(found[1])

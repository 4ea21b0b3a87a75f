"""LiteRT's int8 files of a model that was trained with `quantize`: they hold the ranges and levels of training."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter
from ml_collections import ConfigDict

from framework import layers, optim, paths
from framework.config import base_config
from framework.export import SERVING, Bounds, Lite, SavedModel, Signature, export_all
from framework.metrics import Accuracy
from tests.optim.test_quantization import plan, rounded

SHAPE = (8, 8, 3)
NAMES = ("first", "hidden", "head")


def signature(shape=SHAPE):
    return Signature(
        lambda model, inputs: {"logits": model(inputs["x"], training=False)},
        {"x": tf.TensorSpec([None, *shape], tf.float32)},
    )


def make_batch(n, seed=0, shape=SHAPE):
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(n, *shape)).astype(np.float32)
    return {"x": x, "label": draws.integers(0, 5, n).astype(np.int32), "weight": np.ones(n, np.float32)}


def quantized(model, *shape, steps=3, **settings):
    """Returns a model with random biases and statistics, and its quantizer after it has seen some batches."""
    draws = np.random.default_rng(1)
    model(tf.zeros([2, *shape]))
    for variable in model.variables:
        name = variable.name.rpartition("/")[2]
        if name.startswith(("bias", "beta", "moving_mean")):
            variable.assign(draws.normal(size=variable.shape) / 4)
        if name.startswith(("gamma", "moving_variance")):
            variable.assign(draws.uniform(0.5, 2, size=variable.shape))
    planned = plan(model, **settings)
    with planned.watched():
        function = tf.function(lambda x: model(x, training=True), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec([2, *shape], tf.float32)).graph
    quantizer = planned.quantizer(graph)
    for step in range(steps):
        batch = make_batch(200, step, shape)
        with optim.observing(quantizer.points, {}) as observer:
            model(batch["x"], training=False)
        quantizer.after_update(step + 1, step, tf.constant(True), observer.extremes(tf.float32))
    return model, quantizer


def convolutions():
    x = inputs = keras.Input(SHAPE)
    y = keras.layers.Conv2D(6, 3, padding="same", name="conv", use_bias=False)(x)
    y = x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="norm")(y))
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = keras.layers.Conv2D(6, 1, name="pointwise")(y)
    y = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    y = keras.layers.Concatenate()([y, keras.layers.Conv2D(2, 1, name="branch")(x)])
    y = layers.BasicBlock(8, stride=2)(y)
    y = keras.layers.Flatten()(keras.layers.MaxPooling2D()(y))
    return keras.Model(inputs, keras.layers.Dense(5, name="head")(keras.layers.Dropout(0.1)(y)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    model, quantizer = quantized(convolutions(), *SHAPE)
    hooks = [SavedModel({SERVING: signature()}), *(Lite(signature(), kind) for kind in ("float32", "int8", "int8_io"))]
    reports = export_all(hooks, model, [make_batch(300, 9)], {"accuracy": Accuracy()}, folder)
    plain = convolutions()  # the same weights, whose ranges come from examples
    plain.set_weights(model.get_weights())
    hook = Lite(signature(), "int8", name="post_training", bound=Bounds(9.0, 9.0, 0.0, 9.0))
    reports += export_all([hook], plain, [make_batch(300, 9)], {}, folder, training=lambda n: [make_batch(n)])
    return folder, model, quantizer, {report.hook: report for report in reports}


def interpreter_of(folder, name="lite_int8"):
    interpreter = Interpreter(str(folder / name / "model.tflite"))
    return interpreter, {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}


def test_the_formats_pass_and_int8_differs_by_a_few_levels(exported):
    """A sum may be rounded to the next level. Post-training int8 is further from the model that it is made of."""
    *_, quantizer, reports = exported
    assert {name: report.failure for name, report in reports.items()} == dict.fromkeys(reports, "")
    level = float(np.ptp(quantizer.ranges["head/output"].numpy()) / 255)
    for name in ("lite_int8", "lite_int8_io"):
        found = reports[name].outputs["logits"]
        assert found["p99_error"] <= 3.1 * level and found["agreement"] >= 0.98
        assert found["p99_error"] < 0.7 * reports["post_training"].outputs["logits"]["p99_error"]


def test_the_whole_file_is_int8(exported):
    interpreter, tensors = interpreter_of(exported[0])
    kinds = [
        (operation["op_name"], tensors[operation["inputs"][0]]["dtype"].__name__)
        for operation in interpreter._get_ops_details()  # LiteRT has no public list of them
    ]
    assert [kind for kind in kinds if kind[1] != "int8"] == [("QUANTIZE", "float32")]
    assert kinds[-1] == ("DEQUANTIZE", "int8") and {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD"} <= {
        name for name, _ in kinds
    }
    assert not {"MUL", "RELU"} & {name for name, _ in kinds}  # normalisation and ReLU are part of the convolutions


def test_a_kernel_in_the_file_has_the_levels_of_training(exported):
    """That of a convolution whose BatchNormalization was folded into it, by factors of channels."""
    folder, model, *_ = exported
    interpreter, tensors = interpreter_of(folder)
    kernel, norm = model.get_layer("conv").kernel.numpy(), model.get_layer("norm")
    factor = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    bound = np.abs(kernel).max((0, 1, 2))
    (found,) = [each for each in tensors.values() if [*each["shape"]] == [6, 3, 3, 3]]
    np.testing.assert_allclose(found["quantization_parameters"]["scales"], bound * factor / 127, rtol=1e-5)
    levels = np.transpose(interpreter.get_tensor(found["index"]), (1, 2, 3, 0))
    wanted = rounded(kernel.reshape(-1, 6).astype(np.float64), -bound, bound, first=1).reshape(kernel.shape)
    np.testing.assert_array_equal(levels, np.round(wanted / (bound / 127)))


def test_a_clustered_kernel_has_few_levels_in_each_channel(tmp_path):
    """The converter scales by output channel, and folds normalisations: a whole kernel may have more levels."""
    model, _ = quantized(convolutions(), *SHAPE)
    kernels = {path: v for path, v in paths.trainable(model).items() if path.endswith("kernel")}
    for variable in kernels.values():
        value = variable.numpy()
        variable.assign(np.where(np.abs(value) < np.median(np.abs(value)), 0, value))
    settings = ConfigDict({**base_config().cluster.to_dict(), "clusters": 6, "begin": 0})
    clusterer = optim.Clusterer(settings, kernels)
    clusterer.restart()
    assert max(clusterer.distinct().values()) == 6
    hooks = [Lite(signature()), Lite(signature(), "int8")]
    reports = export_all(hooks, model, [make_batch(300, 9)], {}, tmp_path)
    assert [report.failure for report in reports] == ["", ""]
    for name, shape in {"conv": (6, 3, 3, 3), "pointwise": (6, 1, 1, 6), "head": (5, 32)}.items():
        zeros = np.moveaxis(model.get_layer(name).kernel.numpy() == 0, -1, 0).reshape(shape[0], -1)
        of_each = {}
        for folder in ("lite", "lite_int8"):
            interpreter, tensors = interpreter_of(tmp_path, folder)
            (found,) = [each for each in tensors.values() if (*each["shape"],) == shape]
            of_each[folder] = interpreter.get_tensor(found["index"]).reshape(shape[0], -1)
            assert max(len(np.unique(row)) for row in of_each[folder]) <= 6
            np.testing.assert_array_equal(of_each[folder] == 0, zeros)
        bounds = np.unique(np.abs(model.get_layer(name).kernel.numpy()).reshape(-1, shape[0]).max(0))
        assert len(np.unique(of_each["lite_int8"])) <= 1 + 5 * len(bounds)
        if name != "conv":  # which no normalisation follows
            assert len(np.unique(of_each["lite"])) == clusterer.distinct()[f"{name}/kernel"] > len(bounds)


def test_the_ranges_in_the_file_are_those_of_training(exported):
    folder, _, quantizer, _ = exported
    _, tensors = interpreter_of(folder)
    scales = [each["quantization"][0] for each in tensors.values()]
    for point, variable in quantizer.ranges.items():
        assert np.isclose(scales, np.ptp(variable.numpy()) / 255, rtol=1e-5).any(), point


def test_float_formats_do_not_round(exported):
    folder, model, *_ = exported
    batch = make_batch(20, 3)
    with optim.computing(optim.FLOAT):
        plain = model(batch["x"], training=False).numpy()
    assert np.abs(plain - model(batch["x"], training=False)).max() > 1e-3
    saved = tf.saved_model.load(str(folder / "saved_model" / "1")).signatures[SERVING](x=batch["x"])["logits"]
    np.testing.assert_allclose(saved, plain, atol=1e-5)


def sequence():
    """Projections of several axes, products of sequences, activations of their own, and an embedding."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = keras.layers.Embedding(20, 8)
            self.attention = layers.MultiHeadAttention(2, 4, mask_value=-20.0)
            self.expand = keras.layers.Dense(16, "gelu")
            self.contract = keras.layers.Dense(8)
            self.head = keras.layers.Dense(5, "softmax")

        def call(self, x, training=None):
            y = self.embed(tf.cast(tf.clip_by_value(x * 5 + 10, 0, 19), tf.int32))
            y += self.attention(y, y, use_causal_mask=True)
            y += self.contract(self.expand(y))
            return self.head(tf.reduce_mean(y, 1))

    return Net()


def test_products_of_a_transformer_are_int8_and_agree(tmp_path):
    model, _ = quantized(sequence(), 6)
    reports = export_all([Lite(signature([6]), "int8")], model, [make_batch(300, 9, (6,))], {}, tmp_path)
    assert reports[0].failure == "" and reports[0].outputs["logits"]["p99_error"] <= 0.02
    interpreter, tensors = interpreter_of(tmp_path)
    products = [o for o in interpreter._get_ops_details() if o["op_name"] == "FULLY_CONNECTED"]
    assert len(products) == 7
    assert {tensors[index]["dtype"].__name__ for each in products for index in each["inputs"][:2]} == {"int8"}


def test_a_model_that_does_not_round_yet_is_exported_by_examples(tmp_path):
    keras.utils.set_random_seed(1)
    model, _ = quantized(convolutions(), *SHAPE, steps=0)
    hook = Lite(signature(), "int8", Bounds(1, 0.05, agreement=0.8, metric=0))  # random weights have near ties
    (report,) = export_all([hook], model, [make_batch(50, 9)], {}, tmp_path, training=lambda n: [make_batch(n)])
    assert report.failure == ""
    (report,) = export_all([hook], model, [make_batch(50, 9)], {}, tmp_path)
    assert "there is no training example to find the ranges of activations by" in report.failure


@pytest.mark.slow
def test_a_model_quantised_by_tfmot_is_exported_with_its_ranges(tmp_path):
    quantization = pytest.importorskip("tensorflow_model_optimization").quantization.keras
    layers_of = [keras.Input([6]), keras.layers.Dense(8, "relu"), keras.layers.Dense(5)]
    model = quantization.quantize_model(keras.Sequential(layers_of))
    for seed in range(3):
        model(make_batch(200, seed, (6,))["x"], training=True)
    (report,) = export_all([Lite(signature([6]), "int8")], model, [make_batch(300, 9, (6,))], {}, tmp_path)
    assert report.failure == "" and report.outputs["logits"]["agreement"] >= 0.97
    interpreter, tensors = interpreter_of(tmp_path)
    assert [tensors[each["outputs"][0]]["dtype"].__name__ for each in interpreter._get_ops_details()][:-1] == [
        "int8"
    ] * 3


def test_a_function_that_keeps_the_graph_of_another_arithmetic_is_refused(tmp_path):
    """Its graph would be used again: a SavedModel that rounds, or an int8 file without the ranges of training."""
    model, _ = quantized(keras.Sequential([keras.Input([6]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)]), 6)
    body = tf.function(lambda x: model(x, training=False), autograph=False)
    held = Signature(lambda _, inputs: {"logits": body(inputs["x"])}, {"x": tf.TensorSpec([None, 6], tf.float32)})
    batch = make_batch(20, shape=(6,))
    hooks = [Lite(held, "int8"), SavedModel({SERVING: held})]
    reports = export_all(hooks, model, [batch], {}, tmp_path, training=lambda n: [batch])
    assert [report.passed for report in reports] == [False, False]
    assert "was traced before, while the model computed 'converted', and would do so here" in reports[1].failure
    body = tf.function(lambda x: model(x, training=False), autograph=False)
    assert export_all(hooks[1:], model, [batch], {}, tmp_path)[0].passed


@pytest.mark.parametrize(("left_out", "dtype"), [("hidden", np.int8), ("head", np.float32)])
def test_a_layer_that_is_left_out_is_int8_in_the_file_between_ranges_alone(tmp_path, left_out, dtype):
    """The converter finds a range of its weights itself; framework/optim/README.md says so."""
    dense = [keras.layers.Dense(4 + size, name=name) for size, name in enumerate(NAMES)]
    net = keras.Sequential([keras.Input([3]), *dense])
    net, _ = quantized(net, 3, steps=1, exclude=left_out)
    Lite(signature((3,)), "int8").write(net, tmp_path / "model.tflite")
    shape = (5, 4) if left_out == "hidden" else (6, 5)
    tensors = Interpreter(str(tmp_path / "model.tflite")).get_tensor_details()
    assert {tensor["dtype"] for tensor in tensors if tuple(tensor["shape"]) == shape} == {dtype}

"""Several signatures in one LiteRT file: they share the weights, and each is verified."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

from framework.errors import UserError
from framework.export import SERVING, Bounds, Lite, Signature, export_all, formats
from framework.export.lite_formats import FORMATS
from tests.export.test_lite_quantized import quantized

KERNEL = 64 * 256  # numbers in the kernel that both signatures use
LOOSE = Bounds(1.0, 0.1, 0.0, 1.0)
LOGITS = Signature(lambda net, x: {"logits": net(x["x"], training=False)}, {"x": tf.TensorSpec([None, 64])})
HIDDEN = Signature(lambda net, x: {"hidden": net.layers[0](x["other"])}, {"other": tf.TensorSpec([None, 64])})
BOTH = {SERVING: LOGITS, "features": HIDDEN}


def make_batch(n, seed=0):
    x, other = np.random.default_rng(seed).normal(size=(2, n, 64)).astype(np.float32)
    return {"x": x, "other": other, "weight": np.ones(n, np.float32)}


def make_model():
    keras.utils.set_random_seed(4)
    return keras.Sequential([keras.Input([64]), keras.layers.Dense(256, "relu"), keras.layers.Dense(10)])


def numbers(model, batch):
    """Returns the outputs of both signatures, in float64."""
    first, hidden, second, last = (variable.numpy().astype(np.float64) for variable in model.weights)
    logits = np.maximum(batch["x"] @ first + hidden, 0) @ second + last
    return {SERVING: logits, "features": np.maximum(batch["other"] @ first + hidden, 0)}


def found(path, batch):
    """Returns the outputs of both signatures of a file, by a separate interpreter."""
    runner = Interpreter(model_path=str(path)).get_signature_runner
    return {
        SERVING: runner(SERVING)(x=batch["x"])["logits"],
        "features": runner("features")(other=batch["other"])["hidden"],
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("exports"), make_model()
    kinds = ("float32", "int8")
    hooks = [Lite(BOTH, kind, FORMATS[kind].bound if kind == "float32" else LOOSE) for kind in kinds]
    hooks += [Lite(LOGITS, kind, hook.bound, f"single_{kind}") for kind, hook in zip(kinds, hooks, strict=True)]
    reports = export_all(hooks, model, [make_batch(100)], {}, folder, training=lambda n: [make_batch(n, 1)])
    return folder, model, {report.hook: report for report in reports}


def test_all_pass_and_each_output_has_its_row(exported):
    folder, model, reports = exported
    assert {name: report.failure for name, report in reports.items()} == dict.fromkeys(reports, "")
    batch = make_batch(100)
    exact = numbers(model, batch)
    for name, bound in (("lite", 2e-6), ("lite_int8", 0.2)):  # inputs outside of the ranges of examples are clipped
        outputs = found(folder / reports[name].path, batch)
        assert [*reports[name].outputs] == [f"{SERVING}/logits", "features/hidden"]
        for signature, summary in zip(BOTH, reports[name].outputs.values(), strict=True):
            error = np.abs(outputs[signature] - exact[signature]).max()
            assert summary["max_error"] == pytest.approx(error, abs=2e-6 * np.abs(exact[signature]).max())
            assert 0 < error < bound * np.ptp(exact[signature])
    single = Interpreter(str(folder / reports["single_int8"].path)).get_signature_runner(SERVING)
    np.testing.assert_array_equal(single(x=batch["x"])["logits"], outputs[SERVING])


def test_the_signatures_share_the_weights(exported):
    """Of int8 each has scales and zero points of its own, 12 bytes a channel and what names them."""
    reports = exported[2]
    assert reports["lite"].bytes - reports["single_float32"].bytes < 0.05 * 4 * KERNEL
    assert reports["lite_int8"].bytes - reports["single_int8"].bytes < 0.3 * KERNEL


def test_any_batch_size(exported):
    folder, model, reports = exported
    for n in (1, 7):
        batch = make_batch(n, n)
        outputs, exact = found(folder / reports["lite"].path, batch), numbers(model, batch)
        for name, wanted in exact.items():
            np.testing.assert_allclose(outputs[name], wanted, rtol=0, atol=2e-6 * max(1, np.abs(wanted).max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite_float16", "lite_dynamic", "lite_int8_io", "lite_sparse", "lite_weights8"])
def test_the_other_formats_share_the_weights_too(name, tmp_path):
    if name == "lite_weights8":
        pytest.importorskip("ai_edge_quantizer")
    model = make_model()
    kernel = model.layers[0].kernel
    kernel.assign(np.where(np.abs(kernel) < np.quantile(np.abs(kernel), 0.8), 0, kernel))
    hooks = [*formats.select([Lite(BOTH)], [name]), *formats.select([Lite(LOGITS, name="one")], [f"one{name[4:]}"])]
    for hook in hooks:
        object.__setattr__(hook, "bound", LOOSE)
    reports = export_all(hooks, model, [make_batch(100)], {}, tmp_path, training=lambda n: [make_batch(n, 1)])
    assert [report.failure for report in reports] == ["", ""]
    assert reports[0].bytes - reports[1].bytes < 0.3 * KERNEL
    assert max(output["p99_error"] / output["range"] for output in reports[0].outputs.values()) < 0.03


def test_ranges_of_training_are_those_of_both(tmp_path):
    """Each signature has the ranges of the layers that it calls."""
    model, quantizer = quantized(make_model(), 64)
    reports = export_all([Lite({**BOTH, "features": LOGITS}, "int8")], model, [make_batch(300, 9)], {}, tmp_path)
    assert reports[0].failure == ""
    assert all(output["p99_error"] <= 0.01 * output["range"] for output in reports[0].outputs.values())
    calls = Lite(LOGITS).load(tmp_path / reports[0].path)
    batch = make_batch(50, 9)
    outputs = calls[SERVING]({"x": batch["x"]})["logits"]
    np.testing.assert_array_equal(calls["features"]({"x": batch["x"]})["logits"], outputs)
    low, high = quantizer.ranges["dense_1/output"].numpy()
    levels = outputs / ((high - low) / 255)
    assert np.abs(levels - np.round(levels)).max() < 1e-3 and len(np.unique(np.round(levels))) > 50


def test_signatures_with_and_without_ranges_of_training_are_refused(tmp_path):
    model, _ = quantized(make_model(), 64)
    plain = Signature(lambda net, x: {"y": x["other"] @ net.layers[0].kernel}, HIDDEN.inputs)
    (report,) = export_all([Lite({SERVING: LOGITS, "plain": plain}, "int8")], model, [make_batch(20)], {}, tmp_path)
    assert report.failure == (
        "export 'lite_int8': the signatures plain have no ranges of activations from training, and the others have, so"
        " one file cannot hold both in int8. Give each kind a Lite of its own."
    )


def test_an_input_that_training_lacks_names_its_signature(tmp_path):
    without = {name: array for name, array in make_batch(20).items() if name != "other"}
    hook = Lite(BOTH, "int8")
    (report,) = export_all([hook], make_model(), [make_batch(20)], {}, tmp_path, training=lambda n: [without])
    assert "signature 'features' takes 'other', which is not in the training batches" in report.failure


def test_a_file_without_serving_default_is_refused():
    with pytest.raises(UserError) as error:
        Lite({"features": HIDDEN})
    assert str(error.value) == (
        "Lite has the signatures features, but no 'serving_default', whose latency and metrics are measured. Use"
        ' Lite({"serving_default": Signature(...)}).'
    )

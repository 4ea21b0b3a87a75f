"""LiteRT files quantised by rules, against the formulas of int8 and int4 in float64."""

import re
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework.errors import UserError
from framework.export import Bounds, Lite, LiteByRules, LiteRule, Signature, export_all, formats
from framework.export.lite_formats import FORMATS

SIGNATURE = Signature(
    lambda model, inputs: {"y": model(inputs["x"], training=False)}, {"x": tf.TensorSpec([None, 64], tf.float32)}
)
X = np.random.default_rng(0).normal(size=(33, 64)).astype(np.float32)
OPERATIONS = "The operations are 2 FULLY_CONNECTED."


@pytest.fixture(scope="module", autouse=True)
def package():
    return pytest.importorskip("ai_edge_quantizer", reason="needs the extra 'quantize'")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    net = keras.Sequential([keras.layers.Dense(32, "relu", name="hidden"), keras.layers.Dense(10, name="head")])
    net.build((None, 64))
    net.layers[0].bias.assign(np.linspace(-1, 1, 32))
    return net


def on_grid(kernel, bits):
    """The kernel, with bits each output channel rounded to multiples of its largest magnitude over 127 or 7."""
    if bits is None:
        return kernel
    scale = np.abs(kernel).max(0) / (2 ** (bits - 1) - 1)
    return np.round(kernel / scale) * scale


def expected(model, bits):
    hidden, bias, head, last = (weights.astype(np.float64) for weights in model.get_weights())
    hidden, head = (
        kernel if not some else on_grid(kernel, some) for kernel, some in zip((hidden, head), bits, strict=True)
    )
    return np.maximum(X @ hidden + bias, 0) @ head + last


def written(model, rules, path, **options):
    hook = LiteByRules(SIGNATURE, rules, "some", **options)
    hook.write(model, path / "model.tflite", [{"x": X, "weight": np.ones(len(X), np.float32)}])
    return hook.load(path / "model.tflite")["serving_default"]({"x": X})["y"]


@pytest.mark.parametrize(
    ("rules", "bits"),
    [
        ([LiteRule("weights")], (8, 8)),
        ([LiteRule("weights", bits=4, operation="FULLY_CONNECTED")], (4, 4)),
        ([LiteRule("weights"), LiteRule("weights", bits=4, regex=".*hidden")], (4, 8)),
        ([LiteRule("weights", bits=4, regex=".*head|StatefulPartitionedCall")], (None, 4)),
    ],
    ids=["int8", "int4", "int4 and int8", "one layer"],
)
def test_weights_are_on_the_grid_of_their_bits(model, rules, bits, tmp_path):
    np.testing.assert_allclose(written(model, rules, tmp_path), expected(model, bits), rtol=0, atol=2e-5)


def test_dynamic_rounds_the_weights_and_what_they_are_multiplied_by(model, tmp_path):
    found = written(model, [LiteRule("dynamic")], tmp_path)
    error = np.abs(found - expected(model, (8, 8))).max() / np.ptp(found)
    assert 1e-4 < error < 0.02


def test_static_computes_in_whole_numbers(model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = written(model, [LiteRule("static", activation_bits=16)], tmp_path)
    exact = expected(model, (None, None))
    assert len(np.unique(found)) <= 2**16
    assert np.abs(found - exact).max() < 0.02 * np.ptp(exact)


def test_an_export_passes_within_its_bounds_and_is_smaller(model, tmp_path):
    batch = {"x": X, "weight": np.ones(len(X), np.float32)}
    hooks = [Lite(SIGNATURE), LiteByRules(SIGNATURE, [LiteRule("weights")], "lite_weights8")]
    plain, small = export_all(hooks, model, [batch], {}, tmp_path)
    assert (plain.failure, small.failure) == ("", "")
    assert small.bytes < 0.5 * plain.bytes
    exact = expected(model, (None, None))
    error = np.abs(expected(model, (8, 8)) - exact).max()
    assert small.outputs["y"]["max_error"] == pytest.approx(error, rel=0.01)


def test_bounds_follow_the_rules():
    def bound(*rules):
        return LiteByRules(SIGNATURE, rules, "some").bound

    assert bound(LiteRule("weights"), LiteRule("dynamic")) == FORMATS["dynamic"].bound
    assert bound(LiteRule("weights"), LiteRule("weights", 4)) == bound(LiteRule("static")) == FORMATS["int8"].bound
    own = Bounds(0.1, 0.1, 0.9, 0.1)
    assert LiteByRules(SIGNATURE, [LiteRule("weights")], "some", own).bound == own


def test_formats_of_a_float32_file():
    hooks = formats.select([Lite(SIGNATURE, name="phone")], ["phone_weights4", "phone_weights8"])
    assert [(hook.name, hook.rules) for hook in hooks] == [
        ("phone_weights4", [LiteRule("weights", 4)]),
        ("phone_weights8", [LiteRule("weights", 8)]),
    ]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            [LiteRule("weights", operation="CONV_2D")],
            "operation='CONV_2D', regex='.*', activation_bits=8) changes nothing",
        ),
        ([LiteRule("weights", regex="nothing")], "regex='nothing', activation_bits=8) changes nothing"),
        (
            [LiteRule("weights", 4), LiteRule("weights")],
            "bits=4, operation='*', regex='.*', activation_bits=8) changes",
        ),
        (
            [LiteRule("weights", operation="CONV2D")],
            "operation='CONV2D', regex='.*', activation_bits=8): Unsupported op",
        ),
    ],
    ids=["no such operation in the file", "no such name", "taken by a later rule", "unknown operation"],
)
def test_a_rule_without_effect_is_refused(model, rules, said, tmp_path):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        written(model, rules, tmp_path)
    assert str(error.value).endswith(OPERATIONS) and "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: LiteRule("weight"),
            "LiteRule: there is no kind 'weight'. Did you mean 'weights'? Use one of weights, dynamic, static.",
        ),
        (lambda: LiteRule("weights", 3), "LiteRule('weights', bits=3): use bits=8 or 4."),
        (lambda: LiteRule("static", 4), "LiteRule('static', bits=4): use bits=8."),
        (lambda: LiteRule("static", activation_bits=4), "LiteRule('static', activation_bits=4): use 8 or 16."),
        (
            lambda: LiteRule("dynamic", activation_bits=16),
            "LiteRule('dynamic', activation_bits=16): use none: only kind 'static' has activation_bits.",
        ),
        (
            lambda: LiteByRules(SIGNATURE, [], "some"),
            "LiteByRules 'some' has no rule. Give it e.g. [LiteRule('weights')].",
        ),
        (
            lambda: LiteByRules(SIGNATURE, [LiteRule("static")], "some", examples=0),
            "Lite: examples=0 is out of range: it must be at least 1.",
        ),
    ],
    ids=range(7),
)
def test_wrong_values_are_refused(make, said):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == said

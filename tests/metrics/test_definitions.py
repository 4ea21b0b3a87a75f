"""Metrics against their definitions in NumPy, merged over batches."""

import numpy as np
import pytest
import tensorflow as tf

from framework import metrics
from framework.metrics import results
from tests.compile_modes import FAST_MODES, MODES
from tests.metrics import references as ref
from tests.metrics.references import wide

EXAMPLES, CLASSES = 60, 6


def drawn(seed=11, dtype=np.float32):
    """Outputs and batch; every sixth example has no weight, and the classes 4 and 5 are rare or never predicted."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(EXAMPLES, CLASSES)) * 1.5 - np.array([0, 0, 0, 0, 1.5, 99])
    label = rng.integers(0, CLASSES, EXAMPLES)
    logits[np.arange(EXAMPLES), label] += rng.integers(0, 2, EXAMPLES)
    weight = rng.integers(1, 5, EXAMPLES) / 2.0
    weight[::6] = 0
    bit = rng.integers(0, 2, EXAMPLES)
    target = 2000 + rng.normal(size=EXAMPLES)
    outputs = {
        "logits": logits,
        "pair": logits[:, :2],
        "logit": np.round(3 * rng.normal(size=EXAMPLES) + 2 * bit, 1),  # with ties
        "predictions": target + 0.5 * rng.normal(size=EXAMPLES),
    }
    batch = {"label": label, "bit": bit, "target": target.astype(dtype), "weight": weight.astype(dtype)}
    return {name: array.astype(dtype) for name, array in outputs.items()}, batch


def classes_reference(place, average):
    def reference(o, b):
        guess = o["logits"].argmax(-1)
        hit_rate = np.average(guess == b["label"], weights=b["weight"])  # which is precision and recall over all
        return {"macro": ref.macro(guess, b["label"], b["weight"])[place], "micro": hit_rate}

    return reference


def binary_reference(place):
    return lambda o, b: ref.by_class((o["logit"] > 0).astype(int), b["bit"], b["weight"], 1)[place]


BINARY = {"logits": "logit", "label": "bit"}


# name: (metric, reference of (outputs, batch) in float64, relative tolerance in float32)
CASES = {
    "top 1": (metrics.TopKAccuracy(1), lambda o, b: ref.top_k(o["logits"], b["label"], b["weight"], 1), 1e-6),
    "top 3": (metrics.TopKAccuracy(3), lambda o, b: ref.top_k(o["logits"], b["label"], b["weight"], 3), 1e-6),
    "binary accuracy": (
        metrics.BinaryAccuracy(**BINARY),
        lambda o, b: np.average((o["logit"] > 0) == b["bit"], weights=b["weight"]),
        1e-6,
    ),
    "binary accuracy, threshold": (
        metrics.BinaryAccuracy(threshold=0.8, **BINARY),
        lambda o, b: np.average((1 / (1 + np.exp(-o["logit"])) > 0.8) == b["bit"], weights=b["weight"]),
        1e-6,
    ),
    "precision": (metrics.Precision(**BINARY), binary_reference(0), 1e-12),
    "recall": (metrics.Recall(**BINARY), binary_reference(1), 1e-12),
    "f1": (metrics.F1(**BINARY), binary_reference(2), 1e-12),
    "f1 of two logits": (
        metrics.F1(logits="pair", label="bit"),
        lambda o, b: ref.by_class(o["pair"].argmax(-1), b["bit"], b["weight"], 1)[2],
        1e-12,
    ),
    "precision of classes": (metrics.Precision(CLASSES), classes_reference(0, "macro"), 1e-12),
    "recall of classes": (metrics.Recall(CLASSES), classes_reference(1, "macro"), 1e-12),
    "f1 of classes": (metrics.F1(CLASSES), classes_reference(2, "macro"), 1e-12),
    "calibration": (
        metrics.CalibrationError(),
        lambda o, b: ref.calibration(o["logits"], b["label"], b["weight"], 15),
        1e-6,
    ),
    "rmse": (
        metrics.RootMeanSquaredError(),
        lambda o, b: np.sqrt(np.average((o["predictions"] - b["target"]) ** 2, weights=b["weight"])),
        1e-6,
    ),
    "mae": (
        metrics.MeanAbsoluteError(),
        lambda o, b: np.average(abs(o["predictions"] - b["target"]), weights=b["weight"]),
        1e-6,
    ),
    "r2": (metrics.R2(), lambda o, b: ref.r2(o["predictions"], b["target"], b["weight"]), 1e-7),
    "perplexity": (metrics.Perplexity(), lambda o, b: ref.perplexity(o["logits"], b["label"], b["weight"]), 1e-6),
}


# The references of curves are those of the logits in the middle of their bins.
AREAS = {"ROC": ref.roc, "PR": ref.average_precision}


def parts(arrays, cuts):
    return [
        dict(zip(arrays, of, strict=True)) for of in zip(*(np.split(a, cuts) for a in arrays.values()), strict=True)
    ]


def merged(metric, outputs, batch, mode="eager"):
    """The state of four batches: of different sizes, or of one size so that they are compiled once."""
    cuts = (7, 8, 40) if mode == "eager" else (15, 30, 45)
    update, total = MODES[mode](metric.update), metric.empty()
    for o, b in zip(parts(outputs, cuts), parts(batch, cuts), strict=True):
        state = update(*({name: tf.constant(array) for name, array in arrays.items()} for arrays in (o, b)))
        assert state.shape == total.shape
        total = metric.merge(total, state.numpy())
    return total


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("name", CASES)
def test_a_metric_of_merged_batches_is_that_of_its_definition(name, mode):
    metric, reference, tolerance = CASES[name]
    outputs, batch = drawn()
    results.check({name: metric})
    found, expected = metric.result(merged(metric, outputs, batch, mode)), reference(wide(outputs), wide(batch))
    assert found == pytest.approx(expected, rel=tolerance)
    worst = 0.02 if name == "calibration" else 0.1
    assert all(value > worst for value in (found.values() if isinstance(found, dict) else [found]))


@pytest.mark.parametrize("name", CASES)
def test_a_metric_of_float64_has_its_digits(name):
    metric, reference, _ = CASES[name]
    outputs, batch = drawn(dtype=np.float64)
    tolerance = 1e-7 if name == "r2" else 1e-12  # its targets are 2000 times their spread from 0
    assert metric.result(merged(metric, outputs, batch)) == pytest.approx(reference(outputs, batch), rel=tolerance)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*CASES, *AREAS, "confusion"])
def test_what_has_no_weight_may_be_anything(name, mode):
    metric = {**{n: case[0] for n, case in CASES.items()}, **areas(), "confusion": metrics.ConfusionMatrix(CLASSES)}[
        name
    ]
    outputs, batch = drawn()
    is_empty = batch["weight"] == 0
    spoiled = {
        n: np.where(is_empty.reshape(-1, *[1] * (a.ndim - 1)), np.nan, a).astype(a.dtype) for n, a in outputs.items()
    }
    other = {n: np.where(is_empty, -9, a) if n != "weight" else a for n, a in batch.items()}
    other["target"] = np.where(is_empty, np.inf, batch["target"])
    np.testing.assert_array_equal(merged(metric, spoiled, other, mode), merged(metric, outputs, batch, mode))


@pytest.mark.parametrize("mode", ["eager", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*CASES, *AREAS])
def test_what_is_no_number_or_no_class_makes_a_metric_nan(name, mode):
    metric = {**{n: case[0] for n, case in CASES.items()}, **areas()}[name]
    outputs, batch = drawn()
    bad_outputs = {
        n: np.where(np.arange(EXAMPLES).reshape(-1, *[1] * (a.ndim - 1)) == 1, np.nan, a) for n, a in outputs.items()
    }
    bad_batch = {**batch, "label": np.where(np.arange(EXAMPLES) == 1, CLASSES, batch["label"])}
    bad_batch |= {"bit": np.where(np.arange(EXAMPLES) == 1, 2, batch["bit"])}
    bad_batch |= {"target": np.where(np.arange(EXAMPLES) == 1, np.nan, batch["target"]).astype(np.float32)}
    bad_outputs = {n: a.astype(np.float32) for n, a in bad_outputs.items()}
    for o, b in ((bad_outputs, batch), (outputs, bad_batch)):
        found = metric.result(merged(metric, o, b, mode))
        assert all(np.isnan(value) for value in (found.values() if isinstance(found, dict) else [found]))


@pytest.mark.parametrize("name", [*CASES, *AREAS])
def test_no_examples_make_nan(name):
    metric = {**{n: case[0] for n, case in CASES.items()}, **areas()}[name]
    found = results.of(metric, "m", metric.empty())
    assert found and all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(dtype):
    outputs, batch = drawn()
    for name, (metric, reference, _) in CASES.items():
        if name not in ("r2", "rmse", "mae"):  # of 2000 bfloat16 has no decimals
            halved = {n: tf.cast(a, dtype) for n, a in outputs.items()}
            rounded = {n: tf.cast(a, tf.float64).numpy() for n, a in halved.items()}
            found = metric.result(metric.update(halved, batch).numpy().astype(np.float64))
            assert found == pytest.approx(reference(rounded, wide(batch)), rel=2e-6), name


# Areas under curves
def areas(**more):
    return {curve: metrics.AUC(curve, **BINARY, **more) for curve in AREAS}


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("bins", [8, 1024])
@pytest.mark.parametrize("curve", AREAS)
def test_an_area_is_that_of_binned_logits_and_within_its_bound(curve, bins, mode):
    outputs, batch = drawn()
    metric = areas(bins=bins)[curve]
    state = merged(metric, outputs, batch, mode)
    scores, bit, weight = outputs["logit"].astype(np.float64), batch["bit"], batch["weight"].astype(np.float64)
    place = np.clip(np.floor((outputs["logit"] / np.float32(32) + np.float32(0.5)) * np.float32(bins)), 0, bins - 1)
    assert metric.result(state) == pytest.approx(AREAS[curve](place, bit, weight), rel=1e-12)
    distance = abs(metric.result(state) - AREAS[curve](scores, bit, weight))
    assert distance <= metric.error(state) + 1e-12
    assert metric.error(state) < (0.5 if bins == 8 else 0.12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("curve", AREAS)
def test_the_bound_of_an_area_holds(curve, seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 40))
    bit, logit = rng.integers(0, 2, count), rng.normal(size=count) * rng.uniform(0.1, 40)
    bit[:2] = 0, 1
    metric = metrics.AUC(curve, bins=int(rng.integers(2, 30)), **BINARY)
    state = metric.update({"logit": logit}, {"bit": bit, "weight": np.ones(count)}).numpy()
    assert abs(metric.result(state) - AREAS[curve](logit, bit, np.ones(count))) <= metric.error(state) + 1e-12


def test_an_area_of_one_class_alone_is_nan():
    batch = {"bit": np.ones(4, int), "weight": np.ones(4)}
    assert np.isnan(
        metrics.AUC(**BINARY).result(metrics.AUC(**BINARY).update({"logit": np.arange(4.0)}, batch).numpy())
    )


# The picture
@pytest.mark.parametrize("mode", FAST_MODES)
def test_a_confusion_matrix_counts_and_is_drawn(mode):
    outputs, batch = drawn()
    metric = metrics.ConfusionMatrix(CLASSES)
    state = merged(metric, outputs, batch, mode)
    expected = np.zeros([CLASSES, CLASSES])
    for z, y, w in zip(outputs["logits"], batch["label"], batch["weight"], strict=True):
        expected[y, z.argmax()] += w
    np.testing.assert_array_equal(metric.counts(state), expected)
    pixels = metric.result(state).pixels
    size = 256 // CLASSES
    assert pixels.shape == (CLASSES * size, CLASSES * size, 1)
    np.testing.assert_allclose(
        pixels[size // 2 :: size, size // 2 :: size, 0], 1 - expected / expected.sum(1, keepdims=True)
    )
    assert (metric.result(metric.empty()).pixels == 1).all()

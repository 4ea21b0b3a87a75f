"""framework/export/verify.py: exports that differ from the trained model fail in one line."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from framework.config import UserError
from framework.export.base import Signature
from framework.export.bounds import Bounds
from tests.export.fakes import SIGNATURE, Fake, Hits, Scale, X, adding, export_one, make_batch


def replacing(row, column, value):
    def spoil(outputs):
        logits = outputs["logits"].copy()
        logits[row, column] = value
        return {"logits": logits}

    return spoil


def test_errors_are_those_numpy_finds(tmp_path):
    rng = np.random.default_rng(0)
    batches = [make_batch(rng.normal(size=(n, 3)) * 20) for n in (50, 7)]

    def spoil(outputs):
        return {"logits": outputs["logits"] * np.float32(1 + 3e-6)}

    report = export_one(tmp_path, Fake(bound=5e-6, spoil=spoil), batches, model=Scale(3.0))
    reference = np.concatenate([batch["x"] * np.float32(3) for batch in batches]).astype(np.float64)
    exported = np.concatenate([batch["x"] * np.float32(3) * np.float32(1 + 3e-6) for batch in batches])
    errors = np.abs(exported - reference)
    assert report.passed
    assert report.failure == ""
    assert report.outputs == {
        "logits": {
            "max_error": errors.max(),
            "p99_error": np.percentile(errors, 99),
            "bound": 5e-6 * np.abs(reference).max(),
            "range": reference.max() - reference.min(),
            "max_reference": np.abs(reference).max(),
            "agreement": 1.0,
            "argmax_mismatches": 0,
            "nonfinite": 0,
        }
    }
    assert 1e-5 < errors.max() < 1e-3
    assert report.examples == 57


def test_the_bound_is_absolute_for_small_outputs(tmp_path):
    small = [make_batch([[0.5, 0.25, 0.0]])]
    assert export_one(tmp_path, Fake(bound=0.01, spoil=adding(0.009)), small).outputs["logits"]["bound"] == 0.01
    assert not export_one(tmp_path, Fake(bound=0.01, spoil=adding(0.011)), small).passed


@pytest.mark.parametrize(
    ("hook", "failure"),
    [
        (Fake(spoil=adding(1e-3)), "logits: max error 0.001 exceeds the bound 2e-05"),
        (
            Fake(spoil=replacing(0, 2, np.nan)),
            "logits: 1 of 9 values are NaN or infinite, unlike those of the trained model",
        ),
        (
            Fake(spoil=replacing(slice(None), 0, np.inf)),
            "logits: 3 of 9 values are NaN or infinite, unlike those of the trained model;"
            " logits: argmax differs in 2 of 3 rows, ties within 2e-05 not counted",
        ),
        (Fake(fail=ValueError("no\n  room")), "ValueError: no room"),
        (Fake(fail=UserError("use float32.")), "use float32."),
        (Fake(fail=ValueError("x" * 1000)), "ValueError: " + "x" * 120 + "…" + "x" * 40),
        (
            Fake(spoil=lambda outputs: {"scores": outputs["logits"]}),
            "signature 'serving_default' returns scores once exported, but logits from the trained model.",
        ),
        (
            Fake(spoil=lambda outputs: {"logits": outputs["logits"].astype(np.float64)}),
            "output 'logits' is float64 (3, 3) once exported, but float32 (3, 3) from the trained model.",
        ),
        (
            Fake(spoil=lambda outputs: {"logits": outputs["logits"][:, :2]}),
            "output 'logits' is float32 (3, 2) once exported, but float32 (3, 3) from the trained model.",
        ),
        (
            Fake(signature=Signature(lambda model, inputs: {"logits": tf.reduce_sum(inputs["x"])}, SIGNATURE.inputs)),
            "output 'logits' has shape () for a batch of 3: put the batch first.",
        ),
        (
            Fake(signature=Signature(SIGNATURE.fn, {"image": tf.TensorSpec([None, 3])})),
            "signature 'serving_default' takes 'image', which is not in the held-out batches: label, weight, x."
            " Take inputs that the batches have, or make them by Signature(from_batch=…).",
        ),
        (
            Fake(signature=Signature(SIGNATURE.fn, {"x": tf.TensorSpec([None, 3], tf.uint8)})),
            "signature 'serving_default' takes 'x' as uint8 (None, 3), but the held-out batches hold float32 (3, 3).",
        ),
        (
            Fake(signature=Signature(SIGNATURE.fn, SIGNATURE.inputs, lambda batch: {"x": batch["x"][:2]})),
            "signature 'serving_default': from_batch gives 2 rows of 'x' for 3 examples of the held-out batches. Give"
            " one for each, in their order.",
        ),
        (
            Fake(signature=Signature(lambda model, inputs: inputs["x"], SIGNATURE.inputs)),
            'Signature.fn returned SymbolicTensor. Return a dict of named tensors, e.g. {"logits": logits}.',
        ),
        (
            Fake(bound=math.nan, spoil=adding(5)),  # no error is larger than NaN
            "bound=nan is out of range. Use a number of 0 or more, or export.Bounds.",
        ),
    ],
)
def test_a_bad_export_fails_in_one_line(tmp_path, hook, failure):
    report = export_one(tmp_path, hook)
    assert not report.passed
    assert report.failure == failure


# Errors of 0.08 under a bound of 0.1: a reference gap of 0.15 must keep its argmax, one of 0.09 need not.
NARROW = np.float32([[1.0, 0.85, 0], [0.85, 1.0, 0], [0.5, 0.41, 0]])


def swap(outputs):
    logits = outputs["logits"]
    return {"logits": logits + np.where(logits == logits.max(-1, keepdims=True), np.float32(-0.08), np.float32(0.08))}


def test_a_changed_argmax_fails_where_errors_are_small(tmp_path):
    report = export_one(tmp_path, Fake(bound=0.1, spoil=swap), [make_batch(NARROW)])
    assert report.failure == "logits: argmax differs in 2 of 3 rows, ties within 0.1 not counted"
    assert report.outputs["logits"]["argmax_mismatches"] == 2


def test_outputs_without_an_argmax_have_no_agreement(tmp_path):
    inputs = {"x": tf.TensorSpec([None, 3], tf.float32)}
    one = Signature(lambda model, inputs: {"logits": inputs["x"][:, :1] * model.factor}, inputs)
    report = export_one(tmp_path, Fake(signature=one, spoil=lambda outputs: {"logits": outputs["logits"][:, :1]}))
    assert report.passed
    assert "agreement" not in report.outputs["logits"]
    assert "100.00%" not in (tmp_path / "report.html").read_text()


def test_ties_may_change_their_argmax(tmp_path):
    report = export_one(tmp_path, Fake(bound=0.1, spoil=swap), [make_batch(NARROW[2:])])
    assert report.passed
    assert report.outputs["logits"]["argmax_mismatches"] == 0


def test_masked_logits_of_minus_infinity_are_equal(tmp_path):
    report = export_one(tmp_path, Fake(), [make_batch([[-np.inf, 4, -np.inf], [1, -np.inf, 2]])])
    assert report.passed
    assert report.outputs["logits"]["max_reference"] == 4


def test_a_trained_model_that_returns_nan_fails(tmp_path):
    report = export_one(tmp_path, Fake(), [make_batch([[np.nan, 1, 2]])])
    assert report.failure == "logits: 1 of 3 values of the trained model are NaN"


def test_padding_is_left_out_of_errors_metrics_and_counts(tmp_path):
    padded = make_batch([[1, 2, 3], [99, 0, 0], [3, 2, 1]], weight=[1, 0, 1], label=[2, 1, 0])
    empty = make_batch([[99, 99, 99]], weight=[0])
    seen = []

    def spoil(outputs):
        seen.append(outputs["logits"])
        return outputs

    report = export_one(tmp_path, Fake(spoil=spoil), [padded, empty], {"hits": Hits()})
    assert report.passed
    assert report.examples == 2
    assert report.outputs["logits"]["max_reference"] == 3
    assert report.metrics == {"hits": {"trained": 1.0, "exported": 1.0}}
    assert max(logits.max() for logits in seen) == 3


def test_metrics_of_trained_and_exported_model_over_all_batches(tmp_path):
    batches = [make_batch(X, label=[0, 1, 0]), make_batch(X[:1], weight=[2], label=[0])]

    def spoil(outputs):  # the first batch is all turned to class 2: 0 of 3 hits instead of 2; the second has weight 2
        return replacing(slice(None), 2, 50)(outputs) if len(outputs["logits"]) == 3 else outputs

    report = export_one(tmp_path, Fake(spoil=spoil), batches, {"hits": Hits()})
    assert report.metrics == {"hits": {"trained": 4 / 5, "exported": 2 / 5}}


def test_a_metric_that_needs_another_output(tmp_path):
    class Loss(Hits):
        def update(self, outputs, batch):
            return outputs["per_example_loss"]

    assert export_one(tmp_path, Fake(), metrics={"loss": Loss()}).failure == (
        "metric 'loss' needs 'per_example_loss', which is neither an output of 'serving_default' (logits) nor in the"
        " batches (x, label, weight). Return it from the signature's fn."
    )


LOOSE = Bounds(max_error=0.1, p99_error=0.05, agreement=0.9, metric=0.1)
RISING = np.linspace(-1, 1, 300).reshape(100, 3).astype(np.float32)  # range 2, argmax 2 everywhere
ALL_RIGHT = make_batch(RISING, label=np.full(100, 2))


def changed(rows, column, by):
    def spoil(outputs):
        logits = outputs["logits"].copy()
        places = np.arange(100)[rows]
        logits[places[places < len(logits)], column] += np.float32(by)
        return {"logits": logits}

    return spoil


@pytest.mark.parametrize(
    ("spoil", "bound", "failure"),
    [
        (changed([7], 0, 0.19), LOOSE, ""),
        (changed([7], 0, 0.21), LOOSE, "logits: max error 0.21 exceeds the bound 0.2"),
        (changed(slice(0, 5), 0, 0.11), LOOSE, "logits: p99 error 0.11 exceeds the bound 0.1"),
        (changed(slice(0, 10), 0, 0.05), LOOSE, ""),
        (
            changed(slice(0, 11), 0, 0.05),
            dataclasses.replace(LOOSE, metric=1),
            "logits: 89 of 100 rows have the same argmax, below the bound 0.9",
        ),
        (
            changed(slice(0, 2), 0, 0.05),
            dataclasses.replace(LOOSE, metric=0.01),
            "metric 'hits' is 0.98 once exported, but 1.0 in the run's own evaluation",
        ),
        (changed([0], 0, 0.05), dataclasses.replace(LOOSE, agreement=0.999), ""),  # one may always differ
        (
            changed([0], 0, 0.05),
            dataclasses.replace(LOOSE, agreement=1.0),
            "logits: 99 of 100 rows have the same argmax, below the bound 1",
        ),
        (
            changed([7], 0, np.nan),
            LOOSE,
            "logits: 1 of 300 values are NaN or infinite, unlike those of the trained model",
        ),
    ],
)
def test_bounds_of_a_format_that_approximates(tmp_path, spoil, bound, failure):
    report = export_one(tmp_path, Fake(spoil=spoil, bound=bound), [ALL_RIGHT], {"hits": Hits()})
    assert report.failure == failure
    assert report.outputs["logits"]["bound"] == pytest.approx(0.2)


def test_a_batch_size_at_which_a_format_that_approximates_differs_from_itself(tmp_path):
    def spoil(outputs):
        return adding(0.15 if len(outputs["logits"]) == 32 else 0.05)(outputs)

    report = export_one(tmp_path, Fake(spoil=spoil, bound=dataclasses.replace(LOOSE, p99_error=0.04)), [ALL_RIGHT])
    assert report.failure == "logits at batch 32: max error 0.1 exceeds the bound 0.08"


def test_columns_that_are_lost_within_the_range_of_others_are_told(tmp_path, caplog):
    x = np.random.default_rng(2).normal(size=(200, 3)) * [1000, 0.1, 0] + [0, 50, 7]  # the last is constant

    def spoil(outputs):
        logits = outputs["logits"].copy()
        logits[:, 0] += 1
        logits[:, 1] = 50.01
        logits[:, 2] += 0.01
        return {"logits": logits}

    batches = [make_batch(x[:120]), make_batch(x[120:])]
    report = export_one(tmp_path, Fake(spoil=spoil, bound=LOOSE), batches)
    assert (report.failure, report.outputs["logits"]["lost_columns"]) == ("", 1)
    assert "1 of the columns of output 'logits' hold no more than their mean" in caplog.text
    errors = (x[:, 1] - 50.01) ** 2
    assert errors.sum() > ((x[:, 1] - x[:, 1].mean()) ** 2).sum()  # which is what is meant by lost
    assert export_one(tmp_path, Fake(bound=LOOSE), batches).outputs["logits"]["lost_columns"] == 0


def test_outputs_whose_width_is_that_of_the_batch(tmp_path):
    pairs = Signature(
        lambda model, inputs: {"logits": inputs["x"] @ tf.transpose(inputs["x"])}, {"x": tf.TensorSpec([None, 3])}
    )
    keeps = Fake(signature=pairs, bound=LOOSE, spoil=lambda out: {"logits": out["logits"] @ out["logits"].T})
    x = np.random.default_rng(3).normal(size=(9, 3))
    report = export_one(tmp_path, keeps, [make_batch(x[:5]), make_batch(x[5:])])
    assert report.outputs["logits"]["lost_columns"] == 0


def test_whole_numbers_of_a_format_that_approximates(tmp_path):
    signature = Signature(
        lambda model, inputs: {"logits": tf.cast(inputs["x"][:, 0] * 1e3, tf.int32)}, {"x": tf.TensorSpec([None, 3])}
    )

    def run(wrong, bound):
        def spoil(outputs):
            logits = (outputs["logits"][:, 0] * np.float32(1e3)).astype(np.int32)
            logits[:wrong] += 1
            return {"logits": logits}

        return export_one(tmp_path, Fake(spoil=spoil, signature=signature, bound=bound), [ALL_RIGHT])

    report = run(10, LOOSE)
    assert (report.failure, report.outputs["logits"]["agreement"]) == ("", 0.9)
    assert run(11, LOOSE).failure == "logits: 89 of 100 values agree, below the bound 0.9"

    def spoil_batches_of_32(outputs):
        logits = (outputs["logits"][:, 0] * np.float32(1e3)).astype(np.int32)
        logits[:20] += 4 * (len(logits) == 32)
        return {"logits": logits}

    report = export_one(tmp_path, Fake(spoil=spoil_batches_of_32, signature=signature, bound=LOOSE), [ALL_RIGHT])
    assert report.failure == "logits at batch 32: 12 of 32 values agree, below the bound 0.9"


def test_whole_numbers_must_be_equal(tmp_path):
    signature = Signature(
        lambda model, inputs: {"logits": tf.cast(inputs["x"] * 1e6, tf.int64)}, {"x": tf.TensorSpec([None, 3])}
    )

    def run(off):
        def spoil(outputs):
            whole = (outputs["logits"] * np.float32(1e6)).astype(np.int64)
            return {"logits": whole + off * (whole == 10_000_000)}

        return export_one(tmp_path, Fake(spoil=spoil, signature=signature))

    assert run(0).passed
    assert run(1).failure == "logits: 1 of 9 values differ"


def test_a_batch_size_that_only_the_tracing_had(tmp_path):
    def spoil(outputs):
        return adding(0.1 if len(outputs["logits"]) == 1 else 0)(outputs)

    report = export_one(tmp_path, Fake(spoil=spoil))
    assert report.failure == "logits at batch 1: max error 0.1 exceeds the bound 2e-05"


def test_an_output_that_depends_on_the_other_examples_is_told(tmp_path, caplog):
    """Alone, an example minus the mean of its batch is 0."""
    signature = Signature(
        lambda model, inputs: {"logits": inputs["x"] - tf.reduce_mean(inputs["x"], 0)}, SIGNATURE.inputs
    )
    coupled = Fake(signature=signature, spoil=lambda outputs: {"logits": outputs["logits"] - outputs["logits"].mean(0)})
    report = export_one(tmp_path, coupled)
    first, spread = X[0] - X.mean(0), np.ptp(X - X.mean(0))
    assert report.failure == "" and report.outputs["logits"]["batch_dependence"] == pytest.approx(np.abs(first).max())
    told = f"alone it differs by {np.abs(first).max():.2g}, of a range of {spread:.2g}."
    assert "export fake: output 'logits' of an example depends on the others of its batch: " in caplog.text
    assert told in caplog.text
    caplog.clear()
    assert "batch_dependence" not in export_one(tmp_path, Fake()).outputs["logits"]
    assert "depends on the others" not in caplog.text

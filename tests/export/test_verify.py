import dataclasses
import json
import types
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from framework.config import UserError
from framework.export import runner, verify
from framework.export.base import Signature
from framework.export.runner import export_all
from framework.export.saved_model import SavedModel
from framework.metrics import Accuracy


class Scale(tf.Module):
    """The live model: outputs are inputs times a variable, so references are known by eye."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = tf.Variable(factor)


SIGNATURE = Signature(
    lambda model, inputs: {"logits": inputs["x"] * model.factor}, {"x": tf.TensorSpec([None, 3], tf.float32)}
)


def keep(outputs):
    return outputs


@dataclasses.dataclass(frozen=True)
class Fake:
    """Writes the factor as text and multiplies in NumPy; `spoil` changes what it returns, `fail` where it raises."""

    name: str = "fake"
    bound: float = 2e-6
    spoil: Callable = keep
    fail: Exception | None = None
    signature: Signature = SIGNATURE

    @property
    def signatures(self):
        return {"serving_default": self.signature}

    def target(self, folder):
        return folder / "factor.txt"

    def write(self, model, path):
        if self.fail:
            raise self.fail
        path.write_text(str(float(model.factor)))

    def load(self, path):
        factor = np.float32(path.read_text())
        return {"serving_default": lambda inputs: self.spoil({"logits": inputs["x"] * factor})}


class Hits:
    """Weighted share of rows whose argmax is the label."""

    def empty(self):
        return np.zeros(2)

    def update(self, outputs, batch):
        hit = outputs["logits"].argmax(-1) == batch["label"]
        return np.array([(hit * batch["weight"]).sum(), batch["weight"].sum()])

    def merge(self, total, state):
        return total + state

    def result(self, state):
        return state[0] / state[1]


def make_batch(x, weight=None, label=None):
    x = np.asarray(x, np.float32)
    weight = np.ones(len(x), np.float32) if weight is None else np.asarray(weight, np.float32)
    label = np.zeros(len(x), np.int32) if label is None else np.asarray(label, np.int32)
    return {"x": x, "label": label, "weight": weight}


X = np.float32([[10, 2, 3], [4, 5, -6], [0, 0.5, 1]])


def export_one(tmp_path, hook, batches=None, metrics=None, model=None):
    [report] = export_all([hook], model or Scale(), batches or [make_batch(X)], metrics or {}, tmp_path)
    return report


def adding(delta):
    return lambda outputs: {"logits": outputs["logits"] + np.float32(delta)}


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
            "max_reference": np.abs(reference).max(),
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
            " Take inputs that the batches have.",
        ),
        (
            Fake(signature=Signature(SIGNATURE.fn, {"x": tf.TensorSpec([None, 3], tf.uint8)})),
            "signature 'serving_default' takes 'x' as uint8 (None, 3), but the held-out batches hold float32 (3, 3).",
        ),
        (
            Fake(signature=Signature(lambda model, inputs: inputs["x"], SIGNATURE.inputs)),
            'Signature.fn returned SymbolicTensor. Return a dict of named tensors, e.g. {"logits": logits}.',
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
    assert run(1).failure == "logits: max error 1 exceeds the bound 0"


def test_a_batch_size_that_only_the_tracing_had(tmp_path):
    def spoil(outputs):
        return adding(0.1 if len(outputs["logits"]) == 1 else 0)(outputs)

    report = export_one(tmp_path, Fake(spoil=spoil))
    assert report.failure == "logits at batch 1: max error 0.1 exceeds the bound 2e-05"


def test_latency_percentiles(tmp_path, monkeypatch):
    def ticks():
        now = 5.0
        yield now  # the export starts
        for _ in range(2):
            for milliseconds in range(1, 51):
                yield now
                now += milliseconds / 1e3
                yield now
        yield now

    clock = ticks()
    for module in (runner, verify):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    sizes = []

    def spoil(outputs):
        sizes.append(len(outputs["logits"]))
        return outputs

    report = export_one(tmp_path, Fake(spoil=spoil))
    expected = {"p50": pytest.approx(25.5), "p99": pytest.approx(49.51)}
    assert report.latency_ms == {"1": expected, "32": expected}
    assert report.seconds == 2.55
    assert sizes == [3] + [1] * 56 + [32] * 56  # compared, then a probe, 5 to warm up and 50 timed of each size


def test_one_bad_hook_stops_no_other_and_the_report_has_all(tmp_path):
    hooks = [Fake("good"), Fake("bad", fail=OSError("disk full")), Fake("late", spoil=adding(1))]
    reports = export_all(hooks, Scale(1.5), [make_batch(X)], {"hits": Hits()}, tmp_path / "exports")
    assert [(report.hook, report.path, report.passed) for report in reports] == [
        ("good", "good/factor.txt", True),
        ("bad", "bad.failed", False),
        ("late", "late.failed/factor.txt", False),
    ]
    assert [report.bytes for report in reports] == [3, 0, 3]

    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "exports" / "report.json").read_text()
    assert json.loads(text, parse_constant=no_constants) == [dataclasses.asdict(report) for report in reports]
    assert reports[1].outputs == reports[1].latency_ms == reports[1].metrics == {}
    assert "OSError: disk full" in (tmp_path / "exports/bad.failed/error.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "exports").iterdir()) == [
        "bad.failed",
        "good",
        "late.failed",
        "report.json",
    ]


def test_a_metric_that_is_not_finite_is_null(tmp_path):
    class Undefined(Hits):
        def result(self, state):
            return float("nan")

    report = export_one(tmp_path, Fake(), metrics={"auc": Undefined()})
    assert report.metrics == {"auc": {"trained": None, "exported": None}}


def test_the_last_good_export_stays_until_the_next_has_passed(tmp_path):
    assert export_one(tmp_path, Fake(), model=Scale(1.0)).passed
    assert not export_one(tmp_path, Fake(spoil=adding(1)), model=Scale(2.0)).passed
    assert (tmp_path / "fake/factor.txt").read_text() == "1.0"
    assert (tmp_path / "fake.failed/factor.txt").read_text() == "2.0"
    assert export_one(tmp_path, Fake(), model=Scale(3.0)).passed
    assert (tmp_path / "fake/factor.txt").read_text() == "3.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "report.json"]


def test_nothing_is_served_while_it_is_being_written(tmp_path):
    class Watching(Fake):
        def load(self, path):
            assert not (tmp_path / "fake").exists()
            assert path.parent.name == ".fake.partial"
            return super().load(path)

    (tmp_path / ".fake.partial").mkdir()
    (tmp_path / ".fake.partial/torn").touch()  # of an export that was killed
    assert export_one(tmp_path, Watching()).passed
    assert [path.name for path in (tmp_path / "fake").iterdir()] == ["factor.txt"]


def test_one_line_is_logged_per_hook(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(runner.logging, "info", lambda text, *values: lines.append(text % values))
    monkeypatch.setattr(runner.logging, "error", lambda text, *values: lines.append(text % values))
    monkeypatch.setattr(verify, "_latency", lambda call, batch: {"p50": 0.1234, "p99": 1.0})
    ticks = iter([0.0, 1.26, 0.0, 1.0])
    monkeypatch.setattr(runner, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))
    export_all([Fake("good"), Fake("bad", spoil=adding(1))], Scale(), [make_batch(X)], {}, tmp_path)
    assert lines == [
        "export good passed: good/factor.txt, 3 bytes, max error 0 (bound 2e-05) over 3 examples,"
        " p50 0.123 ms at batch 1, 1.3 s",
        "export bad FAILED: logits: max error 1 exceeds the bound 2e-05."
        " The artefact is kept in bad.failed/ for study; bad/ is as it was before.",
    ]


@pytest.mark.parametrize(
    ("hooks", "batches", "message"),
    [
        (
            [Fake("lite"), Fake("lite")],
            [make_batch(X)],
            "two export hooks are named 'lite'. Give one another name, e.g. name='lite_2'.",
        ),
        ([Fake("../up")], [make_batch(X)], "export hook name '../up' is not a folder name. Use letters, digits and _."),
        (
            [Fake()],
            [make_batch(X, weight=[0, 0, 0])],
            "there is no held-out example to verify exports on: every batch is empty or padding.",
        ),
    ],
)
def test_what_is_refused_before_anything_is_written(tmp_path, hooks, batches, message):
    with pytest.raises(UserError) as error:
        export_all(hooks, Scale(), batches, {}, tmp_path / "exports")
    assert str(error.value) == message
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, 'Signature.inputs is empty. Name inputs, e.g. {"image": tf.TensorSpec([None, 28, 28])}.'),
        (
            {"x": tf.TensorSpec([32, 3])},
            "Signature.inputs['x'] has shape (32, 3): its first dimension is the batch and must be free."
            " Use tf.TensorSpec([None, ...]).",
        ),
        (
            {"x": tf.TensorSpec([])},
            "Signature.inputs['x'] has shape (): its first dimension is the batch and must be free."
            " Use tf.TensorSpec([None, ...]).",
        ),
    ],
)
def test_signature_inputs_have_a_free_batch(inputs, message):
    with pytest.raises(UserError) as error:
        Signature(SIGNATURE.fn, inputs)
    assert str(error.value) == message


def test_a_signature_that_does_something_else_than_the_run_fails(tmp_path):
    """The artefact agrees with its own `fn`; the run's evaluation says what the model really does."""
    batches = [{"x": np.eye(4, dtype=np.float32), "label": np.arange(4, dtype=np.int32), "weight": np.ones(4)}]
    model = tf.Module()
    model.scale = tf.Variable(1.0)
    wrong = Signature(lambda model, inputs: {"logits": -model.scale * inputs["x"]}, {"x": tf.TensorSpec([None, 4])})
    hook = SavedModel({"serving_default": wrong})
    metrics = {"accuracy": Accuracy()}
    (report,) = export_all([hook], model, batches, metrics, tmp_path, 7, lambda batch: {"logits": batch["x"]})
    assert (report.passed, report.step) == (False, 7)
    assert report.metrics == {"accuracy": {"trained": 1.0, "exported": 0.0}}
    assert report.failure == "metric 'accuracy' is 0.0 once exported, but 1.0 in the run's own evaluation"

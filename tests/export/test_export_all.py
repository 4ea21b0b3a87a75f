"""Exports are verified one by one, reported, and replace the last good one when they have passed."""

import dataclasses
import json
import types

import numpy as np
import pytest
import tensorflow as tf

from framework.config import UserError
from framework.errors import RunError
from framework.export import runner, worker
from framework.export.base import Signature
from framework.export.runner import export_all
from framework.export.saved_model import SavedModel
from framework.metrics import Accuracy
from tests.export.fakes import SIGNATURE, Fake, Hits, Scale, X, adding, export_one, make_batch


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
    for module in (runner, worker):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    sizes = []

    def spoil(outputs):
        sizes.append(len(outputs["logits"]))
        return outputs

    report = export_one(tmp_path, Fake(spoil=spoil))
    expected = {"p50": pytest.approx(25.5), "p99": pytest.approx(49.51)}
    assert report.latency_ms == {"1": expected, "32": expected}
    assert report.throughput == {"1": pytest.approx(1e3 / 25.5), "32": pytest.approx(32e3 / 25.5)}
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
        "report.html",
        "report.json",
    ]


@dataclasses.dataclass(frozen=True)
class Measuring(Fake):
    found: object = None

    def measure(self, model, batches):
        return self.found


class Unfinished(Fake):
    @property
    def signatures(self):
        raise ValueError("no signature yet")


def test_what_a_hook_measures_is_json_or_fails_that_hook(tmp_path):
    numbers = {"recall": np.float32(0.5), "at": {"10": tf.constant(3)}, "worst": float("nan"), "each": np.arange(2)}
    hooks = [
        Measuring("a", found=numbers),
        Measuring("b", found={"index": {"kind": object()}}),
        Measuring("c", found=5),
        Unfinished("d"),
        Fake("e"),
    ]
    reports = export_all(hooks, Scale(), [make_batch(X)], {}, tmp_path)
    assert reports[0].measured == {"recall": 0.5, "at": {"10": 3}, "worst": None, "each": [0, 1]}
    assert [report.failure for report in reports] == [
        "",
        "measure: 'index': 'kind' is of type object. Return numbers, texts, or dicts of them.",
        "measure returned a value of type int. Return {name: number, text or dict}.",
        "ValueError: no signature yet",
        "",
    ]
    assert json.loads((tmp_path / "report.json").read_text()) == [dataclasses.asdict(report) for report in reports]
    assert not (tmp_path / "b").exists()


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake", "report.html", "report.json"]


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
    monkeypatch.setattr(worker, "timed", lambda call, batch: {"p50": 0.1234, "p99": 1.0})
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


def test_what_a_kernel_says_is_the_failure(tmp_path):
    """Without the stack before it, which would fill the line."""
    said = (
        "Graph execution error:\n\nDetected at node Assert/Assert defined at (most recent call last):\n"
        + 20 * '  File "/a/rather/long/path/of/python.py", line 5, in call\n\n'
        + "assertion failed: [a text has more tokens] [9]\n\t [[{{node Assert/Assert}}]] [Op:__inference_f_24]"
    )
    kernel = tf.errors.InvalidArgumentError(None, None, said)
    fresh = RunError(f"in the fresh process of saved_model_runtime.py, InvalidArgumentError: {said}")
    for fail, before in ((kernel, ""), (fresh, "in the fresh process of saved_model_runtime.py, ")):
        [report] = export_all([Fake(fail=fail)], Scale(), [make_batch(X)], {}, tmp_path)
        what = "InvalidArgumentError: assertion failed: [a text has more tokens] [9]"
        assert report.failure.replace("  ", " ") == f"{before}{what}"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, 'Signature.inputs is empty. Name inputs, e.g. {"image": tf.TensorSpec([None, 28, 28])}.'),
        (
            {"x": tf.TensorSpec([32, 3])},
            "Signature.inputs['x'] has shape (32, 3): its first dimension is the batch and must be free."
            " Use tf.TensorSpec([None, ...]).",
        ),
        *(
            (
                {name: tf.TensorSpec([None])},
                f"Signature.inputs['{name}']: TensorFlow gives such an input another name. Use letters of ASCII, digits"
                " and _, begin with a letter, and leave out 'self' and Python's own words.",
            )
            for name in ("user id", "_x", "é", "1x", "class", "None", "self")
        ),
        (
            {"user": tf.TensorSpec([None]), "User": tf.TensorSpec([None])},
            "Signature.inputs['user'] and ['User'] are one name to TensorFlow, which reads no capitals. Give one"
            " another name.",
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


NO_TENSOR = (
    "Signature.fn returned a value of type {} as 'y'. Return dense tensors, e.g. ragged.to_tensor() or"
    " tf.sparse.to_dense(sparse), each under a name of its own."
)
NO_NAME = "Signature.fn returned an output named {}. Name it by text, e.g. 'logits'."


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: {"y": None}, NO_TENSOR.format("NoneType")),
        (lambda x: {"y": {"z": x}}, NO_TENSOR.format("dict")),
        (lambda x: {"y": tf.RaggedTensor.from_tensor(x)}, NO_TENSOR.format("RaggedTensor")),
        (lambda x: {"y": tf.sparse.from_dense(x)}, NO_TENSOR.format("SparseTensor")),
        (lambda x: {1: x}, NO_NAME.format("1")),
        (lambda x: {"": x}, NO_NAME.format("''")),
        (lambda x: {}, 'Signature.fn returned dict. Return a dict of named tensors, e.g. {"logits": logits}.'),
    ],
)
def test_outputs_are_named_dense_tensors(outputs, message):
    with pytest.raises(UserError) as error:
        Signature(lambda model, inputs: outputs(inputs["x"]), SIGNATURE.inputs).trace(Scale())
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

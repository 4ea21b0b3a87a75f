"""Whose weight a metric takes: an example's or a token's; what does not fit is refused; metrics of a run."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from framework import metrics
from framework.errors import UserError
from framework.run import loop
from framework.run.evaluation import evaluate
from tests import small
from tests.metrics import references as ref
from tests.metrics.references import wide


# Shapes
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_tokens_have_weights_each_or_if_asked_by_example(shape):
    rng = np.random.default_rng(3)
    logits, label = rng.normal(size=(*shape, 7)), rng.integers(0, 7, shape)
    for field, weight in (("token_weight", rng.uniform(size=shape)), ("weight", rng.uniform(size=4))):
        full = np.broadcast_to(weight.reshape(*weight.shape, *[1] * (len(shape) - weight.ndim)), shape)
        batch = {"label": label, "weight": np.ones(4), field: weight}
        rows = logits.reshape(-1, 7), label.reshape(-1), full.reshape(-1)
        for metric, expected in (
            (metrics.Perplexity(weight=field), ref.perplexity(*rows)),
            (metrics.Accuracy(weight=field), ref.top_k(*rows, 1)),
            (metrics.TopKAccuracy(1, weight=field), ref.top_k(*rows, 1)),
        ):
            state = metric.update({"logits": logits}, batch).numpy()
            assert metric.result(state) == pytest.approx(expected, rel=1e-6)


# Of each metric: its shape of outputs and targets of 5 tokens of 4 examples.
TOKENS = {
    metrics.Accuracy(): (7,),
    metrics.TopKAccuracy(2): (7,),
    metrics.BinaryAccuracy(): (),
    metrics.Perplexity(): (7,),
    metrics.Precision(7): (7,),
    metrics.Recall(7): (7,),
    metrics.F1(): (),
    metrics.AUC(): (),
    metrics.CalibrationError(): (7,),
    metrics.ConfusionMatrix(7): (7,),
    metrics.MeanAbsoluteError(): (),
    metrics.RootMeanSquaredError(): (),
    metrics.R2(): (),
}


@pytest.mark.parametrize("metric", TOKENS, ids=lambda metric: type(metric).__name__)
def test_weights_of_examples_are_not_those_of_tokens_unless_asked(metric):
    """Every metric that is in the box takes the same three arguments, with the same defaults and the same refusal."""
    logits = np.random.default_rng(0).normal(size=(4, 5, *TOKENS[metric]))
    is_of_numbers = hasattr(metric, "predictions")
    outputs = {"predictions" if is_of_numbers else "logits": logits}
    batch = {"target" if is_of_numbers else "label": np.ones([4, 5], np.int32), "weight": np.float32([1, 2, 0, 1])}
    name, kind = type(metric).__name__, "labels" if TOKENS[metric] else "predictions" if is_of_numbers else "logits"
    with pytest.raises(UserError) as caught:
        metric.update(outputs, batch)
    assert str(caught.value) == (
        f"{name}: {kind} have shape (4, 5) and weights 'weight' (4,), so padding inside an example would count; give"
        f" weight='token_weight', a field of the shape of the {kind} that is 0 for padding, or weight='weight' if no"
        " example has padding."
    )
    asked = dataclasses.replace(metric, weight="weight").update(outputs, batch)
    batch["token_weight"] = np.repeat(batch["weight"], 5).reshape(4, 5)
    each = dataclasses.replace(metric, weight="token_weight").update(outputs, batch)
    np.testing.assert_array_equal(asked, each)


def test_a_single_value_an_example_has_the_weight_of_the_example():
    batch = {"target": np.zeros([3, 1], np.float32), "weight": np.float32([1, 3, 0])}
    state = metrics.MeanAbsoluteError().update({"predictions": np.float32([[2], [4], [np.nan]])}, batch)
    assert state.numpy().tolist() == [14, 4]


def test_accuracy_takes_the_weight_of_each_token():
    """Hits at 0, 1, 3 and 4, of weights 1, 2, 0, 3 and 0.5."""
    logits = np.eye(3, dtype=np.float32)[[[0, 1, 2, 2, 1]]]
    batch = {"label": np.int32([[0, 1, 0, 2, 1]]), "weight": np.ones(1, np.float32)}
    batch["token_weight"] = np.float32([[1, 2, 0, 3, 0.5]])
    assert metrics.Accuracy(weight="token_weight").update({"logits": logits}, batch).numpy().tolist() == [6.5, 6.5]
    batch["label"][0, 3] = 0
    assert metrics.Accuracy(weight="token_weight").update({"logits": logits}, batch).numpy().tolist() == [3.5, 6.5]


@pytest.mark.parametrize(
    ("metric", "outputs", "batch", "problem"),
    [
        (metrics.TopKAccuracy(6), {"logits": (4, 6)}, {"label": (4,)}, "TopKAccuracy: k=6 of 6 classes. It must be"),
        (metrics.TopKAccuracy(2), {"logits": (4, 6)}, {"label": (4, 6)}, "TopKAccuracy: logits 'logits' have shape"),
        (metrics.F1(5), {"logits": (4, 6)}, {"label": (4,)}, "F1: logits 'logits' have shape .4, 6., but classes=5"),
        (metrics.BinaryAccuracy(1.0), {"logits": (4,)}, {"label": (4,)}, "BinaryAccuracy: threshold=1.0 is not"),
        (metrics.BinaryAccuracy(), {"logits": (4, 1)}, {"label": (4,)}, "BinaryAccuracy: logits have shape .4, 1. and"),
        (metrics.R2(), {"predictions": (4, 1)}, {"target": (4,)}, "R2: predictions have shape .4, 1. and targets"),
        (metrics.MeanAbsoluteError(), {"predictions": (3,)}, {"target": (3,)}, "MeanAbsoluteError: predictions have"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(metric, outputs, batch, problem):
    given = [{name: np.ones(shape, np.float32) for name, shape in shapes.items()} for shapes in (outputs, batch)]
    with pytest.raises(UserError, match=f"^{problem}"):
        metric.update(given[0], {**given[1], "weight": np.ones(4, np.float32)})


def test_a_curve_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"^AUC: curve='roc', bins=1024\. It is 'ROC' or 'PR', of 2 bins or more\."):
        metrics.AUC("roc")


# In runs
def boxed():
    return {
        "top": metrics.TopKAccuracy(2),
        "f1": metrics.F1(3),
        "calibration": metrics.CalibrationError(),
        "perplexity": metrics.Perplexity(),
        "confusion": metrics.ConfusionMatrix(3),
        "r2": metrics.R2("logit", "heat_like"),
        "auc": metrics.AUC(logits="logit", label="bit"),
    }


def boxed_loss(cfg):
    def loss(model, batch, training):
        terms, _ = small.make_loss(cfg)(model, batch, training)
        logits = model(batch["x"], training=training)
        return terms, {"logits": logits, "logit": logits[:, 0]}

    return loss


def boxed_data(cfg, split):
    def transform(batch):
        bit = tf.cast(batch["label"] > 0, tf.int32)
        return {**batch, "bit": bit, "heat_like": 100 + batch["x"][:, 0]}

    training = split == "train"
    return small.make_batches(small.examples({}, cfg.seed), cfg, training=training, transform=transform)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "replicas"), [("graph", 1), ("xla", 1), ("graph", 2), ("xla", 2)])
def test_metrics_of_a_run_are_those_of_its_outputs(tmp_path, mode, replicas):
    settings = {"train.compile": mode, "train.duration": "6 steps", "log.every": "6 steps", "data.batch_size": 24}
    settings |= {"eval.batch_size": 24, "checkpoint.best_metric": "test/f1/macro"}
    if replicas > 1:
        settings |= {"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas}
    functions = {"make_loss": boxed_loss, "make_metrics": lambda cfg: boxed(), "make_data": boxed_data}
    run = small.build(tmp_path / "run", functions=functions, **settings)
    loop.train(run)
    found = evaluate(run)  # 160 examples in batches of 24, the last of 16
    arrays = wide(small.examples({}).arrays)
    logits = run.model(tf.constant(arrays["x"], tf.float32), training=False).numpy().astype(np.float64)
    label, weight, target = arrays["label"], np.ones(160), np.float64(100 + arrays["x"][:, 0].astype(np.float32))
    guess, scores = logits.argmax(-1), logits[:, 0]
    expected = {
        "top": ref.top_k(logits, label, weight, 2),
        "f1/macro": ref.macro(guess, label, weight)[2],
        "f1/micro": np.mean(guess == label),
        "calibration": ref.calibration(logits, label, weight, 15),
        "perplexity": ref.perplexity(logits, label, weight),
        "r2": ref.r2(scores, target, weight),
    }
    for name, value in expected.items():
        assert found[f"test/{name}"] == pytest.approx(value, rel=1e-5), name
    assert found["test/auc"] == pytest.approx(ref.roc(scores, (label > 0).astype(int), weight), abs=0.02)

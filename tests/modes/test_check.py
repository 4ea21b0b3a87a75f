"""--mode=check: the first step is taken with all that belongs to it, told, judged and undone."""

import math
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import data
from framework.config import UserError, base_config, finalize, flatten, resolve
from framework.config.overrides import override
from framework.losses import Term
from framework.metrics import results
from framework.modes import check, described
from framework.run import preview
from framework.step.metric_row import MetricRow
from tests.small import HOT, build, differing, snapshot


def first_step(capsys, functions=None, heat=None, **settings):
    """(status, report) of a run's first step, of which nothing is left."""
    run = build(functions=functions, heat=heat, **{"train.block_steps": 1, **settings})
    before = snapshot(run)
    status = check._first_step(run)
    assert not differing(before, snapshot(run))
    return run, status, capsys.readouterr().out


@pytest.mark.parametrize("settings", [{"train.compile": "auto", "train.micro_batches": 2}])
def test_the_first_step_is_reported_and_undone(capsys, settings):
    run, status, out = first_step(capsys, **settings)
    wanted = run.train_block.compiled_by("graph")(1).row(0)
    assert status == 0
    for name in ("loss", "learning_rate", "gradient_norm", "parameter_norm", "update_norm"):
        assert f"  {name:<24} {wanted[name]:.6g}" in out
    assert "FAILED" not in out and "exactly 0" not in out


def test_keys_that_differ_from_their_default_are_marked():
    final = override(base_config(), {"train.duration": "2 epochs", "seed": 3, "eval.every": ""}).unlock()
    final.model.width = 8
    run = types.SimpleNamespace(config=final, resolved=resolve(final, steps_per_epoch=469))
    title, *lines = described.config(run)
    assert title == "Config (* differs from the default; durations with their number of steps)"
    assert [line for line in lines if line.startswith("*")] == [
        f"* {'eval.every':<32} ''  (default '1 epoch')",
        f"* {'seed':<32} 3  (default 0)",
        f"* {'train.duration':<32} '2 epochs' = 938  (default '5 epochs')",
    ]
    assert f"  {'log.histograms_every':<32} '1 epoch' = 469" in lines
    assert f"  {'model.width':<32} 8" in lines
    assert [line.split()[1 if line[0] == "*" else 0] for line in lines] == list(flatten(final))


def test_keep_without_zeros_is_refused_as_by_a_run_unless_its_weights_come_from_another():
    with pytest.raises(UserError, match="keep: no weight of first/kernel"):
        [*described.schedule(build(**{"prune.schedule": "keep"}))]
    lines = [*described.schedule(build(**{"prune.schedule": "keep", "init_from": "elsewhere"}))]
    title = next(place for place, line in enumerate(lines) if line.startswith("Pruning: "))
    assert lines[title].endswith("zeros now (of the initial weights, not those of init_from), which stay")
    assert lines[title + 1].split() == ["first/kernel", "48", "0.000"]


def logits_loss(cfg):
    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        logits = tf.cast(logits, tf.float32)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        return {"loss": Term(tf.reduce_sum(values), tf.reduce_sum(batch["weight"]))}, {"logits": logits}

    return loss


def zero_head(cfg):
    head = keras.layers.Dense(3, kernel_initializer="zeros", name="last")
    return keras.Sequential([keras.layers.Dense(4, name="first"), head])


def test_the_loss_of_a_guess_is_told_and_gradients_of_zero_are_no_failure(capsys):
    """A head of zeros guesses, and hides the layer below it from the first batch."""
    _, status, out = first_step(capsys, {"make_model": zero_head, "make_loss": logits_loss})
    assert status == 0
    assert f"  {'loss':<24} {math.log(3):.6g}" in out
    assert "  a guess of 'label' among the 3 classes of 'logits' costs ln(3) = 1.099\n" in out
    assert "  gradients that are exactly 0 over this batch: first/kernel, first/bias\n" in out


@pytest.mark.parametrize(
    "policy", ["stop", *(pytest.param(policy, marks=pytest.mark.slow) for policy in ("skip", "rewind"))]
)
def test_a_loss_that_is_not_finite_is_a_failure(capsys, policy):
    heat = {(0, place): HOT for place in range(16)}
    _, status, out = first_step(capsys, heat=heat, **{"train.on_nonfinite": policy})
    assert status == 1
    assert "  FAILED: the loss is inf: training would not begin\n" in out or "the loss is nan" in out


def test_a_gradient_that_is_not_finite_is_a_failure_by_name(capsys):
    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)
            root = tf.sqrt(model.get_layer("last").bias)  # of 0: its slope is infinite
            return {"loss": Term(tf.reduce_sum(logits) + 16 * tf.reduce_sum(root), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    _, status, out = first_step(capsys, {"make_model": zero_head, "make_loss": make_loss})
    assert status == 1
    assert "FAILED: gradients that are not finite: last/bias\n" in out


def test_an_overflow_under_a_dynamic_loss_scale_is_no_failure(capsys):
    settings = {"train.precision": "float16", "loss_scale.initial": 2.0**24}
    _, status, out = first_step(capsys, {"make_model": zero_head, "make_loss": logits_loss}, **settings)
    assert status == 0
    assert f"  {'skipped':<24} 1\n" in out and f"  {'gradient_norm':<24} " in out and "FAILED" not in out


def test_a_parameter_without_a_gradient_is_named(capsys):
    def make_loss(cfg):
        def loss(model, batch, training):
            model(batch["x"])
            features = model.layers[0](batch["x"])
            return {"loss": Term(tf.reduce_sum(features**2), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    with pytest.raises(UserError, match="the loss does not depend on last/kernel, last/bias, so it would never train"):
        first_step(capsys, {"make_model": zero_head, "make_loss": make_loss})


class Metric:
    mode = "max"

    def __init__(self, result):
        self.of = result

    def empty(self):
        return np.zeros(2)

    def update(self, outputs, batch):
        return tf.stack([tf.reduce_sum(outputs["logits"]), tf.reduce_sum(batch["weight"])])

    def merge(self, left, right):
        return left + right

    def result(self, state):
        return self.of(state)


def metrics_of(result):
    return {"make_loss": logits_loss, "make_metrics": lambda cfg: {"own": Metric(result)}}


RESULTS = [lambda s: s[0], lambda s: int(s[1]), lambda s: tf.constant(s[0]), lambda s: np.float32(s[0]), lambda s: 7]


def test_any_number_is_the_result_of_a_metric():
    layout = MetricRow((), (), {str(number): Metric(result) for number, result in enumerate(RESULTS)})
    found = layout.results(dict.fromkeys(layout.metrics, np.array([3.5, 2.0])))
    assert found == {"0": 3.5, "1": 2.0, "2": 3.5, "3": 3.5, "4": 7.0}
    assert {type(value) for value in found.values()} == {float}
    results.check(layout.metrics)


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (lambda s: s, "of shape (2,)"),
        (lambda s: None, "of type NoneType"),
        (lambda s: {"a": 1.0}.keys(), "of type dict_keys"),
        (lambda s: f"{s[0]:.3f}", "of type str"),
        (lambda s: [s[0]], "of type list"),
    ],
)
def test_a_result_that_is_no_number_is_refused(result, kind):
    with pytest.raises(UserError) as error:
        results.check({"own": Metric(result)})
    assert str(error.value) == (
        f"metric 'own': result returned a value {kind}. It must return a float, e.g. float(state[0] / state[1]),"
        " a dict of floats or a metrics.Picture."
    )


def test_a_result_that_is_no_number_is_refused_when_a_run_is_built():
    with pytest.raises(UserError, match="metric 'own': result returned a value of type NoneType"):
        build(functions=metrics_of(lambda state: None))


def test_a_result_that_fails_on_made_up_states_is_looked_at_in_the_first_step(capsys):
    with pytest.raises(UserError, match="metric 'own': result returned a value of type NoneType"):
        first_step(capsys, metrics_of(lambda state: None if state[1] == 16 else 1 / 0))


def data_apart(capsys, train, test):
    """(status, lines) of a check whose training and test data are these numbers."""

    def batches(numbers, training):
        cfg = base_config()
        cfg.data.batch_size = cfg.eval.batch_size = 4
        source = data.Source({"x": np.asarray(numbers, np.float32)}, origin="numbers")
        return data.make_batches(source, finalize(cfg), training=training)

    splits = {split: batches(numbers, False) for split, numbers in test.items()}
    run = types.SimpleNamespace(data=batches(train, True), eval_data=splits)
    return check._apart(run), capsys.readouterr().out.splitlines()[1:-1], run


def test_test_data_in_the_training_data_are_a_failure(capsys):
    splits = {"test": [100, 7, 101, 102], "valid": range(200, 204), "train_eval": range(8)}
    status, lines, _ = data_apart(capsys, range(50), splits)
    assert status == 1
    assert lines == [
        "  1 of 4 examples of 'test' among 50 for training, e.g. 1 there is 7",
        "  FAILED: 'test' tests what was trained on. Split first, or name it 'train…' if that is meant.",
        "  0 of 4 examples of 'valid' among 50 for training",
        "  8 of 8 examples of 'train_eval' among 50 for training, e.g. 0 there is 0",
    ]


def test_one_example_in_a_hundred_may_be_there_twice(capsys):
    status, lines, _ = data_apart(capsys, range(50), {"test": [7, *range(100, 199)]})
    assert (status, lines) == (0, ["  1 of 100 examples of 'test' among 50 for training, e.g. 0 there is 7"])


def test_a_run_warns_of_a_split_that_is_the_training_data(capsys, caplog):
    _, _, run = data_apart(capsys, range(50), {"test": range(50), "train_eval": range(50), "t": range(9)})
    preview.warn_of_same_data(run)
    assert [record.message[:94] for record in caplog.records] == [
        "the evaluation split 'test' has the same examples as the training data: it does not show how t"
    ]

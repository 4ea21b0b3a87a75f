"""An evaluation changes nothing, gives the same bits twice, and says so where it is not finite."""

import logging

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, paths
from framework.config import UserError
from framework.run import evaluation, loop
from framework.run.progress import Progress
from tests.small import build, differing, examples, snapshot

TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
SETTINGS = {"eval.batch_size": 48, "schedule.warmup": "", "optimizer.name": "sgd"}


class Seen(keras.layers.Layer):
    """Counts its calls and examples, and what it returns depends on how many there were."""

    def build(self, shape):
        def one(name, dtype, **settings):
            return self.add_weight(name, [], dtype, initializer="zeros", trainable=False, **settings)

        on_read = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.MEAN}
        self.calls, self.examples = one("calls", tf.float32, **on_read), one("examples", tf.float32, **on_read)

    def call(self, x):
        self.calls.assign_add(1.0)
        self.examples.assign_add(tf.cast(tf.shape(x)[0], tf.float32))
        return x * (1.0 + 0.001 * tf.cast(self.calls, x.dtype))


def make_model(cfg):
    parts = [keras.layers.Dense(8), keras.layers.BatchNormalization(momentum=0.5), Seen(), keras.layers.Dense(3)]
    return keras.Sequential(parts)


def make_loss(cfg):
    """The model trains in evaluation too."""

    def loss(model, batch, training):
        logits = model(batch["x"], training=True)
        return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

    return loss


FUNCTIONS = {"make_model": make_model, "make_loss": make_loss}


def copies(built):
    """The bits of every copy of every variable of the model."""
    return {
        (path, index): copy.numpy().tobytes()
        for path, variable in paths.variables(built.model).items()
        for index, copy in enumerate(paths.copies(variable))
    }


MODES = ["graph", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("xla", "xla_gradients", "eager"))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [{}, TWO], ids=["one", "two replicas"])
def test_two_evaluations_are_the_same_bits_and_change_nothing(mode, settings, caplog):
    if mode == "eager" and settings:
        mode = "xla"
    settings = {**SETTINGS, **settings, "train.compile": mode, "ema.decay": 0.9, "eval.splits": ("test", "test@ema")}
    with caplog.at_level(logging.WARNING):
        built = build(functions=FUNCTIONS, **settings)
    assert "evaluating 'test' moves 'batch_normalization/moving_mean'" in caplog.text
    assert "model(x, training=training)" in caplog.text
    built.train_block(3)
    before, state = copies(built), snapshot(built)
    first, second = evaluation.evaluate(built), evaluation.evaluate(built)
    assert first == second and first["test/loss"] != first["test@ema/loss"]
    assert copies(built) == before and not differing(state, snapshot(built))
    # By NumPy: the counter starts where training left it, and goes on from batch to batch of one evaluation alone.
    values = {path: variable.numpy() for path, variable in paths.variables(built.model).items()}
    total, calls = 0.0, float(paths.variables(built.model)["seen/calls"].numpy())
    parts = 2 if built.replicas.count == 2 else 1
    for step in range(4):
        batch = {name: value.numpy() for name, value in built.eval_data["test"].at(step).items()}
        calls += 1
        for part in np.split(np.arange(48), parts):
            hidden = batch["x"][part].astype(np.float64) @ values["dense/kernel"] + values["dense/bias"]
            hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-3)
            hidden = hidden * values["batch_normalization/gamma"] + values["batch_normalization/beta"]
            logits = hidden * (1 + 0.001 * calls) @ values["dense_1/kernel"] + values["dense_1/bias"]
            shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            total -= (np.log(shares[np.arange(len(part)), batch["label"][part]]) * batch["weight"][part]).sum()
    assert first["test/loss"] == pytest.approx(total / 160, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, pytest.param(TWO, marks=pytest.mark.slow)], ids=["one", "two replicas"])
def test_how_often_a_run_evaluates_changes_no_weight(tmp_path, settings):
    """Nor does looking at gradients, or at the halves of a batch."""
    ends = []
    for name, more in (("seldom", {}), ("often", {"eval.every": "2 steps", "log.histograms_every": "3 steps"})):
        built = build(tmp_path / name, functions=FUNCTIONS, **{**SETTINGS, **settings, **more})
        loop.train(built)
        ends.append(copies(built))
    assert ends[0] == ends[1]


def test_a_keras_metric_in_the_model_is_refused():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.last, self.seen = keras.layers.Dense(3), keras.metrics.Mean(name="mean_logit")

        def call(self, x, training=None):
            logits = self.last(x)
            self.seen.update_state(logits)
            return logits

    with pytest.raises(UserError) as caught:
        build(functions={"make_model": lambda cfg: Net()}, **SETTINGS)
    assert str(caught.value) == (
        "evaluating 'test' updates the Keras metric 'mean_logit', which counts on and on inside of the model. Return"
        " what it reads as outputs of the loss, and a metric of sums over examples in make_metrics(cfg), such as"
        " metrics.Accuracy or a metrics.Mean of your own."
    )


def relu_model(cfg):
    return keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)])


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_weights_that_are_not_finite_make_no_finite_number(mode, caplog):
    """Fused kernels of some CPUs make relu(NaN) 0, and the rest of the model goes on with that."""
    built = build(functions={"make_model": relu_model}, **{**SETTINGS, "train.compile": mode})
    assert all(np.isfinite(list(evaluation.evaluate(built).values()))) and "evaluating" not in caplog.text
    kernel = paths.variables(built.model)["dense/kernel"]
    for bad in (np.nan, np.inf):
        whole = kernel.numpy()
        broken = whole.copy()
        broken[:, 0] = bad
        kernel.assign(broken)
        caplog.clear()
        assert np.isnan(list(evaluation.evaluate(built).values())).all()
        assert "evaluating 'test': loss is nan: the variable 'dense/kernel' is not finite" in caplog.text
        kernel.assign(whole)
    caplog.clear()
    assert all(np.isfinite(list(evaluation.evaluate(built).values()))) and "evaluating" not in caplog.text


@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf")])
def test_a_batch_that_is_not_finite_is_named_and_never_the_best(tmp_path, bad, shown, caplog):
    def loss_of(cfg):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)
            term = losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])
            is_bad = tf.reduce_any(tf.abs(batch["x"][:, 0] - target) < 1e-6) & (not training)
            return {"cross_entropy": losses.Term(term.sum + tf.where(is_bad, bad, 0.0), term.weight)}, {}

        return loss

    target = float(examples({}).arrays["x"][100, 0])
    settings = {**SETTINGS, "eval.batch_size": 16, "checkpoint.best_metric": "test/loss", "early_stopping.patience": 2}
    settings |= {"early_stopping.metric": "test/loss", "eval.every": "2 steps"}
    built = build(tmp_path, functions={"make_model": relu_model, "make_loss": loss_of}, **settings)
    result = loop.train(built)
    assert f"evaluating 'test': loss is {shown}: batch 6 (examples 96 to 111) is the first that is not" in caplog.text
    assert result["status"] == "stopped early" and result["step"] == 4 and result["best"] == {}
    assert np.isnan(float(built.state.best.value)) and int(built.state.best.step) == -1


def test_infinity_is_no_best():
    progress = Progress(8, 0.0, {}, {"test/loss": "min", "test/accuracy": "max"}, clock=lambda: 0.0)
    for value in (np.inf, 2.0, -np.inf):
        progress.observe(1, {"test/loss": value, "test/accuracy": -value})
    assert progress.best == {"test/loss": 2.0, "test/accuracy": -2.0}


@pytest.mark.parametrize("most", [1, 2, 9])
def test_the_first_batches_of_a_pass(most):
    """Their cross-entropy in float64; the four batches have 48, 48, 48 and 16 examples."""
    built = build(**SETTINGS, **{"train.compile": "eager"})
    arrays = examples({}).arrays
    rows = slice(0, min(160, 48 * most))
    z = built.model(arrays["x"][rows], training=False).numpy().astype(np.float64)
    values = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), arrays["label"][rows]]
    assert built.eval_blocks["test"](most=most) == {"loss": pytest.approx(values.mean(), rel=1e-6)}

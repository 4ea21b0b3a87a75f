"""--mode=overfit: what learns its batch ends with 0, and what does not is named and ends with 1."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import launch
from framework import losses, testing
from framework.data.batches import make_batches
from framework.data.one_batch import OneBatch
from framework.data.sources import Source
from framework.errors import UserError
from framework.modes import overfit
from framework.run import fresh
from framework.step.learning import Signs, constant_labels
from tests import bucketed
from tests.modes.called import call
from tests.shuffled import walked
from tests.small import build, differing, examples, snapshot

SETTINGS = {
    "schedule.warmup": "",
    "schedule.name": "constant",
    "schedule.learning_rate": 0.05,
    "train.block_steps": 50,
    "train.duration": "50 steps",
}
TRUE = np.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.0], np.float32)


def make_model(first="glorot_uniform", last="glorot_uniform", bias=0.0):
    """make_model of two layers with these initial values; a bias of the first far below 0 makes its ReLU dead."""

    def make(cfg):
        bias_of_first = keras.initializers.Constant(bias)
        hidden = keras.layers.Dense(32, "relu", name="first", kernel_initializer=first, bias_initializer=bias_of_first)
        return keras.Sequential([hidden, keras.layers.Dense(3, name="last", kernel_initializer=last)])

    return make


def classify(smoothing=0.0):
    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)
            wanted = tf.one_hot(batch["label"], 3) * (1 - 1.5 * smoothing) + smoothing / 2
            values = tf.nn.softmax_cross_entropy_with_logits(wanted, logits)
            return {"loss": losses.mean(values, batch["weight"])}, {"logits": logits}

        return loss

    return make_loss


def regress(cfg):
    """Squared errors of targets that a linear model can meet."""

    def loss(model, batch, training):
        errors = model(batch["x"], training=training)[:, 0] - tf.linalg.matvec(batch["x"], TRUE)
        return {"loss": losses.mean(tf.square(errors), batch["weight"])}, {}

    return loss


LINEAR = {
    "make_loss": regress,
    "make_model": lambda cfg: keras.Sequential([keras.layers.Dense(1, use_bias=False, name="only")]),
}
SGD = {"optimizer.name": "sgd", "optimizer.momentum": 0.0}


def verdict(capsys, functions, steps=100, **settings):
    """(status, printed lines, the run), which is as it was."""
    run = build(
        functions={"make_loss": classify(), "make_model": make_model(), **functions}, **{**SETTINGS, **settings}
    )
    before = snapshot(run)
    status = overfit.main(run, [], steps)
    assert not differing(before, snapshot(run))
    return status, capsys.readouterr().out.splitlines(), run


def numbers(line):
    """The first and the last loss of a verdict."""
    words = line.replace(",", " ").split()
    return float(words[words.index("from") + 1]), float(words[words.index("to") + 1])


def test_gradient_descent_on_the_one_batch():
    """The losses of the steps against float64 NumPy, by the schedule of the run passed through twice as fast."""
    settings = {"schedule.name": "polynomial", "schedule.power": 1.0, **SGD}
    run = build(functions=LINEAR, **{**SETTINGS, **settings})
    rates = overfit._rates(run, 25)
    assert rates == pytest.approx([0.05 * (1 - 2 * step / 50) for step in range(25)], rel=1e-12)
    trial = overfit._train(run, OneBatch(run.data), rates)
    x, w = run.data.at(0)["x"].numpy().astype(np.float64), run.model.layers[0].kernel.numpy()[:, 0].astype(np.float64)
    wanted, norms = [], []
    for rate in rates:
        errors = x @ (w - TRUE)
        gradient = 2 * x.T @ errors / len(x)
        wanted.append(np.mean(errors**2))
        norms.append(np.linalg.norm(gradient))
        w = w - rate * gradient
    np.testing.assert_allclose(trial.losses, wanted, rtol=2e-5)
    np.testing.assert_allclose(trial.norms, norms, rtol=2e-5)
    assert trial.last == pytest.approx(wanted[-1], rel=2e-5) and not trial.still and not trial.failed_at


@pytest.mark.parametrize(("last", "is_learned"), [(0.9, False), (0.05, True)])
def test_skipped_steps_of_float16_have_no_norm_that_counts(last, is_learned):
    """The norm of a skipped step is NaN or infinite, and would make any other one look small beside it."""
    norms = np.array([np.nan, np.inf, 1.0, *[last] * 17])
    trial = overfit.Trial([], np.linspace(1, 0.4, 20), norms, failed_at=0, still=[], block=None)
    vars(trial)["signs"] = Signs([], [], [])
    assert trial.is_learned is is_learned


def test_a_batch_of_a_bucket_is_learned_as_numpy_learns_it():
    """Batches of several shapes: that of step 0 is cut to its bucket, and has examples of weight 0."""
    run = testing.build(bucketed, {"train.duration": "25 steps"})
    ((_, rows, weight),) = walked(bucketed.buckets_of("train", run.config), run.config.seed, 1)
    arrays = bucketed.examples("train")
    fields, model = {field: arrays[field][rows] for field in bucketed.FIELDS}, bucketed.Model(run.model)
    trial = overfit._train(run, OneBatch(run.data), overfit._rates(run, 25))
    np.testing.assert_allclose(trial.losses, [model.step(fields, weight) for _ in range(25)], rtol=1e-12)


def test_what_learns_its_batch(capsys):
    status, lines, run = verdict(capsys, {})
    batch = run.data.at(0)
    z = run.model(batch["x"]).numpy().astype(np.float64)
    first = np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(16), batch["label"]])
    assert status == 0
    assert numbers(lines[-1])[0] == pytest.approx(first, rel=1e-5) and numbers(lines[-1])[1] < 0.1 * first
    assert lines[-1].startswith("learned: ") and lines[-1].endswith(", a tenth of it at most")
    assert lines[0] == "One batch of 16, 100 steps, learning rates 0.05 … 0.05"
    shown = [line.split() for line in lines if line.startswith("  step ")]
    assert [words[1] for words in shown] == [str(step) for step in (1, *range(11, 100, 10), 100)]
    assert float(shown[0][3]) == pytest.approx(first, rel=1e-3)


@pytest.mark.slow
def test_smoothed_labels_have_a_floor(capsys):
    status, lines, _ = verdict(capsys, {"make_loss": classify(0.1)})
    floor = -(0.9 * np.log(0.9) + 2 * 0.05 * np.log(0.05))
    assert status == 0 and "near its floor" in lines[-1]
    assert numbers(lines[-1])[1] == pytest.approx(floor, rel=0.02) and floor > 0.1 * numbers(lines[-1])[0]


def test_too_few_steps_are_told_if_nothing_else_is(capsys):
    status, lines, _ = verdict(capsys, {}, steps=5, **{"schedule.learning_rate": 1e-3})
    first, last = numbers(lines[-2])
    assert status == 1 and 0.9 * first < last < first and lines[-2].startswith("NOT learned: ")
    assert lines[-1] == (
        "  every layer and parameter learns, but not enough in 5 steps. Try more of them, e.g. --steps=20, or a higher"
        " learning rate; --mode=lr_find looks for one."
    )


def test_a_dead_layer_is_named(capsys):
    """The bias alone learns how frequent the labels are."""
    status, lines, run = verdict(capsys, {"make_model": make_model(bias=-100.0)})
    shares = np.bincount(run.data.at(0)["label"], minlength=3) / 16
    assert status == 1
    (line,) = [line for line in lines if line.startswith("NOT learned: ")]
    assert numbers(line)[1] == pytest.approx(-(shares * np.log(shares)).sum(), rel=0.02)
    begin = "  the outputs are 0 for every example of first: with a ReLU before it, no gradient passes"
    assert lines[lines.index(line) + 1 :] == [
        begin,
        "  the outputs are the same for every example of last: nothing of the input arrives",
        "  the gradient is exactly 0 of first/kernel, first/bias, last/kernel",
        "  not moved: first/kernel, first/bias, last/kernel",
    ]


@pytest.mark.slow
def test_two_layers_of_zeros_are_named(capsys):
    status, lines, _ = verdict(capsys, {"make_model": make_model("zeros", "zeros")})
    assert status == 1
    assert lines[-2:] == [
        "  the gradient is exactly 0 of first/kernel, first/bias, last/kernel",
        "  not moved: first/kernel, first/bias, last/kernel",
    ]
    assert "  the outputs are 0 for every example of first: with a ReLU before it, no gradient passes" in lines


@pytest.mark.slow
def test_one_layer_of_zeros_learns(capsys):
    """It hides the layer below it from the first step alone."""
    assert verdict(capsys, {"make_model": make_model(last="zeros")})[0] == 0


def same_label(label):
    def make_data(cfg, split):
        arrays = examples({}).arrays
        source = Source({"x": arrays["x"], "label": np.full(160, label, np.int32)}, origin="one class")
        return make_batches(source, cfg, training=split == "train")

    return make_data


def test_labels_that_are_all_the_same_prove_nothing(capsys):
    status, lines, _ = verdict(capsys, {"make_data": same_label(2)})
    assert status == 1
    assert lines[-2].startswith("proves nothing: ") and numbers(lines[-2])[1] < 0.01
    assert lines[-2].endswith(", but label is the same in all examples of the batch.")


def test_only_fields_that_the_loss_alone_reads_are_labels():
    """Beside a label that differs, a mask of ones may be the same; a constant that the model reads is no label."""

    def loss(model, batch, training):
        y = model(batch["x"] + batch["shift"], training=training)[:, 0]
        return {"loss": losses.mean(tf.square(y - batch["y"]) * batch["mask"], batch["weight"])}, {}

    model = keras.Sequential([keras.layers.Dense(1)])
    batch = {name: tf.ones([4, 1]) for name in ("x", "shift")} | {
        name: tf.ones([4]) for name in ("y", "mask", "weight")
    }
    assert constant_labels(loss, model, batch, "float32") == ["mask", "y"]
    assert constant_labels(loss, model, {**batch, "y": tf.range(4.0)}, "float32") == []
    padded = {**batch, "y": tf.constant([3.0, 3, 3, 7]), "weight": tf.constant([1.0, 1, 1, 0])}
    assert constant_labels(loss, model, padded, "float32") == ["mask", "y"]


def test_a_rate_a_hundred_times_too_high(capsys):
    """Gradient descent converges below 2 by the greatest curvature: at 1/100 of the rate, and not at 1/10."""
    run = build(functions=LINEAR, **SETTINGS)
    x = run.data.at(0)["x"].numpy().astype(np.float64)
    good = 1 / np.linalg.eigvalsh(2 * x.T @ x / len(x)).max()
    status, lines, _ = verdict(capsys, LINEAR, 60, **{"schedule.learning_rate": float(100 * good), **SGD})
    assert status == 1
    (line,) = [line for line in lines if "too high" in line]
    assert line.startswith("  the learning rate is too high: 1/100 of it takes the loss to ")
    assert line.endswith(f". Type --config.schedule.learning_rate={good:.3g}, or find one by --mode=lr_find.")
    assert any(line.startswith("NOT learned: ") and "is not finite" in line for line in lines)


def test_a_rate_of_zero(capsys):
    status, lines, _ = verdict(capsys, LINEAR, 5, **{"schedule.learning_rate": 0.0, **SGD})
    assert status == 1
    assert lines[-1] == (
        "  the learning rate is 0 at each step. Type --config.schedule.learning_rate=0.001, or find one by"
        " --mode=lr_find."
    )


def test_everything_frozen_is_refused():
    with pytest.raises(UserError, match=r"nothing of 'model' is trained: optimizer\.groups="):
        build(functions=LINEAR, **{**SETTINGS, "optimizer.groups": ("only/kernel: frozen",)})


def test_the_batch_of_step_0_at_each_step():
    run = build(**SETTINGS)
    batches, wanted = OneBatch(run.data), run.data.at(0)
    assert np.any(run.data.at(3)["x"].numpy() != wanted["x"].numpy())
    shard = batches.shard(8, 8)
    for found, place in ((batches.at(3), slice(None)), (shard.take(shard.plan(3, 1, 4), tf.constant(2)), slice(8, 16))):
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            np.testing.assert_array_equal(tensor.numpy(), wanted[name].numpy()[place])
    assert (
        batches.steps_per_epoch == 10 and batches.indices(3)["index"].tolist() == run.data.indices(0)["index"].tolist()
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"is_local": False}, "takes one process, but runtime.strategy='s' is several. Leave it out."),
        (
            {"models": ["a", "b"]},
            "judges by one loss, but make_model returned several models (a, b). Train for e.g."
            " --config.train.duration='200 steps', and look at the terms in report.html.",
        ),
        ({"data": 1}, "needs batches that are a function of the step; these have a state, which the steps fill."),
        (
            {"resume_from": "runs/x"},
            "starts from untrained weights, or from those of init_from. Leave --config.resume_from out.",
        ),
    ],
)
def test_runs_that_cannot_be_judged(changed, message):
    values = {"is_local": True, "models": ["model"], "data": None, "resume_from": "", **changed}
    named = types.SimpleNamespace
    run = named(
        replicas=named(is_local=values["is_local"]),
        state=named(models=values["models"], data=values["data"]),
        config=named(resume_from=values["resume_from"], runtime=named(strategy="s")),
    )
    with pytest.raises(UserError) as error:
        fresh.refuse_unsuited(run, "overfit")
    assert str(error.value) == f"--mode=overfit {message}"


def test_overfit_as_it_is_launched(tmp_path, capsys):
    before = {*tmp_path.parent.iterdir()}
    assert call("--mode=overfit", "--steps=80") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("learned: the loss went from 2.48") and "(mean of the last 4 steps), a tenth" in line
    assert {*tmp_path.parent.iterdir()} == before
    assert launch.main(["launch.py", "--config=tests/tiny.py", "--mode=overfit", "--workdir=r"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --workdir=r has no effect with --mode=overfit, which writes no run folder. Leave it out."
    )

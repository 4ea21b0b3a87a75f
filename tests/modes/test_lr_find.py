"""--mode=lr_find: the range test against NumPy, what it suggests, and its page."""

import re

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, testing
from framework.errors import UserError
from framework.modes import lr_find
from tests import bucketed
from tests.modes.called import call
from tests.modes.test_overfit import LINEAR, SGD, TRUE
from tests.shuffled import walked
from tests.small import build, differing, snapshot

SETTINGS = {"train.block_steps": 10, **SGD}


def trained(run, rates, factor=1.0):
    """Losses of gradient descent in float64 on the batches of the run, each before its update."""
    w = run.model.layers[0].kernel.numpy()[:, 0].astype(np.float64)
    losses = []
    for step, rate in enumerate(rates):
        x = run.data.at(step)["x"].numpy().astype(np.float64)
        errors = x @ (w - TRUE)
        losses.append(np.mean(errors**2))
        w = w - factor * rate * 2 * x.T @ errors / len(x)
    return np.array(losses)


@pytest.mark.parametrize("factor", [1.0, pytest.param(0.25, marks=pytest.mark.slow)])
def test_the_losses_are_those_of_gradient_descent_on_the_training_data(factor):
    """The factors of groups stay; no step is taken after the one at which the loss diverges, but those of its block."""
    groups = () if factor == 1 else (f"only/kernel: lr={factor}",)
    run = build(functions=LINEAR, **{**SETTINGS, "optimizer.groups": groups})
    before, rates = snapshot(run), np.geomspace(1e-3, 100, 80)
    losses = lr_find.losses_at(run, rates)
    assert not differing(before, snapshot(run))
    np.testing.assert_allclose(losses, trained(run, rates[: len(losses)], factor), rtol=2e-3)
    ended = lr_find.judge(rates, losses).ended
    assert len(losses) % 10 == 0 and rates[len(losses) - 11] < ended <= rates[len(losses) - 1]


def test_buckets_follow_each_other_as_in_training(monkeypatch):
    """Each rate is of one batch, whatever its shape; NumPy takes the same steps."""
    run = testing.build(bucketed, {})
    rates = np.geomspace(1e-3, 0.1, 12)
    steps = walked(bucketed.buckets_of("train", run.config), run.config.seed, len(rates))
    arrays, model, wanted = bucketed.examples("train"), bucketed.Model(run.model), []
    for rate, (_, rows, weight) in zip(rates, steps, strict=True):
        monkeypatch.setattr(bucketed, "RATE", float(rate))
        wanted.append(model.step({field: arrays[field][rows] for field in bucketed.FIELDS}, weight))
    assert len({bucket for bucket, *_ in steps}) > 1
    np.testing.assert_allclose(lr_find.losses_at(run, rates), wanted, rtol=1e-6)  # rates are float32


def test_a_step_that_float16_skips_takes_no_rate():
    """At a scale of 2^24 the first gradients overflow; the update after them is by the first rate."""

    def loss(model, batch, training):
        errors = tf.cast(model(batch["x"], training=training)[:, 0], tf.float32) - tf.linalg.matvec(batch["x"], TRUE)
        return {"loss": losses.mean(tf.square(errors), batch["weight"])}, {}

    scale = {"loss_scale.initial": 2.0**24, "loss_scale.backoff_factor": 2.0**-10}
    settings = {"train.precision": "float16", **scale, **SETTINGS}
    run = build(functions={**LINEAR, "make_loss": lambda cfg: loss}, **settings)
    rates = np.geomspace(0.02, 0.2, 20)
    seen = lr_find.losses_at(run, rates)
    wanted = {skipped: trained(run, [*[0.0] * skipped, *rates])[skipped:] for skipped in range(4)}
    (skipped,) = (count for count, one in wanted.items() if np.allclose(seen, one[: len(seen)], rtol=0.03))
    assert len(seen) == 20 and skipped


def judged(rates, losses):
    """(rate at the end, steepest rate, suggestion), by the definition, value for value."""
    smoothed = []
    for index, loss in enumerate(losses):
        weights = [0.1 * 0.9 ** (index - other) for other in range(index + 1)]
        value = sum(w * loss for w, loss in zip(weights, losses[: index + 1], strict=True)) / sum(weights)
        if not np.isfinite(loss) or (index and value > 4 * min(smoothed) and value > smoothed[0]):
            break
        smoothed.append(value)
    ended = rates[len(smoothed)] if len(smoothed) < len(losses) else None
    least, side = smoothed.index(min(smoothed)), round(0.2 / np.log10(rates[1] / rates[0]))
    falls = {i: smoothed[i - side] - smoothed[min(i + side, len(smoothed) - 1)] for i in range(2 * side, least + 1)}
    steepest = rates[max(falls, key=falls.get)]
    return ended, steepest, steepest if ended is None else min(steepest, ended / 10)


def falling(rates, at, width=1.0):
    """A loss that falls from 2 to about 0 around a rate."""
    return 2 / (1 + (rates / at) ** width)


@pytest.mark.parametrize("end", ["none", "late", "soon", "nan"])
def test_the_suggestion_is_that_of_the_rule(end):
    rates = np.geomspace(1e-6, 10, 200)
    losses = falling(rates, 1e-2) + 0.02 * np.random.default_rng(0).normal(size=200)
    if end == "nan":
        losses[150] = np.nan
    elif end != "none":
        losses += (rates / {"late": 5.0, "soon": 0.05}[end]) ** 3
    found = lr_find.judge(rates, losses)
    wanted = judged(rates.tolist(), losses.tolist())
    assert (found.ended, found.steepest, found.suggestion) == pytest.approx(wanted)
    assert 1e-3 < found.steepest < 0.2
    assert (found.suggestion == found.steepest) == (end in ("none", "late"))


def descended(rates, seed):
    """Losses of gradient descent at these rates, on batches of 16 of a regression whose curvatures are 0.2 to 2."""
    draws = np.random.default_rng(seed)
    scale, true, w, losses = np.geomspace(1, 0.1**0.5, 8), draws.normal(size=8), np.zeros(8), []
    for rate in rates:
        x = draws.normal(size=(16, 8)) * scale
        errors = x @ (w - true) + 0.1 * draws.normal(size=16)
        losses.append(np.mean(errors**2))
        w = w - rate * 2 * x.T @ errors / 16
    return np.array(losses)


@pytest.mark.parametrize(("low", "high"), [(1e-7, 10), (1e-5, 10), (1e-4, 1), (1e-3, 1)])
def test_the_range_does_not_change_what_is_suggested(low, high):
    """At 25 steps in each tenfold; in 300 steps, rates from 0.05 to 0.4 come within 1.3 times the least loss."""
    rates = np.geomspace(low, high, round(25 * np.log10(high / low)))
    suggested = [lr_find.judge(rates, descended(rates, seed)).suggestion for seed in range(20)]
    assert 0.03 < np.median(suggested) < 0.08 and max(suggested) < 0.3


def test_a_loss_that_never_falls_has_no_suggestion():
    rates = np.geomspace(1e-6, 10, 100)
    found = lr_find.judge(rates, np.linspace(1, 1.5, 100))
    assert (found.ended, found.steepest, found.suggestion) == (None, None, None)
    assert lr_find.judge(rates[:20], np.ones(20)).suggestion is None  # the mean of ones is one, but for rounding
    assert lr_find.judge(rates, np.array([np.nan])).ended == rates[0]


def test_the_rate_and_the_page(tmp_path, capsys):
    """Gradient descent diverges above 2 by the greatest curvature of a batch, and not below that of all of them."""
    run = build(functions=LINEAR, **SETTINGS)
    page = tmp_path / "found.html"
    assert lr_find.main(run, [], 100, 1e-3, 100.0, str(page)) == 0
    lines = capsys.readouterr().out.splitlines()
    suggested = float(re.fullmatch(r"Type --config\.schedule\.learning_rate=(\S+)", lines[-1])[1])
    ended = float(re.search(r"diverged at (\S+)", "\n".join(lines))[1])
    highest = max(np.linalg.eigvalsh(2 * x.T @ x / 16).max() for x in (run.data.at(i)["x"].numpy() for i in range(10)))
    assert ended > 2 / highest and suggested <= ended / 10 * 1.01 and suggested < 2 / highest
    assert [*tmp_path.iterdir()] == [page]
    text = page.read_text()
    assert f"suggested: {suggested:.3g}" in text and f"diverged: {ended:.3g}" in text
    assert "http" not in re.sub(r"http-equiv", "", text) and "<script" not in text
    points = re.search(r'points="([^"]+)"><title>smoothed<', text)[1].split()
    across = np.diff([float(point.split(",")[0]) for point in points])
    assert len(points) == sum(1 for rate in np.geomspace(1e-3, 100, 100) if rate < ended * 0.999)
    np.testing.assert_allclose(across, across.mean(), atol=0.11)  # a logarithmic axis, to a tenth of a pixel


def own_step(cfg, tools):
    """Computes a loss, and updates by a rate of its own."""

    def step(state, batch):
        result = tools.gradients(lambda micro: LINEAR["make_loss"](cfg)(state.model, micro, True), batch)
        state.model.layers[0].kernel.assign_sub(0.01 * result.gradients["only/kernel"])
        return result.terms, result.metrics

    return step


@pytest.mark.slow
def test_a_step_without_the_schedule_is_refused():
    run = build(functions={**LINEAR, "make_step": own_step}, **SETTINGS)
    with pytest.raises(UserError) as error:
        lr_find.losses_at(run, np.geomspace(1e-3, 1, 20))
    assert str(error.value) == (
        f"--mode=lr_find: make_step of {run.experiment.path} does not call tools.apply, so no rate of the schedule is"
        " used and there is none to find."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "x.txt"}, "--out=x.txt is no page. Type e.g. --out=lr_find.html."),
        (
            {"steps": 159},
            "--steps=159 are too few from --low=1e-07 to --high=10: the suggestion would be too high. A range test"
            " takes at least 20 steps in each tenfold of the rate. Type --steps=160, or a narrower range.",
        ),
        (
            {"steps": 19, "low": 0.1, "high": 0.5},
            "--steps=19 are too few from --low=0.1 to --high=0.5: the suggestion would be too high. A range test takes"
            " at least 20 steps in each tenfold of the rate. Type --steps=20, or a narrower range.",
        ),
        (
            {"low": 1.0, "high": 0.1},
            "--low=1 and --high=0.1 are no range. Type e.g. --low=1e-7 --high=10.",
        ),
    ],
)
def test_bad_input_is_refused(monkeypatch, arguments, message):
    monkeypatch.setattr(lr_find, "refuse_unsuited", lambda run, mode: None)
    with pytest.raises(UserError) as error:
        lr_find.main(None, [], **arguments)
    assert str(error.value) == message


def test_lr_find_as_it_is_launched(tmp_path, capsys):
    page = tmp_path / "rates.html"
    assert call("--mode=lr_find", "--steps=120", "--low=1e-5", f"--out={page}") == 0
    lines = capsys.readouterr().out.splitlines()
    suggested = float(re.fullmatch(r"Type --config\.schedule\.learning_rate=(\S+)", lines[-1])[1])
    assert 5e-4 < suggested < 5e-2  # the experiment has 5e-3
    assert lines[-2] == f"The picture is in {page}." and [*tmp_path.iterdir()] == [page]

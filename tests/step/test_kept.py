"""step/kept.py and run/evaluation.py: evaluators read what the pass over the split computed, without another one."""

import functools

import numpy as np
import pytest

import framework
from framework import paths
from framework.evaluators import Report, examples, predictions
from framework.run import evaluation
from framework.step.kept import Kept
from tests.evaluated import made
from tests.small import build

TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
UNEVEN = {"eval.batch_size": 48}  # the last batch of 160 examples has 16

MODES = ["graph", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("xla", "xla_gradients", "eager"))]


def collector(found, **arguments):
    """An evaluator that keeps what predictions yields."""

    def collect(run):
        found[:] = predictions(run, **arguments)
        return Report()

    return collect


def same(first, second, tolerance=0.0):
    """Whether two lists of (batch, outputs) have the same numbers."""
    for ours, theirs in zip(first, second, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.keys() == other.keys()
            for name, value in mine.items():
                np.testing.assert_allclose(value, other[name], rtol=tolerance, atol=tolerance)
    return True


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"data.placement": "stream"}, marks=pytest.mark.slow)],
    ids=["resident", "streamed"],
)
@pytest.mark.parametrize("mode", MODES)
def test_one_pass_gives_metrics_and_predictions(mode, settings):
    found, averaged, some = [], [], []
    own = {"a": collector(found), "b": collector(averaged, split="test@ema"), "c": collector(some, limit=50)}
    splits = {"eval.splits": ("test", "test@ema"), "ema.decay": 0.5}
    run = build(functions=made(**own), **UNEVEN, **settings, **splits, **{"train.compile": mode})
    run.train_block(3)
    block = run.eval_blocks["test"]
    alone = block()
    report = framework.evaluate(run)
    assert block._compiled_outputs.calls == 0 and block._compiled_kept.calls == 8 and run.kept is None
    tolerance = 1e-6 if mode.startswith("xla") else 0.0
    assert report["test/loss"] == pytest.approx(alone["loss"], rel=tolerance or 1e-15)
    assert same(found, list(predictions(run)), tolerance)
    assert same(averaged, list(predictions(run, "test@ema")), tolerance)
    assert not np.allclose(averaged[0][1]["logits"], found[0][1]["logits"], rtol=1e-3)
    assert block._compiled_outputs.calls == 8
    assert [len(batch["label"]) for batch, _ in some] == [48, 2]
    assert framework.evaluate(run) == report


def test_an_evaluator_that_changes_the_weights_gets_the_outputs_of_the_changed_ones():
    found = []

    def doubled(run):
        last = paths.variables(run.model)["last/kernel"]
        before = [outputs["logits"] for _, outputs in predictions(run)]
        last.assign(2 * last)
        bias = paths.variables(run.model)["last/bias"].numpy()
        after = [outputs["logits"] for _, outputs in predictions(run)]
        found.append((np.concatenate(before) - bias, np.concatenate(after) - bias))
        return Report()

    run = build(functions=made(doubled=doubled, again=doubled), **UNEVEN)
    framework.evaluate(run)
    for before, after in found:
        np.testing.assert_allclose(after, 2 * before, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[0][0], found[1][0])  # the weights were put back between
    assert run.eval_blocks["test"]._compiled_outputs.calls == 8


def test_what_one_evaluator_does_to_an_array_does_not_reach_the_next():
    def spoils(run):
        for batch, outputs in predictions(run):
            batch["label"][:] = 99
            outputs["logits"][:] = 99
        return Report()

    found = []
    run = build(functions=made(spoils=spoils, later=collector(found)), **UNEVEN)
    framework.evaluate(run)
    assert same(found, list(predictions(run)))


def test_what_does_not_fit_is_computed_again(monkeypatch):
    found = []
    run = build(functions=made(own=collector(found)), **UNEVEN)
    of_step = 48 * (6 * 4 + 4 + 4 + 4) + 48 * 3 * 4 + 4  # x, label, heat and weight; logits and their mean
    monkeypatch.setattr(evaluation, "Kept", functools.partial(Kept, 3 * of_step))
    framework.evaluate(run)
    assert run.eval_blocks["test"]._compiled_outputs.calls == 1
    assert same(found, list(predictions(run)))


def test_examples_are_those_of_the_pass():
    found = []

    def look(run):
        found[:] = examples(run)
        return Report()

    run = build(functions=made(look=look), **UNEVEN)
    framework.evaluate(run)
    assert same([(batch,) for batch in found], [(batch,) for batch in examples(run)])


def test_replicas_keep_nothing():
    found = []
    run = build(functions=made(own=collector(found)), **UNEVEN, **TWO)
    framework.evaluate(run)
    assert run.eval_blocks["test"]._compiled_outputs.calls == 4
    assert same(found, list(predictions(run)))

"""framework/evaluators/base.py and run/evaluation.py: an experiment's own look at the weights, at each evaluation."""

import contextlib
import io
import json
import logging
import math

import numpy as np
import pytest
import tensorflow as tf

import framework
import launch
from framework import paths
from framework.errors import UserError
from framework.evaluators import Report, predictions
from framework.run import evaluation, reports
from tests.evaluated import made
from tests.small import build, differing, snapshot

TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
UNEVEN = {"eval.batch_size": 48}  # the last batch of 160 examples has 16


def logits_of(built, weights=None):
    """By NumPy in float64, of the whole split 'test' in the order of its source, by the moving averages."""
    values = weights or {path: v.numpy().astype(np.float64) for path, v in paths.variables(built.model).items()}
    x = np.concatenate([built.eval_data["test"].at(step)["x"].numpy() for step in range(4)])[:160]
    hidden = np.maximum(x @ values["first/kernel"] + values["first/bias"], 0)
    scale = values["norm/gamma"] / np.sqrt(values["norm/moving_variance"] + 1e-3)
    hidden = (hidden - values["norm/moving_mean"]) * scale + values["norm/beta"]
    return hidden @ values["last/kernel"] + values["last/bias"]


MODES = ["graph", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("xla", "xla_gradients", "eager"))]


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(more, marks=pytest.mark.slow) for more in (TWO, {"data.placement": "stream"}))],
    ids=["one", "two replicas", "streamed"],
)
@pytest.mark.parametrize("mode", MODES)
def test_predictions_are_those_of_numpy_without_padding(mode, settings):
    settings = {**UNEVEN, **settings, "train.compile": "graph" if mode == "eager" and settings else mode}
    built = build(functions=made(), **settings, **{"ema.decay": 0.5})
    built.train_block(3)
    before = snapshot(built)
    pairs = list(predictions(built))
    assert [len(batch["label"]) for batch, _ in pairs] == [48, 48, 48, 16]
    assert np.concatenate([outputs["logits"] for _, outputs in pairs]) == pytest.approx(logits_of(built), abs=1e-5)
    assert all(outputs["mean"].shape == () for _, outputs in pairs)
    labels = np.concatenate([batch["label"] for batch, _ in pairs])
    assert labels.tolist() == np.concatenate([built.eval_data["test"].at(i)["label"] for i in range(4)])[:160].tolist()
    some = list(predictions(built, "test", limit=50))
    assert [len(outputs["logits"]) for _, outputs in some] == [48, 2]
    assert some[1][1]["logits"].tolist() == pairs[1][1]["logits"][:2].tolist()
    averaged = {path: variable.numpy().astype(np.float64) for path, variable in built.state.ema.averages.items()}
    pairs = predictions(built, "test@ema")
    found = [next(pairs)[1]["logits"]]
    assert not differing(before, snapshot(built))  # in the middle of the pass the model has its own weights
    found += [outputs["logits"] for _, outputs in pairs]
    assert np.concatenate(found) == pytest.approx(logits_of(built, averaged), abs=1e-5)
    assert not differing(before, snapshot(built))


def test_predictions_refuse_a_split_and_a_limit_that_there_are_not():
    built = build(functions=made())
    with pytest.raises(
        UserError, match=r"split='tset'\): there is no such split. Did you mean 'test'\? Splits: test\."
    ):
        predictions(built, "tset")
    with pytest.raises(UserError, match=r"split='test@ema'\): there is no such split"):
        predictions(built, "test@ema")
    with pytest.raises(UserError, match=r"limit=0\): a limit is at least 1"):
        predictions(built, limit=0)


class Errors:
    """The share of wrong answers, a picture of them, and the first one as a text."""

    def __init__(self):
        self.modes = {"share": "min"}

    def __call__(self, run):
        wrong = np.concatenate([o["logits"].argmax(1) != b["label"] for b, o in predictions(run)])
        picture = np.float32(wrong.reshape(10, 16))
        return Report({"share": wrong.mean(), "step": int(run.state.step)}, {"map": picture}, {"all": ["a", "b"]})


SHORT = {**UNEVEN, "eval.every": "5 steps", "checkpoint.best_metric": "errors/share"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run = build(folder / "run", functions=made(errors=Errors()), **SHORT)
    return run, framework.train(run)


def rows(run):
    lines = map(json.loads, (run.workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if "eval/test/loss" in row]


def test_scalars_stand_beside_those_of_the_splits(trained):
    run, result = trained
    share = float(np.mean(logits_of(run).argmax(1) != np.concatenate([b["label"] for b, _ in predictions(run)])))
    assert 0 < share < 1
    assert [row["step"] for row in rows(run)] == [5, 10]
    assert rows(run)[-1]["eval/errors/share"] == share == result["final"]["errors/share"]
    assert [row["eval/errors/step"] for row in rows(run)] == [5, 10]
    assert framework.evaluate(run) == result["final"]


def test_the_best_step_is_that_of_an_evaluators_scalar(trained):
    run, result = trained
    by_step = {row["step"]: row["eval/errors/share"] for row in rows(run)}
    best = min(by_step, key=lambda step: (by_step[step], step))
    assert result["best"]["errors/share"] == by_step[best] and result["best_steps"]["errors/share"] == best
    assert int(run.state.best.step) == best and float(run.state.best.value) == by_step[best]
    assert "errors/step" not in result["best"]  # nobody said whether more is better


def test_early_stopping_goes_by_an_evaluators_scalar(tmp_path):
    def steps(run):
        return Report({"taken": int(run.state.step)})

    steps.modes = {"taken": "min"}
    settings = {"eval.every": "2 steps", "early_stopping.metric": "steps/taken", "early_stopping.patience": 2}
    result = framework.train(build(tmp_path / "run", functions=made(steps=steps), **settings))
    assert (result["status"], result["step"]) == ("stopped early", 6)


def test_rows_after_a_kill_are_the_same(tmp_path, trained):
    def dies_at_the_end(run):
        if int(run.state.step) == 10:
            raise KeyboardInterrupt
        return Report()

    settings = {**SHORT, "checkpoint.every": "3 steps"}
    killed = build(tmp_path / "run", functions=made(errors=Errors(), last=dies_at_the_end), **settings)
    with pytest.raises(KeyboardInterrupt):
        framework.train(killed)
    assert [row["step"] for row in rows(killed)] == [5]
    again = build(tmp_path / "run", functions=made(errors=Errors(), last=lambda run: Report()), **settings)
    framework.train(again)
    assert rows(again) == rows(trained[0]) and not differing(snapshot(trained[0]), snapshot(again))


def test_what_an_evaluator_changes_is_put_back_on_every_replica(caplog):
    def meddles(run):
        model = paths.variables(run.model)
        for path in ("first/kernel", "norm/moving_mean"):
            model[path].assign(model[path] + 1.0)
        run.state.step.assign_add(1)
        return Report({"sum": tf.reduce_sum(model["first/kernel"])})

    def values_of_copies():
        return [copy.numpy().tobytes() for v in paths.variables(built.state).values() for copy in paths.copies(v)]

    built = build(functions=made(meddles=meddles, errors=Errors()), **UNEVEN, **TWO)
    built.train_block(2)
    before, kernel = values_of_copies(), paths.variables(built.model)["first/kernel"].numpy()
    with caplog.at_level(logging.WARNING):
        found = framework.evaluate(built)
    assert found["meddles/sum"] == pytest.approx(kernel.sum(dtype=np.float64) + kernel.size, rel=1e-6)
    assert values_of_copies() == before
    told = "evaluator 'meddles' changed 'step', 'model/first/kernel', 'model/norm/moving_mean' of the state; the old"
    assert told in caplog.text
    wrong = logits_of(built).argmax(1) != np.concatenate([batch["label"] for batch, _ in predictions(built)])
    assert found["errors/share"] == wrong.mean()


def test_one_that_changes_the_state_and_fails_leaves_it_as_it_was():
    def breaks(run):
        run.state.step.assign(99)
        raise ValueError("enough")

    built = build(functions=made(breaks=breaks))
    with pytest.raises(UserError, match="enough"):
        framework.evaluate(built)
    assert int(built.state.step) == 0


def test_nan_is_a_warning_and_never_the_best(tmp_path, caplog):
    def odd(run):
        return Report({"number": math.nan if int(run.state.step) > 5 else 3.0, "other": math.inf})

    odd.modes = {"number": "min"}
    settings = {"eval.every": "5 steps", "checkpoint.best_metric": "odd/number"}
    run = build(tmp_path / "run", functions=made(odd=odd), **settings)
    with caplog.at_level(logging.WARNING):
        result = framework.train(run)
    assert "evaluating 'odd': number is nan, other is inf: as its evaluator computes" in caplog.text
    assert result["final"]["odd/number"] is None and result["best"]["odd/number"] == 3
    assert int(run.state.best.step) == 5


NUMBER = np.zeros([28, 28, 7], np.float32)


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (None, "evaluator 'own' returned None. It must return evaluators.Report("),
        ({"a": 1.0}, "evaluator 'own' returned a value of type dict. It must return evaluators.Report("),
        (Report([1.0]), "evaluator 'own' returned scalars that are not {name: value}"),
        (Report({3: 1.0}), "evaluator 'own' returned scalars that are not {name: value}"),
        (Report({"a": np.zeros(2)}), "evaluator 'own': scalars['a'] is float64 [2], not a number. Write e.g. float("),
        (Report({"a": "1"}), "evaluator 'own': scalars['a'] is '1', not a number"),
        (Report({"a": 1j}), "evaluator 'own': scalars['a'] is a value of type complex, not a number"),
        (Report(images={"a": NUMBER}), "evaluator 'own': images['a'] is float32 [28, 28, 7]. Pictures are [height,"),
        (
            Report(images={"a": NUMBER[0, 0]}),
            "images['a'] is float32 [7]. Pictures are [height, width], [height,",
        ),
        (Report(images={"a": NUMBER[:0, :, :3]}), "images['a'] is float32 [0, 28, 3]. Pictures are"),
        (
            Report(images={"a": NUMBER[..., :3] + 2}),
            "with values from 2 to 2. Pictures are uint8, or float from 0",
        ),
        (Report(images={"a": NUMBER[..., :3] * np.nan}), "with values from nan to nan. Pictures are uint8, or float"),
        (
            Report(images={"a": np.zeros([8, 8], int)}),
            "images['a'] is int64 [8, 8]. Pictures are uint8, or float from",
        ),
        (Report(texts={"a": 3}), "evaluator 'own': texts['a'] is 3, not a str or a list of them"),
        (Report(texts={"a": ["b", 3]}), "evaluator 'own': texts['a'] is a value of type list, not a str or a list"),
    ],
)
def test_a_wrong_report_is_one_line(returned, line, linear):
    linear.evaluators = {"own": lambda run: returned}
    with pytest.raises(UserError) as caught:
        framework.evaluate(linear)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def linear():
    """A run that evaluates in a moment; tests give it evaluators of their own."""
    return framework.build("tests/linear.py")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.full([5, 4], 0.5), np.full([1, 5, 4, 1], 0.5)),
        (np.zeros([5, 4, 3], np.uint8), np.zeros([1, 5, 4, 3])),
        (np.ones([2, 5, 4, 1], np.float16), np.ones([2, 5, 4, 1])),
    ],
)
def test_pictures_of_each_shape_are_taken(given, wanted, linear):
    linear.evaluators = {"own": lambda run: Report(images={"a": given})}
    found = evaluation.report(linear)
    assert found.images["own/a"].shape == wanted.shape and (found.images["own/a"] == wanted).all()


def test_a_list_of_texts_is_paragraphs(linear):
    linear.evaluators = {"own": lambda run: Report(texts={"a": ["one", "two"], "b": "three"})}
    assert evaluation.report(linear).texts == {"own/a": "one\n\ntwo", "own/b": "three"}


@pytest.mark.parametrize(
    ("own", "settings", "line"),
    [
        ({"test": Errors()}, {}, "names an evaluator 'test', but a split has that name. Give it another"),
        ({"train": Errors()}, {}, "names an evaluator 'train', but a split has that name"),
        ({"a/b": Errors()}, {}, "names an evaluator 'a/b', but a name has letters, digits, '_', '-' and '.'."),
        (
            {"errors": Errors()},
            {"checkpoint.best_metric": "errors/step"},
            "evaluator 'errors' does not declare the scalar 'step'. Did you mean 'errors/share'? Write errors.modes ="
            " {'step': 'max'}, or 'min', in make_evaluators.",
        ),
    ],
)
def test_a_wrong_name_is_one_line_at_start(own, settings, line):
    with pytest.raises(UserError) as caught:
        build(functions=made(**own), **settings)
    assert line in str(caught.value)


def test_a_goal_of_neither_split_nor_evaluator_is_one_line_before_training(tmp_path):
    built = build(tmp_path / "run", functions=made(errors=Errors()), **{"checkpoint.best_metric": "erors/share"})
    line = (
        r"checkpoint\.best_metric='erors/share': 'erors' is neither a split \(test\) nor an evaluator \(errors\)\."
        r" Did you mean 'errors'\?"
    )
    with pytest.raises(UserError, match=line):
        framework.train(built)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (None, "make_evaluators returned None. It must return {name: function of the run}, e.g. {'digits': digits}."),
        ({"a": 3}, "'a' is 3, which cannot be called as evaluator(run)."),
        ({"a": lambda: 3}, "'a' is <lambda>(), which cannot be called as evaluator(run)."),
    ],
)
def test_a_wrong_return_of_make_evaluators_is_one_line(returned, line):
    with pytest.raises(UserError) as caught:
        build(functions={"make_evaluators": lambda cfg: returned})
    assert line in str(caught.value)


def test_modes_are_min_or_max():
    def odd(run):
        return Report()

    odd.modes = {"a": "least"}
    with pytest.raises(UserError, match=r"'odd' has modes=\{'a': 'least'\}; it must be \{scalar: 'min' or 'max'\}"):
        build(functions=made(odd=odd))


def test_a_goal_that_is_not_reported_is_one_line():
    def silent(run):
        return Report({"other": 1.0})

    silent.modes = {"share": "min"}
    built = build(functions=made(silent=silent), **{"checkpoint.best_metric": "silent/share"})
    with pytest.raises(UserError, match="evaluator 'silent' reports no scalar 'share', which checkpoint"):
        framework.evaluate(built)


class Workers:
    """Two workers, of which this process is one; `all_workers` gives the larger of both numbers."""

    is_local = False

    def __init__(self, is_chief, other):
        self.is_chief, self._others, self.sent = is_chief, iter(other), []

    def all_workers(self, value, most):
        assert most and 0 <= value < 2**24
        self.sent.append(value)
        return max(value, next(self._others))


@pytest.mark.parametrize("value", [0.1, -1e300, math.inf, -0.0, 5e-324])
def test_workers_take_the_bits_of_the_chief(value):
    chief = Workers(True, [0, 0, 0])
    assert reports._chief_value(chief, value) == value
    assert np.float64(reports._chief_value(Workers(False, chief.sent), 7.0)).tobytes() == np.float64(value).tobytes()


FILE = """
from framework.evaluators import Report
from tests.linear import get_config, make_data, make_loss, make_model, make_schedule

def make_evaluators(cfg):
    def broken(run):
        return Report({"a": 1 / 0})

    return {"broken": broken}
"""


def test_one_that_raises_is_one_line_with_its_name(tmp_path):
    (tmp_path / "x.py").write_text(FILE)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = launch.main(["launch.py", f"--config={tmp_path / 'x.py'}", f"--workdir={tmp_path / 'run'}"])
    line = said.getvalue().splitlines()[-1]
    assert status == 2 and line.startswith("error: evaluator 'broken': ")
    assert "x.py:7: broken: ZeroDivisionError: division by zero. The traceback is in " in line
    assert "in broken" in (tmp_path / "run" / "failure" / "traceback.txt").read_text()

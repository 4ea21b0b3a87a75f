"""Putting a run together: what it refuses, and what it leaves alone."""

import dataclasses
import time

import pytest

from framework import config, experiment, metrics, run
from framework.config import UserError
from framework.overrides import override

TINY = "tests/tiny.py"
GRAPH = {"train.compile": "graph"}


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "checkpoint.best_metric",
            "test/acuracy",
            "checkpoint.best_metric='test/acuracy': there is no metric 'acuracy'. Did you mean 'accuracy'?"
            " Metrics: loss, accuracy. Type e.g. --config.checkpoint.best_metric=test/loss.",
        ),
        (
            "early_stopping.metric",
            "test/f1",
            "early_stopping.metric='test/f1': there is no metric 'f1'."
            " Metrics: loss, accuracy. Type e.g. --config.early_stopping.metric=test/loss.",
        ),
    ],
)
def test_a_metric_that_does_not_exist_is_refused_before_training(tmp_path, key, value, message):
    assert refusal(lambda: run.build(TINY, {**GRAPH, key: value}, tmp_path / "run")) == message


@pytest.mark.parametrize("name", ["loss", "learning_rate", "gradient_norm", "step", "examples_per_second"])
def test_a_metric_must_not_hide_a_number_of_the_step(name):
    loaded = experiment.load(TINY)
    functions = {**loaded.functions, "make_metrics": lambda cfg: {name: metrics.Accuracy()}}
    loaded = dataclasses.replace(loaded, functions=functions)
    final = config.finalize(override(loaded.get_config(), GRAPH))
    assert refusal(lambda: run.assemble(loaded, final, None, time.monotonic())) == (
        f"make_metrics names a metric '{name}', which every step reports already. Give it another name."
    )


@pytest.mark.parametrize("of_workdir", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read: Expecting value: line 1 column 1 (char 0)."),
        ('{"seed": ', "cannot be read: Expecting value: line 1 column 10 (char 9)."),
        ("[]", "is not the config of a run."),
    ],
)
def test_a_damaged_config_json_is_named(tmp_path, content, message, of_workdir):
    (tmp_path / "config.json").write_text(content)
    assert refusal(lambda: run.build(TINY, GRAPH, tmp_path, of_workdir)) == (
        f"{tmp_path / 'config.json'} {message} Put it back, or use another --workdir."
    )


def test_a_name_that_is_too_long_for_a_folder(tmp_path):
    long = tmp_path / ("x" * 300)
    assert refusal(lambda: run.check_workdir(long)) == (
        f"--workdir={long} cannot be written: File name too long. Type a folder of yours, e.g. --workdir=runs/first."
    )


def test_building_leaves_nothing_on_disk(tmp_path):
    run.build(TINY, GRAPH, tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    first, again, other = (run.build(TINY, {**GRAPH, "seed": seed}, tmp_path / "run") for seed in (5, 5, 6))
    kernels = [built.model.layers[1].kernel.numpy() for built in (first, again, other)]
    assert kernels[0].tobytes() == kernels[1].tobytes()
    assert (kernels[0] != kernels[2]).any()
    assert first.data.at(0)["label"].numpy().tolist() != other.data.at(0)["label"].numpy().tolist()

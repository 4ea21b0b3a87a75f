"""framework/run/guards/learning.py: a loss that has not fallen, by a rule that blocks do not change."""

import dataclasses

import numpy as np
import pytest

from framework.run import loop
from framework.run.guards.learning import NotLearning
from framework.step.block import Block
from tests import small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"train.duration": "900 steps", "schedule.warmup": "50 steps"}
    return small.build(tmp_path_factory.mktemp("learning") / "run", **settings)


def told(run, losses, length=37, first=0):
    """What is said of losses that come in blocks of a length."""
    layout = run.train_block.layout
    rows = np.zeros((len(losses), layout.width))
    rows[:, layout.scalars.index("loss")] = losses
    guard = NotLearning(run, None)
    blocks = [Block(first + i, rows[i : i + length], layout) for i in range(0, len(losses), length)]
    return [line for block in blocks if (line := guard.look(block))]


@pytest.mark.parametrize("length", [1, 37, 100, 900])
def test_the_newest_hundred_steps_decide(run, length):
    """Warm-up of 50 and 200 steps: steps 151 to 250 are compared with the first, whatever stands before and after."""
    losses = np.full(900, 0.1)
    losses[0], losses[150:250] = 2.0, np.linspace(1.5, 2.5, 100)  # median 2
    (line,) = told(run, losses, length)
    assert line.startswith("the loss has not fallen: 2 at the first step, 2 in the median of steps 151 to 250. If it")
    losses[150:250] = np.linspace(1.3, 2.3, 100)  # median 1.8, below 1.9
    assert told(run, losses, length) == []


def test_a_first_loss_that_is_low_by_chance_is_no_measure(run):
    """Squared errors of batches of two, whose mean falls to a tenth; and the same without the fall."""
    noise = np.random.default_rng(5).chisquare(2, 300) / 2
    noise[0], fall = 0.1, np.geomspace(1, 0.1, 300)
    assert np.median((noise * fall)[150:250]) > 0.1
    assert told(run, noise * fall) == []
    begin, end = np.median(noise[:10]), np.median(noise[150:250])
    noise[150:250] *= begin / end
    wanted = f"the loss has not fallen: {begin:.4g} in the median of the first 10 steps, {begin:.4g} in the median of s"
    assert told(run, noise)[0].startswith(wanted)


def test_a_loss_that_diverges_has_not_fallen(run):
    losses = np.full(300, 1e6)
    losses[0], losses[200:220] = 1.0, np.inf
    assert "1 at the first step, 1e+06 in the median" in told(run, losses)[0]
    assert "inf in the median" in told(run, np.r_[1.0, np.full(299, np.nan)])[0]


@pytest.mark.parametrize("losses", [np.geomspace(2, 0.1, 300), np.full(300, -1.0), np.r_[np.nan, np.full(299, 5.0)]])
def test_what_falls_or_is_below_zero_or_began_broken_is_not_judged(run, losses):
    assert told(run, losses) == []


def test_a_short_run_is_judged_by_half_of_its_steps(tmp_path):
    run = small.build(tmp_path / "run", **{"train.duration": "20 steps", "schedule.warmup": "4 steps"})
    assert "2 in the median of steps 9 to 12." in told(run, np.full(20, 2.0), 5)[0]


def test_trained_weights_are_not_judged(tmp_path):
    loop.train(small.build(tmp_path / "first"))
    begun = small.build(tmp_path / "second", init_from=str(tmp_path / "first"))
    assert told(begun, np.full(10, 2.0)) == []
    resumed = small.build(tmp_path / "first", **{"train.duration": "900 steps"})
    resumed.state.step.assign(10)
    assert told(resumed, np.full(890, 2.0), first=10) == []


def test_a_step_of_ones_own_that_trains_several_models_is_not_judged(run, monkeypatch):
    """Losses of a GAN do not fall; and --mode=overfit and lr_find, which a warning would advise, refuse two models."""
    losses = np.full(300, 2.0)
    assert told(run, losses)[0].endswith(
        "learning_rate (--mode=lr_find draws the loss over it); --mode=overfit names what does not learn."
    )
    monkeypatch.setattr(type(run.state), "models", {"generator": None, "critic": None})
    assert told(run, losses)[0].endswith("If it should have, try another --config.schedule.learning_rate.")
    functions = {**run.experiment.functions, "make_step": None}
    monkeypatch.setattr(run, "experiment", dataclasses.replace(run.experiment, functions=functions))
    assert told(run, losses) == []


def test_a_run_of_a_rate_that_is_too_high_is_told(tmp_path, caplog):
    """Adam at a rate of 1,000 jumps about; at the rate of the experiment nothing is said."""
    settings = {"train.duration": "60 steps", "schedule.warmup": ""}
    loop.train(small.build(tmp_path / "high", **settings, **{"schedule.learning_rate": 1000.0}))
    assert [message for message in caplog.messages if message.startswith("the loss has not fallen")]
    caplog.clear()
    loop.train(small.build(tmp_path / "right", **settings, **{"schedule.learning_rate": 0.05}))
    assert not [message for message in caplog.messages if message.startswith("the loss has not fallen")]

"""framework/run/guards/spikes.py: a loss far above the recent ones, by a rule that blocks do not change."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from framework.data.batches import make_batches
from framework.run import loop
from framework.run.guards.spikes import Losses, Spikes
from framework.step.block import Block
from tests import small


def first_spike(losses):
    """The rule, in plain words: limits of every 64th step, each of the 256 losses before it."""
    finite = [(step, loss) for step, loss in enumerate(losses) if np.isfinite(loss)]
    for place, (step, loss) in enumerate(finite):
        end = place // 64 * 64
        before = sorted(value for _, value in finite[max(0, end - 256) : end])
        is_far = len(before) == 256 and loss > before[128] + max(5 * (before[-1] - before[128]), 0.1 * before[128])
        if is_far and any(before):
            return step
    return None


def found(losses, length):
    """The index of the first spike in losses that come in blocks of a length."""
    seen = Losses()
    for start in range(0, len(losses), length):
        index = seen.add(losses[start : start + length])
        if index is not None:
            return start + index
    return None


@pytest.mark.parametrize("length", [1, 7, 64, 100, 1000])
def test_the_rule_holds_whatever_the_blocks(length):
    rng = np.random.default_rng(0)
    for spike in (None, 100, 255, 256, 300, 511, 640, 999):
        losses = rng.lognormal(size=1000)
        losses[rng.integers(0, 1000, 20)] = [np.nan, np.inf] * 10
        if spike is not None:
            losses[spike] = 1000.0
        assert found(losses, length) == first_spike(losses)
    assert first_spike(losses) is not None


@pytest.mark.parametrize(
    "losses",
    [
        np.linspace(9, 2, 2000),  # what falls has no spike
        np.abs(np.random.default_rng(1).normal(size=20000)),
        np.random.default_rng(2).exponential(size=20000),
        np.append(np.full(500, 0.25), 0.25 + 2**-24),  # one full batch, whose loss has come to rest but for rounding
        np.append(np.zeros(500), 1e-3),  # the first example on the wrong side after many steps
        np.full(500, np.nan),
        np.zeros(0),
    ],
)
def test_healthy_losses_have_none(losses):
    assert found(losses, 50) is None


def blocks(run, losses, first=0):
    """Blocks of 50 steps with these losses, from step `first` on."""
    scalars = run.train_block.layout.scalars
    rows = np.zeros((len(losses), run.train_block.layout.width))
    rows[:, scalars.index("loss")] = losses
    return [Block(first + i, rows[i : i + 50], run.train_block.layout) for i in range(0, len(losses), 50)]


def told(run, losses, first=0):
    guard = Spikes(run, None)
    return [line for block in blocks(run, losses, first) if (line := guard.look(block))]


def test_the_warning_names_the_step_and_the_command(tmp_path):
    run = small.build(tmp_path / "a run", **{"train.duration": "900 steps"})
    losses = np.tile([1.0, 2.0], 200)
    losses[333] = 7.5
    assert told(run, losses, first=400) == [
        "step 734 has a loss of 7.5, far above those of the 256 steps before (median 2, largest 2). To see its examples"
        f" and gradients, type python launch.py --config={run.experiment.name} '--workdir={tmp_path / 'a run'}'"
        " --mode=replay --step=734 once the run has ended. If none of its examples is wrong, try"
        " --config.clip.name=global_norm or a lower --config.schedule.learning_rate."
    ]


def test_steps_of_the_warm_up_are_left_out(tmp_path):
    run = small.build(tmp_path, **{"train.duration": "900 steps", "schedule.warmup": "420 steps"})
    losses = np.tile([1.0, 2.0], 450)
    losses[[419, 600, 800]] = 20.0  # the first is in it, the second in the first 256 steps after it
    assert told(run, losses) == []  # with which the third is compared
    losses[600] = 2.0
    (line,) = told(run, losses)
    assert line.startswith("step 801 has a loss of 20,")


def heated(cfg, split):
    """Batches whose losses are multiplied by 400 in epoch 35: steps 351 to 360."""
    source = small.examples({}, cfg.seed)

    def transform(batch):
        heat = tf.where(batch["epoch"] == 35, 6.0, 0.0)
        return {name: batch[name] for name in batch if name not in ("epoch", "index")} | {"heat": heat}

    transform.needs = ("epoch", "index")
    return make_batches(source, cfg, training=split == "train", transform=transform)


def test_a_run_tells_it_once(tmp_path, caplog):
    settings = {"train.duration": "400 steps", "train.block_steps": 70, "log.every": "400 steps"}
    run = small.build(tmp_path, functions={"make_data": heated}, **settings)
    with caplog.at_level(logging.WARNING, "absl"):
        assert loop.train(run)["status"] == "finished"
    lines = [message for message in caplog.messages if "far above" in message]
    assert len(lines) == 1
    assert lines[0].startswith("step 351 has a loss of ")

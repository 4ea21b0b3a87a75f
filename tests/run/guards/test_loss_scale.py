"""framework/run/guards/loss_scale.py: steps that overflow at any loss scale are told before the run ends."""

import logging

import numpy as np
import pytest

from framework.errors import NonFiniteError
from framework.run import loop
from framework.run.guards.loss_scale import StuckScale
from framework.step.block import Block
from tests import small

DYNAMIC = {"loss_scale.name": "dynamic", "loss_scale.initial": 8.0, "train.block_steps": 4}
ADVICE = (
    "Try --config.train.precision=bfloat16, which needs no loss scale, or a lower --config.schedule.learning_rate;"
    " to see the step, type python launch.py --config={} --workdir={} --mode=replay --step={} --eager once the"
    " run has ended."
)


def told(run, skipped, scales):
    """The warnings of blocks of three steps; `skipped` and `scales` have a value a step."""
    layout = run.train_block.layout
    rows = np.zeros((len(skipped), layout.width))
    rows[:, layout.scalars.index("skipped")] = np.cumsum(skipped) + int(run.state.skipped)
    rows[:, layout.scalars.index("loss_scale")] = scales
    guard = StuckScale(run, None)
    return [line for i in range(0, len(rows), 3) if (line := guard.look(Block(i, rows[i : i + 3], layout)))]


@pytest.mark.parametrize("before", [0, 5])
def test_ten_in_a_row_or_one_at_the_floor(tmp_path, before):
    run = small.build(tmp_path, **DYNAMIC)
    run.state.skipped.assign(before)
    nine = [1] * 9 + [0]
    assert told(run, [0, *nine, *nine], [64.0] * 21) == []
    advice = ADVICE.format(run.experiment.name, tmp_path, 15)
    assert told(run, [0] + [1] * 3 + [0] + [1] * 11, [64.0] * 16) == [
        "10 steps in a row, up to step 15, were skipped because their gradients were not finite, the last one at a loss"
        f" scale of 64. {advice}"
    ]
    assert told(run, [0] * 30, [1.0] * 30) == []  # a floor at which all goes well
    assert told(run, [0] * 14 + [1, 0], [2.0] * 14 + [1.0, 1.0]) == [
        "step 15 was skipped although the loss scale is at its floor of 1, and the run ends after 20 such steps in a"
        f" row (loss_scale.patience). {advice}"
    ]


def test_a_run_without_a_dynamic_scale_is_left_alone(tmp_path):
    run = small.build(tmp_path, **{"loss_scale.name": "static"})
    rows = np.zeros((3, run.train_block.layout.width))
    assert StuckScale(run, None).look(Block(0, rows, run.train_block.layout)) == ""
    assert StuckScale(small.build(tmp_path), None).look(Block(0, rows, None)) == ""


def test_a_run_warns_before_its_patience_ends_it(tmp_path, caplog):
    heat = {(step, 0): small.HOT for step in range(2, 10)}
    run = small.build(tmp_path, heat, **DYNAMIC, **{"loss_scale.patience": 4})
    with caplog.at_level(logging.WARNING, "absl"), pytest.raises(NonFiniteError) as error:
        loop.train(run)
    assert str(error.value).startswith("step 9: 4 updates in a row were not finite")
    lines = [message for message in caplog.messages if "was skipped" in message]
    assert len(lines) == 1
    assert lines[0].startswith(  # 8, 4, 2, 1: at steps 3, 4, 5 and 6
        "step 6 was skipped although the loss scale is at its floor of 1, and the run ends after 4 such steps in a row"
    )

"""Warns if no loss scale helps, before `loss_scale.patience` ends the run and also if it never does.

StuckScale(run, progress).look(block)   # "step 31 was skipped although the loss scale is at its floor of 1 …"
"""

import numpy as np

from framework.run.guards.spikes import replay_command
from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block

IN_A_ROW = 10  # steps skipped in a row: of the default scale of 2^15, 32 is left


class StuckScale:
    """Rule, for a dynamic loss scale: a step was skipped at the floor of the scale, or 10 steps in a row were skipped.

    A scale that never grows comes to its floor, because each skipped step makes it smaller.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run
        scale = run.state.loss_scale
        self._is_dynamic = scale is not None and scale.is_dynamic
        if self._is_dynamic:
            scalars = run.train_block.layout.scalars
            self._columns = [scalars.index("skipped"), scalars.index("loss_scale")]
            self._skipped, self._in_row = int(run.state.skipped), 0

    def look(self, block: Block) -> str:
        """Returns the warning; '' while there is none."""
        if not self._is_dynamic or not len(block.rows):
            return ""
        skipped, scales = block.rows[:, self._columns].T  # [steps] each: steps skipped so far, scale of the step
        before, self._skipped = self._skipped, int(skipped[-1])
        if self._skipped == before:
            self._in_row = 0
            return ""
        for index, is_skipped in enumerate(np.diff(skipped, prepend=before) > 0):
            self._in_row = self._in_row + 1 if is_skipped else 0
            is_at_floor = scales[index] <= self._run.resolved.loss_scale.floor
            if is_skipped and (is_at_floor or self._in_row == IN_A_ROW):
                return self._warning(block.first_step + index + 1, float(scales[index]), is_at_floor)
        return ""

    def _warning(self, step: int, scale: float, is_at_floor: bool) -> str:
        settings = self._run.resolved.loss_scale
        what = (
            f"step {step} was skipped although the loss scale is at its floor of {settings.floor:g}, and the run ends"
            f" after {settings.patience} such steps in a row (loss_scale.patience)"
            if is_at_floor
            else f"{IN_A_ROW} steps in a row, up to step {step}, were skipped because their gradients were not finite,"
            f" the last one at a loss scale of {scale:g}"
        )
        return (
            f"{what}. Try --config.train.precision=bfloat16, which needs no loss scale, or a lower"
            f" --config.schedule.learning_rate; to see the step, type {replay_command(self._run, step)} --eager"
            " once the run has ended."
        )

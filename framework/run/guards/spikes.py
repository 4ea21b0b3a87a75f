"""Warns of a loss far above those of the steps before it.

Spikes(run, progress).look(block)       # "step 812 has a loss of 9.1, far above … --mode=replay --step=812"
"""

import numpy as np

from framework.run import command
from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block

WINDOW = 256  # steps with which a loss is compared
RATIO = 5.0  # of its distance from their median to that of the largest of them
LEAST = 0.1  # of the median: a smaller distance is no spike
_STRIDE = 64  # steps after which the limit is computed anew


class Losses:
    """The finite losses of the newest steps, and the limit above which the next one is a spike.

    Rule: a loss is a spike if it is more than 5 times as far above the median of the 256 losses before it as the
    largest of them is, and at least 10 % of the median above it: losses of one full batch may differ by rounding
    alone. A multiple of the median absolute deviation is no limit, because losses of small batches have long tails: of
    53,000 steps of six healthy nets on digits, in batches of 1 to 128, 5,614 are more than 10 deviations above the
    median, and at most 2 are spikes by this rule. The limit holds for 64 steps, whatever blocks these come in, and
    there is none before 256 finite losses, nor while these are all 0, as those of a hinge loss may be.

    Attributes:
      median, largest: of the losses that the limit is made of.
    """

    def __init__(self) -> None:
        self._newest = np.zeros(WINDOW)
        self._seen = 0
        self.median = self.largest = 0.0
        self._limit = np.inf

    def add(self, losses: np.ndarray) -> int | None:
        """Takes the losses of steps, in order; returns the index of the first spike among them."""
        is_finite = np.isfinite(losses)
        places = None if is_finite.all() else np.flatnonzero(is_finite)
        losses = losses if places is None else losses[places]
        start = 0
        while start < len(losses):
            values = losses[start : start + _STRIDE - self._seen % _STRIDE]
            if values.max() > self._limit:
                index = start + int((values > self._limit).argmax())
                return index if places is None else int(places[index])
            self._take(values)
            start += len(values)
        return None

    def _take(self, values: np.ndarray) -> None:
        """Takes losses that do not go past the next multiple of the stride."""
        place = self._seen % WINDOW
        self._newest[place : place + len(values)] = values
        self._seen += len(values)
        if self._seen % _STRIDE == 0 and self._seen >= WINDOW:
            self.median = float(np.partition(self._newest, WINDOW // 2)[WINDOW // 2])
            self.largest = float(self._newest.max())
            distance = max(RATIO * (self.largest - self.median), LEAST * abs(self.median))
            self._limit = self.median + distance if self._newest.any() else np.inf


class Spikes:
    """Watches the losses of all steps after the warm-up of the learning rate; see `Losses` for the rule."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run
        self._column = run.train_block.layout.scalars.index("loss")
        self._warmup = int(run.resolved.schedule.warmup)
        self._losses = Losses()

    def look(self, block: Block) -> str:
        """Returns the warning; '' while there is none."""
        first = min(max(0, self._warmup - block.first_step), len(block.rows))
        losses = block.rows[first:, self._column].astype(np.float64)
        index = self._losses.add(losses)
        if index is None:
            return ""
        step = block.first_step + first + index + 1
        return (
            f"step {step} has a loss of {losses[index]:.4g}, far above those of the {WINDOW} steps before (median"
            f" {self._losses.median:.4g}, largest {self._losses.largest:.4g}). To see its examples and gradients, type"
            f" {replay_command(self._run, step)} once the run has ended. If none of its examples is wrong, try"
            " --config.clip.name=global_norm or a lower --config.schedule.learning_rate."
        )


def replay_command(run: Run, step: int) -> str:
    """Returns the command that shows a step of a run."""
    flags = [f"--config={run.experiment.name}", f"--workdir={run.typed_workdir}", "--mode=replay", f"--step={step}"]
    return command.typed(flags)

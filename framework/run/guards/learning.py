"""Warns of a loss that has not fallen since the first step.

NotLearning(run, progress).look(block)       # "the loss has not fallen: at the first step 2.35, in the median of …"
"""

import numpy as np

from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block

STEPS = 200  # after the warm-up; of a shorter run half of them
LEAST = 0.05  # share of the first loss by which it should have fallen
_NOISY = 0.1  # of the median: the half of the interquartile range above which one loss says little
_FAR = 10.0  # times the first loss, which is more than noise
_MODES = " (--mode=lr_find draws the loss over it); --mode=overfit names what does not learn"
_FIRST = 10  # steps that begin a noisy run


class NotLearning:
    """Rule: after 200 steps, the median loss of the newest half of them is above 95 % of that of the first step.

    The steps are counted from the end of the warm-up, and of a run of less than 400 it is half of them. Where losses
    are noisy, as those of small batches are, a first loss may be low by chance: the median of the first 10 steps stands
    for it if that is higher, unless the newest ones are above ten times the first. The first loss is that of an
    untrained model, so a run that begins with trained weights is not judged, nor one that is resumed; nor is a loss
    that was not above 0, nor that of a step of one's own that trains several models, which may work against each other.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self._column = run.train_block.layout.scalars.index("loss")
        warmup = int(run.resolved.schedule.warmup)
        self._count = max(2, min(STEPS, (run.total_steps - warmup) // 2))
        self._end = warmup + self._count
        is_new = not (run.config.resume_from or run.config.init_from) and int(run.state.step) == 0
        self._first: float | None = None
        self._losses: list[np.ndarray] = []
        several = len(run.state.models) > 1
        self._is_done = not is_new or (several and "make_step" in run.experiment.functions)
        self._advice = "" if several else _MODES  # which several models refuse

    def look(self, block: Block) -> str:
        """Returns the warning; '' while there is none."""
        if self._is_done or not len(block.rows):
            return ""
        losses = block.rows[:, self._column].astype(np.float64)
        if self._first is None:
            self._first = float(losses[0])
        self._losses.append(losses)
        step = block.first_step + len(block.rows)
        if step < self._end:
            return ""
        self._is_done = True
        losses = np.concatenate(self._losses)[: self._end]
        self._losses = []
        newest = losses[-(self._count // 2) :]
        finite = newest[np.isfinite(newest)]
        low, median, high = np.quantile(finite, [0.25, 0.5, 0.75]) if len(finite) else [np.inf] * 3
        first, when = self._first, "at the first step"
        begin = losses[:_FIRST][np.isfinite(losses[:_FIRST])]
        is_noisy = len(finite) and (high - low) / 2 > _NOISY * median and median < _FAR * first
        if is_noisy and len(begin) and np.median(begin) > first:
            first, when = float(np.median(begin)), f"in the median of the first {len(begin)} steps"
        if not (np.isfinite(first) and self._first > 0 and median > (1 - LEAST) * first):
            return ""
        return (
            f"the loss has not fallen: {first:.4g} {when}, {median:.4g} in the median of steps"
            f" {self._end - len(newest) + 1} to {self._end}. If it should have, try another"
            f" --config.schedule.learning_rate{self._advice}."
        )

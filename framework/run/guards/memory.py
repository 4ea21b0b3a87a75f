"""Warns if the memory of the process grows so fast that the run would not reach its end.

Leak(run, progress).look(block)         # "memory grows by 31 MB every 100 steps, and the 4.2 GB that are free …"
"""

import numpy as np

from framework.distribute.memory import free_memory, own_memory
from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block

FEWEST = 32  # samples before anything is said
_EVEN = 0.5  # of the mean growth from one quarter to the next: the least growth of a leak


class Growth:
    """Samples of the memory of a process, and how fast it grows.

    A sample is taken at each lap. Once there are 64, every other one is dropped, and from then on half as many laps
    give one. So the newest half of the samples spans the second half of the time, without the first evaluations and
    saves, whose buffers stay.
    """

    def __init__(self) -> None:
        self._samples: list[tuple[int, int]] = []
        self._laps, self._stride = 0, 1

    def is_due(self) -> bool:
        """Counts a lap, and returns whether it gives a sample."""
        self._laps += 1
        return self._laps % self._stride == 0

    def add(self, step: int, size: int) -> None:
        """Takes a sample: bytes at a step."""
        self._samples.append((step, size))
        if len(self._samples) == 2 * FEWEST:
            self._samples = self._samples[1::2]
            self._stride *= 2

    def slope(self) -> float:
        """Returns the growth in bytes a step, by least squares over the newest half of the samples.

        It is 0 if the growth is not steady. Steady is what grows from each quarter of these samples to the next, by at
        least half of the mean growth: not a buffer that was allocated once, nor memory that comes and goes.
        """
        if len(self._samples) < FEWEST:
            return 0.0
        steps, sizes = np.array(self._samples[len(self._samples) // 2 :], np.float64).T
        growth = np.diff([quarter.mean() for quarter in np.array_split(sizes, 4)])
        if growth.mean() <= 0 or growth.min() < _EVEN * growth.mean():
            return 0.0
        steps -= steps.mean()
        return float(steps @ sizes / (steps @ steps))


class Leak:
    """Rule: the growth of `Growth`, sampled at rows of the log, would fill what is free before the end of the run."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._every, self._total = int(run.resolved.log.every), run.total_steps
        self._growth = Growth()

    def look(self, block: Block) -> str:
        """Returns the warning; '' while there is none."""
        step = block.first_step + len(block.rows)
        if not self._every or step % self._every or not self._growth.is_due() or (size := own_memory()) is None:
            return ""
        self._growth.add(step, size)
        slope = self._growth.slope()
        free = free_memory() if slope > 0 else None
        if free is None or slope * (self._total - step) <= free:
            return ""
        return (
            f"memory grows by {slope * self._every / 1e6:,.3g} MB every {self._every} steps, and the"
            f" {free / 1e9:,.1f} GB that are free would be full at step {step + int(free / slope)} of {self._total}."
            " Look for what hooks, evaluators, writers and the source of the data keep: lists that grow, tf.function"
            " made anew at each call, caches without a limit. Meanwhile, stop the run from time to time: the same"
            " command goes on where it was."
        )

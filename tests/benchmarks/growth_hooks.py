"""What logging, curves and histograms add to a step: one run, with its hooks at work and idle by turns.

    cost = measure("mlp", repetitions=9)
    cost.line()                          # a row of Markdown, under HEAD

Where a step takes long, everything happens ten times as often and the difference is divided by ten: a turn would have
to last for an epoch otherwise.
"""

import dataclasses
import statistics
import sys

import numpy as np

from tests.benchmarks.ratios import interval
from tests.benchmarks.turns import ROOT, Process

HEAD = [
    "| workload | compile | without, ms a step | with / without [95 %] | as often | cost at default settings [95 %] |",
    "|---" * 6 + "|",
]
# As train.compile=auto chooses for a long run; given, so that both sides are compiled in the same way.
COMPILE = {"mlp": "xla", "cnn": "graph", "transformer": "xla", "two_tower": "xla"}
# Steps of a turn: whole epochs of 469 and 977 steps, or of a tenth of 79 and 313.
STEPS = {"mlp": 4690, "cnn": 40, "transformer": 31, "two_tower": 1954}
OFTEN = {
    "cnn": (10, "log.every=10 steps,log.histograms_every=8 steps"),
    "transformer": (10, "log.every=10 steps,log.histograms_every=31 steps"),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of the hooks on one workload.

    Attributes:
      often: how many times as often as by default they were at work.
      on, off: milliseconds of a step with and without them, [repetitions].
    """

    workload: str
    mode: str
    often: int
    on: list[float]
    off: list[float]

    def percent(self) -> tuple[float, float, float]:
        """What they add to a step at default settings: median, and the interval of 95 %."""
        ratios = np.array(self.on) / np.array(self.off)
        return tuple(100 * (ratio - 1) / self.often for ratio in (float(np.median(ratios)), *interval(ratios)))

    def line(self) -> str:
        """A row of the table."""
        ratios = np.array(self.on) / np.array(self.off)
        low, high = interval(ratios)
        median, least, most = self.percent()
        cells = [self.workload, self.mode, f"{statistics.median(self.off):.3f}"]
        cells += [f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}]", f"{self.often} x"]
        return f"| {' | '.join(cells)} | {median:.1f} % [{least:.1f}, {most:.1f}] |"


def is_on(turn: int) -> bool:
    """Whether hooks are at work in a turn, counted from 0: on, off, off, on, and so on after the first."""
    return turn % 4 in (1, 2)


def measure(workload: str, repetitions: int) -> Cost:
    """Both by turns (`peers/ours_by_turns.py`); the first repetition is not counted."""
    often, settings = OFTEN.get(workload, (1, ""))
    option = ",".join(["settings:train.compile=" + COMPILE[workload], *([settings] if settings else [])])
    script = str(ROOT / "tests" / "benchmarks" / "peers" / "ours_by_turns.py")
    took: dict[bool, list[float]] = {True: [], False: []}
    with Process([sys.executable, script, f"--workload={workload}", f"--option={option}"]) as process:
        process.ready()
        for turn in range(2 * (repetitions + 1)):
            took[is_on(turn)].append(process.run(STEPS[workload]))
    return Cost(workload, COMPILE[workload], often, took[True][1:], took[False][1:])

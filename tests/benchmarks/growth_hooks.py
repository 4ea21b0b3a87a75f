"""What logging, curves, histograms and progress add to a step: `peers/ours.py` with and without them, by turns.

    cost = measure("mlp", repetitions=9)
    cost.line()                          # a row of Markdown, under HEAD

Where a step takes long, everything happens ten times as often and the difference is divided by ten: a turn would have
to last for an epoch otherwise.
"""

import contextlib
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
COMPILE = {"mlp": "xla", "cnn": "graph", "transformer": "graph", "two_tower": "xla"}
# Steps of a turn: whole epochs of 469 and 977 steps, or of a tenth of 79 and 313.
STEPS = {"mlp": 4690, "cnn": 40, "transformer": 31, "two_tower": 1954}
OFTEN = {
    "cnn": (10, "log.every=10 steps,log.histograms_every=8 steps"),
    "transformer": (10, "log.every=10 steps,log.histograms_every=31 steps"),
}
NONE = "log.every=1000000000 steps,log.histograms_every=,log.images=0"


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


def start(workload: str, settings: str) -> Process:
    """Our process, paused between turns."""
    settings = ",".join(["settings:train.compile=" + COMPILE[workload], *([settings] if settings else [])])
    script = str(ROOT / "tests" / "benchmarks" / "peers" / "ours.py")
    return Process([sys.executable, script, f"--workload={workload}", f"--option={settings}"])


def measure(workload: str, repetitions: int) -> Cost:
    """Both sides by turns, in an order that is reversed from one repetition to the next; the first is not counted."""
    often, settings = OFTEN.get(workload, (1, ""))
    took: dict[str, list[float]] = {"on": [], "off": []}
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(start(workload, text)) for name, text in (("on", settings), ("off", NONE))}
        for process in sides.values():
            process.ready()
        for repetition in range(repetitions + 1):
            for name in took if repetition % 2 else reversed(took):
                milliseconds = sides[name].run(STEPS[workload])
                if repetition:
                    took[name].append(milliseconds)
    return Cost(workload, COMPILE[workload], often, took["on"], took["off"])

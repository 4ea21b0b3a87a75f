"""Training by buckets of length, over training on batches of one padded shape: tokens/s and padding.

    python tests/benchmarks/bucketed_lengths.py --data_dir=DIR                     # DIR as translate_transformer says
    python tests/benchmarks/bucketed_lengths.py --data_dir=DIR --precision=bfloat16 --repetitions=7

Both sides are `experiments/translate_transformer.py` in one process, with the same budget of places a batch; by turns,
each turn some steps of one side, in an order that is reversed from one repetition to the next. A token is a place that
is no padding, of source and target. The ratio is that of a repetition: the median, with a bootstrap interval of 95 %.
"""

import argparse
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

import framework
from framework.data import bucketed
from framework.data.text import PADDING
from tests.benchmarks.compare import machine
from tests.benchmarks.ratios import interval

EXPERIMENT = Path(__file__).parents[2] / "experiments/translate_transformer.py"
SIDES = {"buckets": 18, "one shape": 1}


class Side:
    """A run that takes steps, and counts tokens and places."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.tokens = self.places = 0

    def steps(self, count: int) -> float:
        """Takes steps; returns tokens/s."""
        first, before = int(self.run.state.step), self.tokens
        start = time.perf_counter()
        for _ in range(count):
            self.run.train_block(1)
        seconds = time.perf_counter() - start
        for step in range(first, first + count):
            batch = self.run.data.at(step)
            for field in ("source", "target"):
                ids = batch[field].numpy()
                self.tokens += int(np.count_nonzero(ids != PADDING))
                self.places += ids.size
        return (self.tokens - before) / seconds

    def warm_up(self, least: int) -> None:
        """Takes steps until each shape was met, and traced, but at least `least` steps."""
        members = range(len(bucketed.members_of(self.run.data)))
        turns = [bucketed.bucket_at(self.run.data, step) for step in range(self.run.data.steps_per_epoch)]
        self.steps(max(least, *(turns.index(member) + 1 for member in members)))


def rows(rates: Mapping[str, Sequence[float]], padding: Mapping[str, float]) -> list[str]:
    """Returns the table of {side: tokens/s of each repetition} and {side: share of padding}, in Markdown."""
    lines = ["| | tokens/s: median (least to most) | padding | over one shape [95 %] |", "|---|---|---|---|"]
    for name, values in rates.items():
        ratios = np.array(values) / np.array(rates["one shape"])
        low, high = interval(ratios)
        ratio = "" if name == "one shape" else f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]"
        cells = [name, f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"]
        lines.append(f"| {' | '.join([*cells, f'{padding[name]:.1%}', ratio])} |")
    return lines


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """Trains both sides by turns and returns the table."""
    sides = {}
    for name, buckets in SIDES.items():
        overrides = {"data.dir": options.data_dir, "data.buckets": buckets, "train.precision": options.precision}
        sides[name] = Side(framework.build(str(EXPERIMENT), overrides, folder / name.replace(" ", "_")))
        sides[name].warm_up(options.warm_up)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(options.repetitions):
        for name in sides if repetition % 2 else reversed(sides):
            rates[name].append(sides[name].steps(options.steps))
    return rows(rates, {name: 1 - side.tokens / side.places for name, side in sides.items()})


def main() -> None:
    """Prints the machine and a table."""
    parser = argparse.ArgumentParser(description="Tokens/s by buckets of length over those of one padded shape.")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm_up", type=int, default=20, help="least steps before the first that is timed")
    options = parser.parse_args()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "tf-keras", "numpy"))
    print(machine(), versions, sep="\n", end="\n\n")
    with tempfile.TemporaryDirectory(prefix="buckets-") as folder:
        print("\n".join(measure(Path(folder), options)))


if __name__ == "__main__":
    main()

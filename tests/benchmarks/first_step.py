"""How long until the first step: from the start of the process to the end of the first training step of
`experiments/mnist_mlp.py`, as `make run` starts it, over that of a bare script of the same work.

    python tests/benchmarks/first_step.py
    python tests/benchmarks/first_step.py --modes=auto --repetitions=7

Each start is a process of its own, ended once it has said that its first step is made. In a repetition all have one
start, in an order that is reversed from one to the next; the first start of each is not counted, after which files are
in memory. The ratio is that of a repetition: the median, with a bootstrap interval of 95 %.
"""

import argparse
import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from framework.data.sets.mnist import load_mnist
from tests.benchmarks.compare import machine
from tests.benchmarks.ratios import interval

ROOT = Path(__file__).resolve().parents[2]
BARE = "bare"
SAID = "first step"
MODES = ("auto", "graph", "xla")


def seconds_to(said: str, command: Sequence[str]) -> float:
    """From the start of a process to the first line with `said` in it; the process is ended then.

    Raises:
      RuntimeError: it ends without such a line.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    try:
        for line in process.stdout:
            if said in line:
                return time.perf_counter() - start
            lines.append(line.strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise RuntimeError(f"{' '.join(command)} ended without '{said}': {lines[-1] if lines else 'it said nothing'}")


def commands(modes: Sequence[str], data: Path, folder: Path) -> dict[str, list[str]]:
    """{name: command} of all sides.

    Args:
      modes: values of train.compile.
      data: folder with the IDX files.
      folder: where runs go.
    """
    ours = [sys.executable, "launch.py", "--config=experiments/mnist_mlp.py", "--mode=train"]
    found = {BARE: [sys.executable, "tests/benchmarks/bare_mnist.py", f"--folder={data}"]}
    for mode in modes:
        typed = [] if mode == "auto" else [f"--config.train.compile={mode}"]
        found[mode] = [*ours, f"--workdir={folder / mode}", *typed]
    return found


def rows(took: Mapping[str, Sequence[float]]) -> list[str]:
    """The table of {name: seconds of each repetition}, in Markdown."""
    lines = ["| | seconds: median (least to most) | over bare [95 %] |", "|---|---|---|"]
    for name, seconds in took.items():
        cells = [f"`{name}`", f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"]
        ratios = np.array(seconds) / np.array(took[BARE])
        low, high = interval(ratios)
        cells.append("" if name == BARE else f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def measure(repetitions: int, modes: Sequence[str], data: Path) -> dict[str, list[float]]:
    """{name: seconds of each repetition}."""
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="first-step-") as place:
        for repetition in range(repetitions + 1):  # the first is not counted
            sides = commands(modes, data, Path(place, str(repetition)))
            for name in sides if repetition % 2 else reversed(sides):
                seconds = seconds_to(SAID, sides[name])
                if repetition:
                    took.setdefault(name, []).append(seconds)
    return {name: took[name] for name in (BARE, *modes)}


def main() -> None:
    """Prints the machine and a table."""
    parser = argparse.ArgumentParser(description="Time to the first step over that of a bare script.")
    parser.add_argument("--modes", default="auto,xla", help=f"values of train.compile: {','.join(MODES)}")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    modes = options.modes.split(",")
    if unknown := set(modes) - set(MODES):
        parser.error(f"--modes: there is no {', '.join(sorted(unknown))}")
    load_mnist("mnist", "train")  # leaves the files in the cache
    data = Path(os.environ.get("FRAMEWORK_CACHE", "~/.cache/tf-research-framework")).expanduser() / "mnist"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "tf-keras", "numpy"))
    print(machine(), versions, sep="\n", end="\n\n")
    print("\n".join(rows(measure(options.repetitions, modes, data))))


if __name__ == "__main__":
    main()

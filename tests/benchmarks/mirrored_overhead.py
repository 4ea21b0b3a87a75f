"""Step time of `mirrored` over `one_device`, in one process, in turns.

    python tests/benchmarks/mirrored_overhead.py                          # mirrored with one device: what the way costs
    python tests/benchmarks/mirrored_overhead.py --devices=2              # two virtual ones share the same cores

ResNet-20 (graph) and the MNIST net (graph and XLA), batch 128, built by `framework.build`. A repetition times a block
of steps of each side, one right after the other, in an order that turns. The ratio is the median of the repetitions'
ratios, with a bootstrap interval of 95 %: of the clock, and of our own processor time, which other processes hardly
change.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

import framework
from framework.run.environment import environment
from framework.run.run import Run
from tests.benchmarks.ratios import interval

WORKLOADS = {
    "cnn-graph": ("tests/benchmarks/workloads/cnn.py", 3, {"train.compile": "graph"}),
    "mlp-graph": ("tests/tiny.py", 200, {"train.compile": "graph"}),
    "mlp-xla": ("tests/tiny.py", 200, {"train.compile": "xla"}),
}
QUIET = {"train.duration": "1000000 steps", "log.every": "1000000 steps", "log.histograms_every": "", "eval.every": ""}
QUIET |= {"log.images": 0, "checkpoint.every": "", "checkpoint.best_metric": ""}


def build(workload: str, devices: int) -> tuple[Run, int]:
    """A run and how many steps of it are timed; 0 devices are `one_device`."""
    name, steps, settings = WORKLOADS[workload]
    settings = {**QUIET, **settings, "train.block_steps": steps}
    if devices:
        settings |= {"runtime.strategy": "mirrored", "runtime.virtual_devices": devices}
    return framework.build(name, settings, "nowhere"), steps


def seconds(run: Run, steps: int) -> np.ndarray:
    """Of the clock, and of our processor time, for one step."""
    wall, own = time.perf_counter(), time.process_time()
    run.train_block(steps)
    return np.array([time.perf_counter() - wall, time.process_time() - own]) / steps


def shown(times: list[float]) -> str:
    """Median and range, in ms."""
    return f"{1e3 * statistics.median(times):.3f} ({1e3 * min(times):.3f} to {1e3 * max(times):.3f})"


def measure(workload: str, devices: int, repetitions: int) -> None:
    """Prints two rows of the table."""
    many, steps = build(workload, devices)  # first: it makes the virtual devices
    one, _ = build(workload, 0)
    for run in (one, many):
        for _ in range(2):  # compiles; and what only a first call does
            run.train_block(steps)
    took = []
    for repetition in range(repetitions):
        sides = [(0, one), (1, many)]
        pair = {side: seconds(run, steps) for side, run in (sides if repetition % 2 else reversed(sides))}
        took.append([pair[0], pair[1]])
    times = np.array(took)  # [repetitions, side, clock]
    for clock, name in enumerate(("clock", "processor")):
        ratios = times[:, 1, clock] / times[:, 0, clock]
        low, high = interval(ratios)
        sides = " | ".join(shown(times[:, side, clock].tolist()) for side in (0, 1))
        print(
            f"| {workload} | {devices} | {name} | {sides} | {np.median(ratios):.3f} [{low:.3f}, {high:.3f}] |",
            flush=True,
        )


def main() -> None:
    """Prints the machine and a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    facts = environment()
    versions = ", ".join(f"{name} {facts['packages'][name]}" for name in ("tensorflow", "tf-keras", "numpy"))
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}, Python {facts['python']}, {versions}")
    print(f"{options.repetitions} repetitions; load of the machine at the start {os.getloadavg()[0]:.1f}")
    print("| workload | devices | time | one_device, ms a step | mirrored, ms a step | ratio |")
    print("|---|---|---|---|---|---|")
    for workload in options.workloads:
        measure(workload, options.devices, options.repetitions)


if __name__ == "__main__":
    main()

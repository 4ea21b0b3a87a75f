"""What pruning costs: a training step with masks that are not due, and the step in which they are made, beside without.

    python tests/benchmarks/pruning_cost.py
    python tests/benchmarks/pruning_cost.py --workloads=mlp --modes=graph --repetitions=11

Whole steps of the training block, by turns: `dense` without pruning; `masked` with masks of all kernels, none of which
is due; `made` with masks that are made after every update. It prints milliseconds of processor time of a step, medians,
and ratios to `dense`, medians of those of neighbouring turns, with bootstrap intervals of 95 %.
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
import tensorflow as tf

import framework
from framework.run.run import Run
from tests.benchmarks.compare import machine
from tests.benchmarks.ratios import interval

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 0.5  # of a turn
LONG = {"train.duration": "1000000 steps", "train.block_steps": 1000}
ALWAYS = {"prune.begin": "1 step", "prune.end": "999999 steps", "prune.every": "1 step"}
SIDES = {
    "dense": {},
    "masked": {"prune.sparsity": 0.8, "prune.begin": "900000 steps", "prune.end": "999999 steps"},
    "made": {"prune.sparsity": 0.8, **ALWAYS},
}


def build(workload: str, mode: str, side: str) -> Run:
    """Returns the untrained run of one side."""
    file = ROOT / "tests" / "benchmarks" / "workloads" / f"{workload}.py"
    return framework.build(str(file), {**LONG, **SIDES[side], "train.compile": mode}, "nowhere")


def milliseconds(run: Run, count: int) -> float:
    """Returns those of processor time of one of `count` steps, in one call."""
    begin = time.process_time()
    run.train_block(count)
    return 1e3 * (time.process_time() - begin) / count


def main() -> None:
    """Prints a row for each workload and mode."""
    parser = argparse.ArgumentParser(description="What pruning costs a training step.")
    parser.add_argument("--workloads", default="mlp,transformer")
    parser.add_argument("--modes", default="graph,xla")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    print(f"{machine()}; TensorFlow {tf.__version__}\n")
    heads = ["dense, ms", "masked, ms", "made, ms", "masked / dense [95 %]", "made / dense [95 %]"]
    print(f"| workload | mode | pruned weights | {' | '.join(heads)} |\n" + "|---" * 8 + "|")
    for workload in options.workloads.split(","):
        for mode in options.modes.split(","):
            runs = {side: build(workload, mode, side) for side in SIDES}
            for run in runs.values():
                run.train_block(1)
            count = max(1, min(1000, int(1e3 * SECONDS / milliseconds(runs["dense"], 5))))
            turns: dict[str, list[float]] = {side: [] for side in SIDES}
            for repetition in range(options.repetitions):
                for side in sorted(SIDES, reverse=bool(repetition % 2)):
                    turns[side].append(milliseconds(runs[side], count))
            pruned = sum(mask.shape.num_elements() for mask in runs["masked"].state.prune.masks.values())
            cells = [workload, mode, f"{pruned:,}", *(f"{statistics.median(turns[side]):.3f}" for side in SIDES)]
            for side in ("masked", "made"):
                ratios = np.array(turns[side]) / np.array(turns["dense"])
                low, high = interval(ratios)
                cells.append(f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}]")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""What an update costs with the average of the weights: as ops for each variable, and as one program of XLA.

    python tests/benchmarks/update_cost.py
    python tests/benchmarks/update_cost.py --workloads=cnn --repetitions=9

Optimizer, masks of a step that does not count and `ema.decay`, without the step around them, on made-up gradients; both
sides write the same variables, by turns. `ops` is what a graph has; `program` what `train.compile=xla_update` has.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

import framework
from framework import paths
from framework.compile import jit
from tests.benchmarks.compare import machine
from tests.benchmarks.ratios import interval

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = ("mlp", "cnn", "two_tower", "transformer")
SECONDS = 0.3  # of a turn


def updates(workload: str) -> tuple[dict[str, Callable[[], None]], int, int]:
    """{side: one update}, how many variables and how many weights there are."""
    config = ROOT / "tests" / "benchmarks" / "workloads" / f"{workload}.py"
    run = framework.build(str(config), {"ema.decay": 0.999}, "nowhere")
    optimizer, average = run.state.optimizers["model"], run.state.ema
    trained = paths.trainable(run.model)
    gradients = {path: 1e-3 * tf.random.normal(weights.shape) for path, weights in trained.items()}
    yes, count = tf.constant(True), tf.constant(10, tf.int64)

    def ops(allowed: tf.Tensor) -> None:
        def do() -> tf.Tensor:
            optimizer.apply(gradients)
            average.after_update(count, count)
            return tf.zeros([])

        tf.cond(allowed, do, lambda: tf.zeros([]))

    def program(gradients: dict[str, tf.Tensor], allowed: tf.Tensor) -> None:
        optimizer.apply(gradients, allowed)
        average.after_update(count, count, allowed)

    inner = jit(program)
    by_ops, by_program = (tf.function(fn, autograph=False) for fn in (ops, lambda allowed: inner(gradients, allowed)))
    sides = {"ops": lambda: by_ops(yes), "program": lambda: by_program(yes)}
    return sides, len(trained), sum(weights.shape.num_elements() for weights in trained.values())


def milliseconds(update: Callable[[], None], count: int) -> float:
    """Of one of `count` updates."""
    begin = time.perf_counter()
    for _ in range(count):
        update()
    return 1e3 * (time.perf_counter() - begin) / count


def main() -> None:
    """Prints a row for each workload."""
    parser = argparse.ArgumentParser(description="What an update costs as ops and as a program.")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    print(f"{machine()}; TensorFlow {tf.__version__}\n")
    print("| workload | variables | weights | ops, ms | program, ms | program / ops [95 %] |\n" + "|---" * 6 + "|")
    for workload in options.workloads.split(","):
        sides, variables, weights = updates(workload)
        counts = {}
        for side, update in sides.items():
            update()
            counts[side] = max(1, int(1e3 * SECONDS / milliseconds(update, 5)))
        turns: dict[str, list[float]] = {side: [] for side in sides}
        for repetition in range(options.repetitions):
            for side in sorted(sides, reverse=bool(repetition % 2)):
                turns[side].append(milliseconds(sides[side], counts[side]))
        ratios = np.array(turns["program"]) / np.array(turns["ops"])
        low, high = interval(ratios)
        found = [f"{statistics.median(turns[side]):.3f}" for side in sides]
        found.append(f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {workload} | {variables} | {weights:,} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()

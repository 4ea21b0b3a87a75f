"""What the framework's in-step extensions cost: steps with one, when it is due and when not, beside steps without any.

    python tests/benchmarks/extension_cost.py
    python tests/benchmarks/extension_cost.py --modes=graph --sides=kept,made --repetitions=11

By turns, in processor time: whole steps of the training block; and updates alone, which are the extension in a loop
like that of the block, without a forward and a backward pass. Under XLA the optimizer is in that loop too, because they
share passes over the weights; the operations of a graph only add up. It prints the median of a step and
the median of what an update is longer than one without an extension, of turns of the same repetition, with its
bootstrap interval of 95 %; and both as shares of a step without an extension. What an extension does in the forward
pass, as int8 does, is in the whole step alone.
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
from framework.run.run import Run
from framework.step.update import when
from tests.benchmarks.compare import machine
from tests.benchmarks.ratios import interval

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 0.2  # of a turn
LONG = {"train.duration": "1000000 steps", "train.block_steps": 1000}
NONE = "none"
PRUNE = {"prune.sparsity": 0.8, "prune.every": "1 step"}  # of all kernels
# {side: (what it is, settings)}
SIDES = {
    NONE: ("none", {}),
    "again": ("none, once more", {}),
    "before": ("pruning, before `begin`", {**PRUNE, "prune.begin": "900000 steps", "prune.end": "999999 steps"}),
    "kept": ("pruning, masks kept", {**PRUNE, "prune.begin": "1 step", "prune.end": "2 steps"}),
    "made": ("pruning, masks made", {**PRUNE, "prune.begin": "1 step", "prune.end": "999999 steps"}),
    "lookahead": ("Lookahead, not due", {"lookahead.every": 900_000}),
    "unclustered": ("clusters, before `begin`", {"cluster.name": "kmeans", "cluster.begin": "900000 steps"}),
    "clustered": ("clusters", {"cluster.name": "kmeans", "cluster.begin": "1 step"}),
    "int8": ("int8", {"quantize.name": "int8"}),
}
Loop = Callable[[int], object]  # of so many steps or updates


def build(workload: str, mode: str, side: str) -> Run:
    """Returns the untrained run of one side."""
    file = ROOT / "tests" / "benchmarks" / "workloads" / f"{workload}.py"
    return framework.build(str(file), {**LONG, **SIDES[side][1], "train.compile": mode}, "nowhere")


def updates(run: Run, mode: str) -> Loop:
    """Returns a function that makes updates with made-up gradients, as `take_step` makes them."""
    state, optimizer, is_masked = run.state, run.state.optimizers["model"], mode == "xla"
    gradients = {path: 1e-3 * tf.random.normal(v.shape) for path, v in optimizer.trained.items()}

    def update(index: tf.Tensor) -> tuple[tf.Tensor]:
        yes = index >= 0
        state.updates.assign_add(1)
        counters = state.updates.read_value(), state.step.read_value()
        if is_masked:
            optimizer.apply(gradients, yes)
            state.after_update(*counters, yes)
        elif state.is_extended:
            when(yes, lambda: state.after_update(*counters), lambda: None)
        return (index + 1,)

    def loop(count: tf.Tensor) -> tuple[tf.Tensor]:
        return tf.while_loop(lambda index: index < count, update, (tf.constant(0),), parallel_iterations=1)

    compiled = tf.function(loop, autograph=False, jit_compile=is_masked)
    return lambda count: compiled(tf.constant(count))


def by_turns(loops: dict[str, Loop], repetitions: int) -> dict[str, np.ndarray]:
    """Returns the milliseconds of processor time of a step, of each side in each repetition."""
    for loop in loops.values():
        loop(3)
    count = max(1, min(1000, int(1e3 * SECONDS / _milliseconds(loops[NONE], 50))))
    order, turns = np.random.default_rng(0), {side: [] for side in loops}
    for _ in range(repetitions):
        for side in order.permutation([*loops]):  # a side that follows itself has a warm cache
            turns[side].append(_milliseconds(loops[side], count))
    return {side: np.array(times) for side, times in turns.items()}


def _milliseconds(loop: Loop, count: int) -> float:
    begin = time.process_time()
    loop(count)
    return 1e3 * (time.process_time() - begin) / count


def main() -> None:
    """Prints a row for each workload, mode and side."""
    parser = argparse.ArgumentParser(description="What in-step extensions cost a training step.")
    parser.add_argument("--workloads", default="mlp")
    parser.add_argument("--modes", default="graph,xla")
    parser.add_argument("--sides", default=",".join(side for side in SIDES if side != NONE))
    parser.add_argument("--repetitions", type=int, default=21)
    options = parser.parse_args()
    sides = [NONE, *options.sides.split(",")]
    print(f"{machine()}; TensorFlow {tf.__version__}\n")
    heads = ["workload", "mode", "extension", "step, ms", "/ none [95 %]", "update, µs more [95 %]", "of a step"]
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for workload in options.workloads.split(","):
        for mode in options.modes.split(","):
            runs = {side: build(workload, mode, side) for side in sides}
            whole = by_turns({side: run.train_block for side, run in runs.items()}, options.repetitions)
            # Afterwards: made-up gradients lead the weights astray.
            alone = by_turns({side: updates(run, mode) for side, run in runs.items()}, options.repetitions)
            step = statistics.median(whole[NONE])
            for side in sides:
                cells = [workload, mode, SIDES[side][0], f"{statistics.median(whole[side]):.3f}"]
                if side != NONE:
                    ratios, more = whole[side] / whole[NONE], alone[side] - alone[NONE]
                    cells.append(f"{np.median(ratios):.3f} [{', '.join(f'{x:.3f}' for x in interval(ratios))}]")
                    cells.append(f"{1e3 * np.median(more):.0f} [{', '.join(f'{1e3 * x:.0f}' for x in interval(more))}]")
                    cells.append(f"{100 * np.median(more) / step:.1f} %")
                print(f"| {' | '.join([*cells, '', '', ''][: len(heads)])} |", flush=True)


if __name__ == "__main__":
    main()

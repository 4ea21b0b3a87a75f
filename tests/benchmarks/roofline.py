"""How near a step of each workload is to what the machine can do: operations and bytes, best product and copy.

    python tests/benchmarks/roofline.py --workloads=mlp,two_tower      # the machine, and rows of the table
    python tests/benchmarks/roofline.py --profile=mlp                  # where the time of a step goes

The machine, before the workloads and after: the fastest matrix product of TensorFlow in each precision, and copies of
arrays that lie inside the second-level caches, outside of them, and outside of all caches. Each workload at default
settings, in a process of its own (`peers/ours.py`), median of some turns. The roof is the longer of the time for the
operations (`work.py`) and of that for the bytes, at the speed of the smallest memory that holds what a step must keep.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import numpy as np
import ours
import tensorflow as tf

from tests.benchmarks import compare
from tests.benchmarks.profiled import profiled
from tests.benchmarks.work import Machine, work

SHAPES = ((2048, 1024, 1024), (4096, 1024, 1024), (2048, 2048, 2048))
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
ROWS = 12  # of a profile


def best(run: Callable[[], object], repetitions: int = 12) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def product_flops(precision: str) -> float:
    """Operations a second of the best of several products in TensorFlow."""
    found = []
    for rows, inner, columns in SHAPES:
        left, right = (tf.cast(tf.random.normal(shape), precision) for shape in ((rows, inner), (inner, columns)))
        found.append(2 * rows * inner * columns / best(lambda a=left, b=right: tf.matmul(a, b)))
    return max(found)


def copy_speed(array_bytes: int) -> float:
    """Bytes read and written a second where each core copies one array of its own to another."""
    cores = len(os.sched_getaffinity(0))
    pairs = [(np.ones(array_bytes, np.uint8), np.zeros(array_bytes, np.uint8)) for _ in range(cores)]
    times = max(1, 2**30 // array_bytes)

    def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(times):
            np.copyto(*reversed(pair))

    with ThreadPoolExecutor(cores) as pool:
        seconds = best(lambda: list(pool.map(copy, pairs)), 7)
    return 2 * array_bytes * times * cores / seconds


def cache_bytes(level: int) -> int:
    """Size of one cache of a level, as Linux tells it."""
    for folder in sorted(CACHES.glob("index*")):
        if (folder / "level").read_text().strip() == str(level):
            return int((folder / "size").read_text().strip().removesuffix("K")) * 1024
    raise SystemExit(f"{CACHES} tells nothing of a level {level}: the copies cannot be chosen on this machine")


def measure_machine() -> Machine:
    """What the machine reaches now."""
    second, third = cache_bytes(2), cache_bytes(3)
    # Of an array: two fit into a core's second-level cache, do not fit, do not fit into the last.
    arrays = [second // 4, 8 * second, max(third, 2**28)]
    holds = [len(os.sched_getaffinity(0)) * second, third, float("inf")]
    flops = {precision: product_flops(precision) for precision in compare.PRECISIONS}
    return Machine(flops, list(zip(holds, map(copy_speed, arrays), strict=True)))


def show_machine(machine: Machine) -> None:
    """Prints a table."""
    print("| the machine | at best |\n|---|---|")
    for precision, value in machine.flops.items():
        print(f"| matrix product, {precision} | {value / 1e9:,.0f} GFLOP/s |")
    places = ("inside the second-level caches", "outside of them", "outside of all caches")
    for place, (_, speed) in zip(places, machine.copies, strict=True):
        print(f"| copy {place}, read and written | {speed / 1e9:.1f} GB/s |")
    print()


def measure_step(workload: str, precision: str, repetitions: int) -> tuple[str, float]:
    """How it is compiled, and the median milliseconds of a step."""
    steps = compare.QUICK_STEPS[workload]
    with compare.start_peer(compare.OURS, workload, precision) as process:
        variant = process.ready()["variant"]
        process.run(steps)
        return variant, statistics.median(process.run(steps) for _ in range(repetitions))


def show_steps(works: Iterable[tuple[str, str]], repetitions: int) -> None:
    """Prints both tables; the machine is measured before and after, because what else runs on it comes and goes."""
    before = measure_machine()
    took = {(workload, precision): measure_step(workload, precision, repetitions) for workload, precision in works}
    machine = before.better(measure_machine())
    show_machine(machine)
    print("| workload | precision | GFLOP | GB moved | products, ms | bytes, ms | roof, ms | ours | ours, ms | share |")
    print("|---" * 10 + "|")
    for (workload, precision), (variant, ms) in took.items():
        step = work(workload, precision)
        parts = [1e3 * seconds for seconds in machine.roof(step, precision)]
        counts = f"{step.flops / 1e9:.3f} | {step.moved / 1e9:.4f} | {parts[0]:.3f} | {parts[1]:.3f} | {max(parts):.3f}"
        print(f"| {workload} | {precision} | {counts} | {variant} | {ms:.3f} | {max(parts) / ms:.0%} |")


def show_profile(workload: str, precision: str) -> None:
    """Prints where the time of a step goes; histograms, whose first call compiles, are left out."""
    steps = max(3, compare.QUICK_STEPS[workload] // 4)
    with contextlib.redirect_stdout(sys.stderr):
        peer = ours.prepare(workload, precision, "settings:log.histograms_every=")
        peer.steps(steps)
        plain = best(lambda: peer.steps(steps), 3)
        rows = profiled(lambda: peer.steps(steps))
    total = sum(row.milliseconds for row in rows)
    print(f"\n{workload}, {precision}, {peer.variant}: {1e3 * plain / steps:.3f} ms a step of the clock.")
    print(f"Of {steps} steps under the profiler, all threads: {total / steps:.3f} ms in ops.\n")
    print("| kind | a step | ms a step | share |\n|---|---|---|---|")
    for row in rows[:ROWS]:
        cells = f"{row.count / steps:.4g} | {row.milliseconds / steps:.4f} | {row.milliseconds / total:.1%}"
        print(f"| `{row.kind}` | {cells} |")
    rest = sum(row.milliseconds for row in rows[ROWS:])
    print(f"| {len(rows[ROWS:])} others | | {rest / steps:.4f} | {rest / total:.1%} |", flush=True)


def main() -> None:
    """Prints the machine, the table and the profiles asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workloads", default=",".join(compare.WORKLOADS), help="of the table")
    parser.add_argument("--precisions", default=",".join(compare.PRECISIONS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--profile", default="", help="workloads, instead of the table")
    options = parser.parse_args()
    works = [
        (workload, precision)
        for workload in (options.profile or options.workloads).split(",")
        for precision in options.precisions.split(",")
        if precision == "float32" or workload in compare.HALF
    ]
    print(f"{compare.machine()}; TensorFlow {tf.__version__}\n")
    if not options.profile:
        show_steps(works, options.repetitions)
        return
    for workload, precision in works:
        show_profile(workload, precision)


if __name__ == "__main__":
    main()

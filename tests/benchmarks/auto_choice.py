"""How often train.compile=auto takes the fastest way to compile, or one within 3 % of it, and what that costs.

    python tests/benchmarks/auto_choice.py --workloads mlp cnn --starts=10

First a process compiles every way and times them for `--seconds`, in turns: the reference. Then each start is a process
of its own that tunes as a run does; what it chose is held against the reference. The last column is the longest that a
start took to choose, of which most is compiling.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import framework
from framework.run.environment import environment
from framework.run.run import Run
from framework.step import compile_choice

# {name: (experiment, train.precision)}
WORKLOADS = {
    "mlp": ("tests/benchmarks/workloads/mlp.py", "float32"),
    "cnn": ("tests/benchmarks/workloads/cnn.py", "float32"),
    "cnn-bfloat16": ("tests/benchmarks/workloads/cnn.py", "bfloat16"),
    "transformer": ("tests/benchmarks/workloads/transformer.py", "float32"),
    "transformer-bfloat16": ("tests/benchmarks/workloads/transformer.py", "bfloat16"),
    "two_tower": ("tests/benchmarks/workloads/two_tower.py", "float32"),
}


def build(workload: str) -> Run:
    """A run that is long enough to be tuned."""
    name, precision = WORKLOADS[workload]
    settings = {"train.compile": "auto", "train.duration": "1000000 steps", "train.precision": precision}
    return framework.build(name, settings, "nowhere")


def start(workload: str) -> dict[str, object]:
    """What one start chooses, and the seconds that it takes to."""
    run, begin = build(workload), time.monotonic()
    modes = compile_choice.candidates(run.resolved, run.probe, run.replicas)
    _, choice = compile_choice.choose(run.train_block, modes, run.replicas, run.total_steps)
    return {"mode": choice.mode, "table": choice.milliseconds, "seconds": time.monotonic() - begin}


def reference(workload: str, seconds: float) -> dict[str, float]:
    """{mode: milliseconds of a step}: medians of runs in turns; of one that is twice as slow, three runs will do."""
    run = build(workload)
    modes = compile_choice.candidates(run.resolved, run.probe, run.replicas)
    blocks = {mode: run.train_block.compiled_by(mode) for mode in modes}

    def timed(mode: str, k: int) -> float:
        begin = time.perf_counter()
        blocks[mode](k)
        return (time.perf_counter() - begin) / k

    first: dict[str, float] = {}
    for mode in modes:
        timed(mode, 1)
        first[mode] = timed(mode, 3)
    lengths = {mode: max(1, min(100, int(0.2 / time_of_one))) for mode, time_of_one in first.items()}
    took: dict[str, list[float]] = {mode: [] for mode in first}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(took["graph"]) < 3:
        best = min((statistics.median(times) for times in took.values() if times), default=0.0)
        for mode, times in took.items():
            if len(times) < 3 or statistics.median(times) < 2 * best:
                times.append(timed(mode, lengths[mode]))
    return {mode: 1e3 * statistics.median(times) for mode, times in took.items()}


def in_a_process(*arguments: str) -> dict:
    """What this script prints when it is called with `arguments`."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(workload: str, starts: int, seconds: float) -> None:
    """Prints a row of the table."""
    times = in_a_process("--reference", workload, f"--seconds={seconds}")
    best = min(times.values())
    found = [in_a_process("--start", workload) for _ in range(starts)]
    missed = [one for one in found if times[one["mode"]] > 1.03 * best]
    chosen = sorted({one["mode"] for one in found}, key=times.__getitem__)
    ways = " | ".join(f"{times[mode]:.3g}" if mode in times else "" for mode in compile_choice.MODES)
    longest = max(one["seconds"] for one in found)
    good = f"{starts - len(missed)} of {starts}"
    print(f"| {workload} | {ways} | {', '.join(chosen)} | {good} | {longest:.1f} |", flush=True)
    for one in missed:
        print(f"{workload}: {one['mode']} was taken by {one['table']}", file=sys.stderr, flush=True)


def main() -> None:
    """Prints the machine and a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--start", choices=list(WORKLOADS), help="of one process, for the script itself")
    parser.add_argument("--reference", choices=list(WORKLOADS), help="the same")
    options = parser.parse_args()
    if options.start or options.reference:
        found = start(options.start) if options.start else reference(options.reference, options.seconds)
        print(json.dumps(found))
        return
    facts = environment()
    versions = ", ".join(f"{name} {facts['packages'][name]}" for name in ("tensorflow", "tf-keras", "numpy"))
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}, Python {facts['python']}, {versions}")
    print(f"load of the machine at the start {os.getloadavg()[0]:.1f}; milliseconds of a step")
    print(f"| workload | {' | '.join(compile_choice.MODES)} | chosen | within 3 % of the best | seconds to choose |")
    print(f"|{'---|' * (len(compile_choice.MODES) + 4)}")
    for workload in options.workloads:
        measure(workload, options.starts, options.seconds)


if __name__ == "__main__":
    main()

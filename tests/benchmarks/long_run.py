"""Whether a long run grows: memory, memory maps, threads and open files of 100,000 steps of `mlp`, seen from outside.

    python tests/benchmarks/long_run.py
    python tests/benchmarks/long_run.py --steps=40000

`launch.py` trains in a process of its own at default settings: logs, curves, histograms, evaluations and checkpoints
included. Ten times a second this script looks at the process and at the last step it has logged. Of each 10,000 steps
the median of each number counts, because a save that is under way has a thread and files for a moment. Status 1 if from
the second 10,000 steps to the last the resident memory grows by more than 1 % or 5 MB, whichever is more, or any other
number at all; if the step was traced or compiled more than once; or if the run did not finish.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.compare import machine

ROOT = Path(__file__).resolve().parents[2]
PART = 10_000
PAUSE_SECONDS = 0.1
# {what: (share, amount) by which it may grow, whichever is more}
ALLOWED = {"resident kB": (0.01, 5_000), "maps": (0.0, 0), "threads": (0.0, 0), "files": (0.0, 0)}


class Look(NamedTuple):
    """What was seen at once: the last step that was logged, and {what: how much} of the process."""

    step: int
    numbers: Mapping[str, int]


def of_process(process: int) -> dict[str, int]:
    """{what: how much} of a process that runs."""
    folder = Path("/proc") / str(process)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return {
        "resident kB": int(status["VmRSS"].split()[0]),
        "maps": (folder / "maps").read_text().count("\n"),
        "threads": int(status["Threads"]),
        "files": len(os.listdir(folder / "fd")),
    }


def watched(process: subprocess.Popen, log: Path) -> list[Look]:
    """Looks at a run until it ends.

    Args:
      log: its metrics.jsonl, which may not be there yet.
    """
    looks: list[Look] = []
    step, place = 0, 0
    while process.poll() is None:
        if log.exists():
            with log.open("rb") as file:
                file.seek(place)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            place += len(whole)
            step = max([step, *(json.loads(line)["step"] for line in whole.splitlines())])
        try:
            looks.append(Look(step, of_process(process.pid)))
        except (OSError, KeyError):  # it has just ended
            break
        time.sleep(PAUSE_SECONDS)
    return looks


def parts(looks: Sequence[Look], steps: int) -> dict[int, dict[str, tuple[int, int, int]]]:
    """{first step of each 10,000: {what: least, median, most}}; of those after the first 10,000 and before the end."""
    found = {}
    for first in range(PART, steps, PART):
        # Strictly before the last step: what comes after it is the end of the run.
        numbers = [look.numbers for look in looks if first <= look.step < min(first + PART, steps)]
        if numbers:
            columns = {name: [number[name] for number in numbers] for name in ALLOWED}
            found[first] = {name: (min(c), statistics.median_low(c), max(c)) for name, c in columns.items()}
    return found


def growth(found: Mapping[int, Mapping[str, tuple[int, int, int]]]) -> dict[str, tuple[int, int]]:
    """{what: its median in the first part, and in the last}."""
    first, last = found[min(found)], found[max(found)]
    return {name: (first[name][1], last[name][1]) for name in ALLOWED}


def grown(found: Mapping[int, Mapping[str, tuple[int, int, int]]]) -> list[str]:
    """A line for each number that grows from the first part to the last by more than is allowed."""
    if len(found) < 2:
        return [f"only {len(found)} parts of {PART:,} steps were seen: nothing can be said"]
    return [
        f"{name} grows from {before:,} to {after:,}"
        for name, (before, after) in growth(found).items()
        if after - before > max(ALLOWED[name][0] * before, ALLOWED[name][1])
    ]


def faults(result: Mapping[str, object] | None) -> list[str]:
    """What the run says of itself that it should not."""
    if result is None or result["status"] != "finished":
        return ["the run did not finish"]
    return [
        f"{name}: {result[name]} instead of at most 1"
        for name in ("traces", "compilations")
        if result[name] is None or int(result[name]) > 1
    ]


def train(steps: int) -> tuple[list[Look], dict[str, object] | None]:
    """What was seen of a run, and its result.json; None, with its last words on stderr, if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        workdir, output = Path(folder) / "run", Path(folder) / "output"
        command = [sys.executable, "launch.py", "--config=tests/benchmarks/workloads/mlp.py", f"--workdir={workdir}"]
        command += [f"--config.train.duration={steps} steps"]
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
            try:
                looks = watched(process, workdir / "metrics.jsonl")
                process.wait(60)
            finally:
                process.kill()
                process.wait()
        result = workdir / "result.json"
        if result.exists():
            return looks, json.loads(result.read_text())
        print(output.read_text()[-2000:], file=sys.stderr)
        return looks, None


def main() -> int:
    """Prints the machine, a table and what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    looks, result = train(options.steps)
    found = parts(looks, options.steps)
    print(f"| from step | {' | '.join(ALLOWED)} |\n|{'---|' * (len(ALLOWED) + 1)}")
    for first, numbers in found.items():
        cells = (f"{median:,} ({low:,} to {high:,})" for low, median, high in numbers.values())
        print(f"| {first:,} | {' | '.join(cells)} |")
    print()
    if result:
        names = ("compile", "traces", "compilations", "wall_seconds")
        print(", ".join(f"{name} {result[name]}" for name in names))
    wrong = grown(found) + faults(result)
    print("\n".join(wrong) if wrong else "nothing grows by more than is allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

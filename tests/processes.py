"""Runs the tests, each file in a process of its own, several at a time.

    python -m tests.processes                     # what `make test` runs
    python -m tests.processes -m slow             # arguments of pytest
    python -m tests.processes --jobs=1 tests/step tests/test_rng.py

What TensorFlow traces and XLA compiles stays until a process ends: in one process all tests together hold 22 GB. Python
and TensorFlow are imported once, before the processes are forked. A file of many programs is shared out over several
processes (SHARDS). The exit status is 0 if every process passed and at least one test ran.
"""

import argparse
import dataclasses
import gc
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# The longest come first, so that none is left alone at the end; and which are shared out over how many processes.
SHARDS = {
    "tests/test_commands.py": 1,
    "tests/test_parameter_server.py": 1,
    "tests/test_equivalence.py": 3,
    "tests/test_oracle.py": 1,
    "tests/step/test_block.py": 1,
    "tests/layers/test_matrix.py": 2,
    "tests/distribute/test_replicas.py": 1,
    "tests/step/test_skip.py": 2,
}
SLOW_SHARDS = {"tests/test_equivalence.py": 12, "tests/test_oracle.py": 6}
PREPARED = "numpy pytest hypothesis tensorflow tf_keras framework.testing framework.run.loop framework.run.replay"
NO_TESTS = 5  # pytest's exit status
LOOK_SECONDS = 4.0  # between two looks at the memory
COSTLY = 20  # tests of most processor time that are named


class Job(NamedTuple):
    """A file, or a share of its tests."""

    file: str
    shard: int
    shards: int

    @property
    def name(self) -> str:
        """The file, with the number of the share if there are several."""
        return self.file if self.shards == 1 else f"{self.file} {self.shard + 1}/{self.shards}"


class Running(NamedTuple):
    """A process under way."""

    job: Job
    output: Path
    started: float


@dataclasses.dataclass
class Tally:
    """How many tests ended how, how many are skipped for which reason, which cost most, which processes failed."""

    ended: Counter[str] = dataclasses.field(default_factory=Counter)
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    costs: dict[str, float] = dataclasses.field(default_factory=dict)  # processor seconds of the costly tests
    busy: float = 0.0  # processor seconds of all
    failed: list[str] = dataclasses.field(default_factory=list)


def jobs(paths: list[str], shards: dict[str, int]) -> list[Job]:
    """Returns the files below `paths` shared out, in the order of `SHARDS` and then by name."""
    files: set[str] = set()
    for path in paths:
        given = ROOT / path
        if given.is_dir():
            files.update(str(file.relative_to(ROOT)) for file in given.rglob("test_*.py"))
        else:
            files.add(path)
    order = list(SHARDS)
    ranked = sorted(files, key=lambda file: (order.index(file) if file in order else len(order), file))
    return [Job(file, shard, shards.get(file, 1)) for file in ranked for shard in range(shards.get(file, 1))]


def start(job: Job, arguments: list[str], output: Path) -> int:
    """Forks a process that runs pytest on a job and writes what it says into `output`; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    import pytest

    # Without the plugin each process would read and write the names of all tests.
    options = ["-q", "-ra", "-p", "no:cacheprovider", f"--shard={job.shard}/{job.shards}"]
    status = pytest.main([*options, *arguments, job.file])
    sys.stdout.flush()
    os._exit(int(status))


def resident_bytes(processes: list[int]) -> int:
    """Returns the memory that processes and their descendants hold; 0 where there is no /proc."""
    children: dict[int, list[int]] = {}
    size: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            size[int(entry.name)] = int((entry / "smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) * 1024
        except (OSError, IndexError):
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))

    def below(process: int) -> Iterator[int]:
        yield size.get(process, 0)
        for child in children.get(process, []):
            yield from below(child)

    return sum(sum(below(process)) for process in processes)


def main() -> int:
    """Runs all jobs and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time [2]")
    options, rest = parser.parse_known_args()
    if options.jobs < 1:
        parser.error(f"--jobs={options.jobs} must be at least 1")
    paths = [argument for argument in rest if (ROOT / argument.partition("::")[0]).exists()]
    arguments = [argument for argument in rest if argument not in paths]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # start-up notes of TensorFlow's C++
    queue = jobs(paths or ["tests"], SHARDS | SLOW_SHARDS if "slow" in " ".join(arguments) else SHARDS)
    for module in PREPARED.split():
        __import__(module)
    # Collections in the forked processes need not look at what was imported before. This and hypothesis: 2 s a file.
    # And a trace makes and keeps so many objects that looking at all of them so often takes a fiftieth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 20)
    began = looked = time.monotonic()
    most, tally = 0, Tally()
    running: dict[int, Running] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(queue) + options.jobs):
            while running and (len(running) == options.jobs or number >= len(queue)):
                process, status, usage = os.wait4(-1, os.WNOHANG)
                if not process:
                    if time.monotonic() > looked + LOOK_SECONDS:  # often would take a tenth of a core
                        most = max(most, resident_bytes([os.getpid()]))
                        looked = time.monotonic()
                    time.sleep(0.1)
                    continue
                one = running.pop(process)
                report(one, os.waitstatus_to_exitcode(status), usage, tally)
            if number < len(queue):
                output = Path(folder) / f"{number}.txt"
                running[start(queue[number], arguments, output)] = Running(queue[number], output, time.monotonic())
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.ended.items()))
    print(f"{counts or 'no tests'} in {time.monotonic() - began:.0f} s; at most {most / 2**30:.1f} GB at a time")
    for test, seconds in sorted(tally.costs.items(), key=lambda cost: -cost[1])[:COSTLY]:
        print(f"COSTLY: {seconds:.0f} of {tally.busy:.0f} CPU s, {test}")
    for reason, count in sorted(tally.skipped.items()):
        print(f"SKIPPED: {count}, {reason}")
    for name in tally.failed:
        print(f"FAILED: {name}")
    return 1 if tally.failed or not tally.ended else 0


def report(one: Running, status: int, usage: resource.struct_rusage, tally: Tally) -> None:
    """Prints a line of a process that ended, or all that it said if it failed; counts its tests and why some skip."""
    said = one.output.read_text(errors="replace")
    summaries = [line for line in said.splitlines() if re.search(r" in \d+\.\d+s", line)]
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)", summaries[-1] if summaries else "")
    for count, kind in counts:
        tally.ended[kind] += int(count)
    for count, reason in re.findall(r"^SKIPPED \[(\d+)\] [^ ]+ (.*)$", said, re.MULTILINE):
        tally.skipped[reason] += int(count)
    if status not in (0, NO_TESTS) or (status == 0 and not counts):  # the second: a test ended the process
        # pytest's lines of what failed are repeated at the end, where a log that was cut still has them.
        lines = [f"\n  {line}" for line in said.splitlines() if re.match(r"(FAILED|ERROR) ", line)]
        tally.failed.append(f"{one.job.name} (status {status}){''.join(lines)}")
        print(said)
    if counts or status != NO_TESTS:
        tally.costs |= {test: float(cost) for cost, test in re.findall(r"^COSTLY (\S+) (.*)$", said, re.MULTILINE)}
        seconds, busy = time.monotonic() - one.started, usage.ru_utime + usage.ru_stime
        tally.busy += busy
        shown = ", ".join(f"{count} {kind}" for count, kind in counts) or f"status {status}"
        gigabytes = usage.ru_maxrss * 1024 / 2**30
        print(f"{one.job.name}: {shown}, {seconds:.0f} s, {busy:.0f} CPU s, {gigabytes:.1f} GB", flush=True)


if __name__ == "__main__":
    sys.exit(main())

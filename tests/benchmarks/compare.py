"""Step times of the framework over those of its peers on the same work, all in one run, by turns.

    python tests/benchmarks/compare.py                                       # everything: about an hour
    python tests/benchmarks/compare.py --workloads=mlp --peers=bare,torch --quick --json=ratios.json
    python tests/benchmarks/compare.py --before=../older --repetitions=11

Each peer builds and compiles in a process of its own (`peers/`), takes the fastest of its ways to run, and stays. In
each repetition all make the same number of steps in turn, ours next to each peer, in an order that is reversed from
one to the next; whoever has no turn is stopped. The ratio is ours over the peer's of the same repetition: the median,
with a bootstrap interval of 95 %. The first turn of each is not counted, nor is the first epoch of ours before it.
Examples are shuffled, and dropout is on where the model has it.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from framework.config import UserError, near
from tests.benchmarks.peers.protocol import PRECISIONS, WORKLOADS
from tests.benchmarks.ratios import interval
from tests.benchmarks.turns import ROOT, PeerError, Process, sequence

# {peer: (script, what it is to be, whether it has an environment of its own)}.
PEERS = {
    "bare": ("bare.py", "", False),
    "tf_keras": ("keras_fit.py", "", False),
    "keras3_tensorflow": ("keras3.py", "tensorflow", True),
    "keras3_jax": ("keras3.py", "jax", True),
    "torch": ("pytorch.py", "eager", True),
    "torch_compile": ("pytorch.py", "compile", True),
    "jax": ("jax_flax.py", "", True),
    "orbit": ("orbit_loop.py", "", True),
}
OURS = "ours"
BEFORE = "before"  # ours of another checkout, see --before
HALF = ("cnn", "transformer")  # what is trained in half precision too
# Steps of a turn: some two seconds, and less in a hurry.
STEPS = {"mlp": 4000, "cnn": 12, "transformer": 12, "two_tower": 1500}
QUICK_STEPS = {"mlp": 1000, "cnn": 4, "transformer": 4, "two_tower": 400}
SLOW_COMPILE_SECONDS = 60
HEAD = "| workload | precision | peer | how | peer, ms | ours, how | ours, ms | ratio |\n" + "|---" * 8 + "|"
ENVIRONMENT = ROOT / ".venv-peers" / "bin" / "python"

Start = Callable[[str, str, str], Process]


@dataclasses.dataclass
class Result:
    """One peer on one workload.

    Attributes:
      ready, ours_ready: what the processes said when they were.
      theirs, ours: ms a step, [repetitions], those of a repetition next to each other in time.
    """

    workload: str
    precision: str
    peer: str
    ready: Mapping[str, Any]
    ours_ready: Mapping[str, Any]
    theirs: list[float] = dataclasses.field(default_factory=list)
    ours: list[float] = dataclasses.field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Medians, and the ratio of ours to theirs with its interval."""
        ratios = np.array(self.ours) / np.array(self.theirs)
        low, high = interval(ratios)
        return {
            "workload": self.workload,
            "precision": self.precision,
            "peer": self.peer,
            "peer_ms": statistics.median(self.theirs),
            "ours_ms": statistics.median(self.ours),
            "ratio": float(np.median(ratios)),
            "low": low,
            "high": high,
        }

    def line(self) -> str:
        """A row of the table."""
        row, seconds = self.row(), self.ready["compile_seconds"]
        slow = f"; {seconds:.0f} s to compile" if seconds > SLOW_COMPILE_SECONDS else ""
        cells = [self.workload, self.precision, self.peer, f"{self.ready['variant']}{slow}", _shown(self.theirs)]
        cells += [self.ours_ready["variant"], _shown(self.ours)]
        return f"| {' | '.join(cells)} | {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |"


def measure(
    workload: str, precision: str, peers: Sequence[str], start: Start, steps: int, repetitions: int
) -> tuple[list[Result], dict[str, str]]:
    """Results of all peers on one workload, and {peer: why it has none}.

    Args:
      start: (peer, workload, precision) -> its process.
    """
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        processes, ready = {}, {}
        for name in (OURS, *peers):
            with _noted(failed, name):
                processes[name] = stack.enter_context(start(name, workload, precision))
                ready[name] = processes[name].ready()
                processes[name].run(steps)
        if OURS in failed:
            return [], failed
        results = {peer: Result(workload, precision, peer, ready.get(peer, {}), ready[OURS]) for peer in peers}
        for repetition in range(repetitions):
            took: dict[tuple[str, int], float] = {}
            turns = sequence([peer for peer in peers if peer not in failed], OURS, repetition)
            for name, group in turns:
                with _noted(failed, name):
                    took[name, group] = processes[name].run(steps)
            if OURS in failed:
                return [], failed
            for name, group in took:
                if name != OURS:
                    results[name].ours.append(took[OURS, group])
                    results[name].theirs.append(took[name, group])
        return [result for peer, result in results.items() if peer not in failed], failed


@contextlib.contextmanager
def _noted(failed: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except PeerError as error:
        failed[name] = str(error)
        print(f"{name} failed: {error}", file=sys.stderr, flush=True)  # now: the whole takes an hour


def _shown(times: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


def machine() -> str:
    """CPU, cores, memory, system and load."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {gigabytes:.0f} GB, {platform.platform()},"
        f" Python {platform.python_version()}; load at the start {os.getloadavg()[0]:.2f}"
    )


def start_peer(name: str, workload: str, precision: str, before: Path = ROOT) -> Process:
    """The process of ours or of a peer; `before` is the checkout of the peer of that name."""
    script, option, is_foreign = PEERS.get(name, ("ours.py", "", False))
    root = before if name == BEFORE else ROOT
    command = [str(ENVIRONMENT) if is_foreign else sys.executable, str(root / "tests/benchmarks/peers" / script)]
    return Process([*command, f"--workload={workload}", f"--precision={precision}", f"--option={option}"], root)


class _Parser(argparse.ArgumentParser):
    """Whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. Type e.g. python tests/benchmarks/compare.py --workloads=mlp --quick.")


def _names(flag: str, text: str, known: Sequence[str]) -> list[str]:
    """The names of a flag, in their own order; all of them for ''."""
    asked = [name for name in text.split(",") if name]
    for name in asked:
        if name not in known:
            raise UserError(f"--{flag}={text}: there is no '{name}'.{near(name, known)} Known: {', '.join(known)}.")
    return [name for name in known if name in asked] if asked else list(known)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags, checked.

    Raises:
      UserError: an unknown name, a combination that has no work, or no environment for the peers asked for.
    """
    parser = _Parser(description="Step times of the framework over those of its peers.")
    parser.add_argument("--workloads", default="", help=",".join(WORKLOADS))
    parser.add_argument("--peers", default="", help=",".join(PEERS))
    parser.add_argument("--precisions", default="", help=",".join(PRECISIONS))
    parser.add_argument("--repetitions", type=int, default=0, help="of each; 7, or 5 with --quick")
    parser.add_argument("--quick", action="store_true", help="shorter turns")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--before", type=Path, help="another checkout of the project, to compare its steps with ours")
    options = parser.parse_args(arguments)
    options.workloads = _names("workloads", options.workloads, WORKLOADS)
    options.peers = [name for name in _names("peers", options.peers, (OURS, *PEERS)) if name != OURS]
    if options.before:
        if not (options.before / "tests/benchmarks/peers/ours.py").is_file():
            raise UserError(
                f"--before={options.before} is no checkout of the project. Type: git worktree add FOLDER HEAD~1"
            )
        options.before = options.before.resolve()
        options.peers = [BEFORE]
    precisions = _names("precisions", options.precisions, PRECISIONS)
    options.work = [(w, p) for w in options.workloads for p in precisions if p == "float32" or w in HALF]
    if not options.work:
        raise UserError(f"only {' and '.join(HALF)} are trained in bfloat16. Use e.g. --workloads={HALF[0]}.")
    if options.repetitions < 0:
        raise UserError(f"--repetitions={options.repetitions} is negative. Use e.g. --repetitions=7.")
    options.repetitions = options.repetitions or (5 if options.quick else 7)
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f"--json={options.json}: there is no folder {options.json.parent}. Make it first.")
    foreign = [name for name in options.peers if name in PEERS and PEERS[name][2]]
    if foreign and not ENVIRONMENT.exists():
        raise UserError(f"{ENVIRONMENT} is missing, which {', '.join(foreign)} need. Type: make peers")
    return options


def compare(options: argparse.Namespace) -> list[str]:
    """Measures, prints and writes everything that was asked for; returns what failed, a line each."""
    print(machine())
    print(f"{options.repetitions} repetitions; ms a step: median (least to most); ratio: ours / peer [95 %]\n")
    print(HEAD, flush=True)
    start = functools.partial(start_peer, before=options.before) if options.before else start_peer
    results: list[Result] = []
    failures: list[str] = []
    for workload, precision in options.work:
        steps = (QUICK_STEPS if options.quick else STEPS)[workload]
        found, failed = measure(workload, precision, options.peers, start, steps, options.repetitions)
        for result in found:
            print(result.line(), flush=True)
        results += found
        failures += [f"{peer} failed on {workload} in {precision}: {error}" for peer, error in failed.items()]
        if options.json:
            options.json.write_text(json.dumps([result.row() for result in results], indent=2) + "\n")
    print("\n".join(["", *versions(results), *variants(results), *failures]))
    return failures


def versions(results: Sequence[Result]) -> list[str]:
    """'bare: tensorflow 2.21.0, …' of ours and of each peer."""
    of = {name: ready["versions"] for r in results for name, ready in ((OURS, r.ours_ready), (r.peer, r.ready))}
    return [f"{name}: {', '.join(' '.join(pair) for pair in sorted(found.items()))}" for name, found in of.items()]


def variants(results: Sequence[Result]) -> list[str]:
    """Among what each peer chose."""
    return [
        f"{r.peer} on {r.workload} in {r.precision} chose among, ms a step: "
        + ", ".join(f"{name} {ms:.4g}" for name, ms in r.ready["variants"].items())
        for r in results
        if r.ready["variants"]
    ]


def main(arguments: Sequence[str]) -> int:
    """0; 1 if a peer failed; 2 for what cannot be run."""
    try:
        options = parse(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if compare(options) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: no stopped process is left behind
    sys.exit(main(sys.argv[1:]))

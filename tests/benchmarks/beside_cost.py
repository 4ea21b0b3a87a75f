"""What all beside the steps costs in `make run`: hooks, guards, writers, the first look and the report, in one run.

    python tests/benchmarks/beside_cost.py
    python tests/benchmarks/beside_cost.py --repetitions=5 --config.train.duration='2 epochs'

Trains `experiments/mnist_mlp.py` at its default settings, without exports, and measures each part by the clock and in
processor time, the threads of the writers too. It prints the median over runs of each part, and its share of the time
of the whole training. Evaluations and checkpoints are what a run is asked for; they stand below the sum, on their own.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import framework
from framework.run import built_in, loop
from framework.run.guards import Guards
from framework.writers import AsyncWriter
from tests.benchmarks.compare import machine

ROOT = Path(__file__).resolve().parents[2]
ASKED_FOR = ("evaluate", "save")  # parts of a run that a user asks for


class Costs:
    """Seconds by the clock and of the processors, by part; a part inside of another counts as itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._open: list[list[float]] = []

    def of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that does the same and counts what it takes."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            self._open.append([0.0, 0.0])
            start = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = [time.perf_counter() - start[0], time.process_time() - start[1]]
                inner = self._open.pop()
                self._add(part, [whole - within for whole, within in zip(took, inner, strict=True)])
                if self._open:
                    self._open[-1] = [sum(pair) for pair in zip(self._open[-1], took, strict=True)]

        return measured

    def in_thread(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the same for the work of a whole thread, which training does not wait for."""

        def measured(*args: Any) -> None:
            start = time.thread_time()
            try:
                function(*args)
            finally:
                self._add(part, [0.0, time.thread_time() - start])

        return measured

    def _add(self, part: str, took: list[float]) -> None:
        self.seconds[part] = [sum(pair) for pair in zip(self.seconds.get(part, [0.0, 0.0]), took, strict=True)]


@contextlib.contextmanager
def watched(costs: Costs):
    """Measures the parts of every run that is trained while the context is open."""
    hooks = built_in.built_in_hooks

    def built(*args: Any) -> Any:
        return [
            type(hook)(hook.every, costs.of(hook.name, hook.action), hook.name, hook.at_end) for hook in hooks(*args)
        ]

    changes = [
        (loop, "built_in_hooks", built),
        (loop, "show_inputs", costs.of("first look", loop.show_inputs)),
        (loop, "warn_of_padding", costs.of("first look", loop.warn_of_padding)),
        (loop, "warn_of_same_data", costs.of("first look", loop.warn_of_same_data)),
        (loop, "_save", costs.of("save", loop._save)),
        (loop.report, "refresh", costs.of("report.html", loop.report.refresh)),
        (Guards, "look", costs.of("guards", Guards.look)),
        (AsyncWriter, "_work", costs.in_thread("TensorBoard's thread", AsyncWriter._work)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, new in changes:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=5)
    options, overrides = parser.parse_known_args()
    print(machine())
    runs = []
    for _ in range(options.repetitions):
        costs = Costs()
        with tempfile.TemporaryDirectory() as folder, watched(costs), contextlib.redirect_stderr(open(os.devnull, "w")):
            run = framework.build(str(ROOT / "experiments" / "mnist_mlp.py"), overrides, f"{folder}/run")
            costs.of("training", framework.train)(run)
        whole = [sum(part[clock] for part in costs.seconds.values()) for clock in (0, 1)]
        runs.append(
            {part: [*took, *(t / w for t, w in zip(took, whole, strict=True))] for part, took in costs.seconds.items()}
        )
    parts = [part for part in runs[0] if part not in ("training", *ASKED_FOR)]
    beside = [[sum(run[part][place] for part in parts) for place in range(4)] for run in runs]
    print(f"{'':<22}{'clock, s':>10}{'processors, s':>15}{'share':>9}{'of processors':>15}")
    for part in parts:
        _row(part, [run[part] for run in runs])
    _row("together", beside)
    for part in (*ASKED_FOR, "training"):
        _row("steps and the rest" if part == "training" else part, [run[part] for run in runs])


def _row(name: str, values: list[list[float]]) -> None:
    clock, processors, share, of_processors = (statistics.median(column) for column in zip(*values, strict=True))
    print(f"{name:<22}{clock:>10.4f}{processors:>15.4f}{share:>9.2%}{of_processors:>15.2%}")


if __name__ == "__main__":
    main()

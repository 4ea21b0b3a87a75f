"""What a step costs as batch, parameters, replicas and examples grow, and what hooks add.

    python tests/benchmarks/cost_growth.py --pieces=batch,parameters --json=growth.json
    python tests/benchmarks/cost_growth.py --pieces=replicas,examples --json=growth.json
    python tests/benchmarks/cost_growth.py --pieces=hooks --workloads=mlp,two_tower --json=growth.json
    python tests/benchmarks/cost_growth.py --pieces= --json=growth.json --plot=growth.svg

All sizes of a piece are built in one process and take turns: steps of about a quarter of a second, in an order that is
reversed from one repetition to the next. Hooks are measured by `growth_hooks.py`. The file of `--json` keeps the rows
of earlier calls, those of the same piece or workload excepted; table and plot show all of them.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tf_keras as keras

from framework import config
from framework.config.overrides import override
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.experiment import load
from framework.run.build import build_run
from framework.run.environment import environment
from framework.run.run import Run
from tests.benchmarks import growth_hooks
from tests.benchmarks.compare import machine
from tests.benchmarks.peers.protocol import WORKLOADS
from tests.benchmarks.plot import Panel, svg
from tests.benchmarks.workloads import mlp

# What grows, in which sizes.
SIZES = {
    "batch": (8, 32, 128, 512, 2048, 8192),
    "parameters": (10_000, 100_000, 1_000_000, 10_000_000, 50_000_000),
    "replicas": (1, 2, 3, 4),
    "examples": (1_000, 10_000, 100_000, 1_000_000, 10_000_000),
}
HOOKS = "hooks"
NAMES = {
    "batch": "batch size",
    "parameters": "parameters",
    "replicas": "replicas, a batch of 384",
    "examples": "examples",
}
QUIET = {"train.duration": "1000000 steps", "log.every": "1000000 steps", "log.histograms_every": "", "eval.every": ""}
QUIET |= {"log.images": 0, "checkpoint.every": "", "train.compile": "xla"}
TURN_SECONDS = 0.25
FEATURES, CLASSES = 16, 10


@dataclasses.dataclass(frozen=True)
class Row:
    """One size of a piece.

    Attributes:
      milliseconds: of a step, [repetitions].
      batch: examples of a step.
    """

    piece: str
    size: int
    batch: int
    milliseconds: list[float]

    @property
    def median(self) -> float:
        """Milliseconds of a step."""
        return statistics.median(self.milliseconds)

    def line(self) -> str:
        """A row of the table."""
        shown = f"{self.median:.3f} ({min(self.milliseconds):.3f} to {max(self.milliseconds):.3f})"
        rates = f"{1e3 / self.median:,.0f} | {1e3 * self.batch / self.median:,.0f}"
        return f"| {self.piece} | {self.size:,} | {self.batch:,} | {shown} | {rates} |"


def width_for(parameters: int, inputs: int, outputs: int) -> int:
    """Units of each of two hidden dense layers, so that the network has about so many parameters.

    inputs * w + w + w * w + w + w * outputs + outputs = parameters, solved for w.
    """
    half = (inputs + outputs + 2) / 2
    return max(1, round(-half + (half * half + parameters - outputs) ** 0.5))


def small(examples: int) -> dict[str, np.ndarray]:
    """{'image': uint8 [examples, 16], 'label': int32 [examples]}, made up."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (examples, FEATURES), np.uint8),
        "label": rng.integers(0, CLASSES, examples, np.int32),
    }


def build(values: Mapping[str, Any], functions: Mapping[str, Callable] | None = None) -> Run:
    """The workload `mlp` with other settings, or with other functions of its file."""
    loaded = load.load(mlp.__file__)
    loaded = dataclasses.replace(loaded, functions={**loaded.functions, **(functions or {})})
    final = config.finalize(override(loaded.get_config(), {**QUIET, **values}))
    return build_run(loaded, final, Path("nowhere"), time.monotonic())


def with_parameters(count: int) -> Run:
    """The workload `mlp`, two hidden layers of it, with about so many parameters."""
    width = width_for(count, 784, CLASSES)

    def make_model(cfg):
        dense = [keras.layers.Dense(width, activation="relu") for _ in range(2)]
        return keras.Sequential([keras.Input([784]), *dense, keras.layers.Dense(CLASSES)])

    return build({}, {"make_model": make_model})


def with_examples(count: int) -> Run:
    """A network of 16-128-10 over so many examples, as they are in memory: only the indices are many."""
    source = Source(small(count), origin="made up")

    def make_data(cfg, split):
        def to_float(batch):
            return {**batch, "image": keras.backend.cast(batch["image"], "float32") * (1 / 255)}

        taken = source if split == "train" else Source(source.take(np.arange(1000)), origin="made up")
        return make_batches(taken, cfg, training=split == "train", transform=to_float)

    def make_model(cfg):
        layers = [keras.layers.Dense(128, activation="relu"), keras.layers.Dense(CLASSES)]
        return keras.Sequential([keras.Input([FEATURES]), *layers])

    return build({}, {"make_data": make_data, "make_model": make_model})


def with_replicas(count: int) -> Run:
    """The workload `mlp`, a batch shared by so many of four virtual devices."""
    devices = {"runtime.strategy": "mirrored", "runtime.virtual_devices": max(SIZES["replicas"])}
    return build({**devices, "runtime.devices": count, "data.batch_size": 384, "eval.batch_size": 768})


MAKE: dict[str, Callable[[int], Run]] = {
    "batch": lambda size: build({"data.batch_size": size}),
    "parameters": with_parameters,
    "replicas": with_replicas,
    "examples": with_examples,
}


def turn(run: Run, steps: int) -> float:
    """Milliseconds of a step, of `steps` in blocks."""
    start, left = time.perf_counter(), steps
    while left:
        k = min(left, run.train_block.block_steps)
        run.train_block(k)
        left -= k
    return 1e3 * (time.perf_counter() - start) / steps


def measure(piece: str, repetitions: int) -> list[Row]:
    """Rows of all sizes of a piece."""
    runs = {size: MAKE[piece](size) for size in SIZES[piece]}
    steps = {}
    for size, run in runs.items():
        turn(run, 1)  # compiles
        turn(run, 2)
        steps[size] = max(1, min(5_000, int(1e3 * TURN_SECONDS / turn(run, 3))))
        steps[size] = max(1, int(1e3 * TURN_SECONDS / turn(run, steps[size])))
    took: dict[int, list[float]] = {size: [] for size in runs}
    for repetition in range(repetitions):
        for size in runs if repetition % 2 else reversed(runs):
            took[size].append(turn(runs[size], steps[size]))
    sizes = {
        size: sum(variable.shape.num_elements() for variable in run.model.trainable_variables)
        if piece == "parameters"
        else size
        for size, run in runs.items()
    }
    return [Row(piece, sizes[size], runs[size].data.batch_size, took[size]) for size in runs]


def table(rows: Sequence[Row], hooks: Sequence[growth_hooks.Cost]) -> list[str]:
    """All that was measured, in Markdown."""
    lines = [
        "| what grows | size | batch | ms a step: median (least to most) | steps/s | examples/s |",
        "|---" * 6 + "|",
    ]
    lines += [row.line() for row in rows]
    if hooks:
        lines += ["", *growth_hooks.HEAD, *(cost.line() for cost in hooks)]
    return lines


def panels(rows: Sequence[Row]) -> list[Panel]:
    """A chart for each piece that was measured."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(row.piece, []).append((row.size, row.median))
    return [Panel(NAMES[piece], "ms a step", points) for piece, points in found.items()]


def read(path: Path | None) -> tuple[list[Row], list[growth_hooks.Cost]]:
    """What earlier calls measured."""
    if path is None or not path.exists():
        return [], []
    stored = json.loads(path.read_text())
    return [Row(**row) for row in stored["rows"]], [growth_hooks.Cost(**cost) for cost in stored["hooks"]]


def write(path: Path, rows: Sequence[Row], hooks: Sequence[growth_hooks.Cost]) -> None:
    """For the next call."""
    stored = {"rows": [dataclasses.asdict(row) for row in rows], "hooks": [dataclasses.asdict(cost) for cost in hooks]}
    path.write_text(json.dumps(stored, indent=1) + "\n")


def merged(earlier: Sequence[Any], new: Sequence[Any], key: Callable[[Any], Any], order: Sequence[Any]) -> list[Any]:
    """All of them by `order` of their keys' first part, as they came; a new one takes the place of those of its key."""
    replaced = {key(item) for item in new}
    items = [*(item for item in earlier if key(item) not in replaced), *new]
    return sorted(items, key=lambda item: order.index(key(item)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags, checked."""
    parser = argparse.ArgumentParser(description="What a step costs as something grows.")
    parser.add_argument("--pieces", default=",".join([*SIZES, HOOKS]), help=",".join([*SIZES, HOOKS]))
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help=f"of hooks: {','.join(WORKLOADS)}")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file that keeps the rows")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    options = parser.parse_args(arguments)
    for flag, known in (("pieces", [*SIZES, HOOKS]), ("workloads", WORKLOADS)):
        names = [name for name in getattr(options, flag).split(",") if name]
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--{flag}: there is no {', '.join(unknown)}. Known: {', '.join(known)}")
        setattr(options, flag, names)
    return options


def main(arguments: Sequence[str]) -> None:
    """Measures what was asked for; prints the machine and a table."""
    options = parse(arguments)
    packages = environment()["packages"]
    print(machine(), ", ".join(f"{name} {packages[name]}" for name in ("tensorflow", "tf-keras", "numpy")), sep="\n")
    rows, hooks = read(options.json)
    # Replicas first: virtual devices are made before TensorFlow starts.
    for piece in sorted(set(options.pieces) - {HOOKS}, key=lambda piece: piece != "replicas"):
        earlier = [row for row in rows if row.piece != piece]
        rows = merged(earlier, measure(piece, options.repetitions), lambda row: row.piece, list(SIZES))
    if HOOKS in options.pieces:
        new = [growth_hooks.measure(workload, options.repetitions) for workload in options.workloads]
        hooks = merged(hooks, new, lambda cost: cost.workload, WORKLOADS)
    if options.json:
        write(options.json, rows, hooks)
    if options.plot:
        options.plot.write_text(svg(panels(rows)))
    print("\n" + "\n".join(table(rows, hooks)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""What it costs to find the place in the data: resuming at step 10 and at step 1,000,000.

    python tests/benchmarks/resume_cost.py

A made-up source of 100,000 examples, on the device and streamed. `start` is the time from building a run to the end of
its first step: model, restored checkpoint, compilation, the batch. `first batch` is only restoring and that step, in a
run that has compiled already. The two steps take turns; medians, in seconds of the clock and of our own processor time,
which other processes do not change.
"""

import argparse
import dataclasses
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from framework import config
from framework.config.overrides import override
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.experiment import load
from framework.run import build as run
from framework.run.environment import environment
from framework.run.run import Run
from tests import augmented

STEPS = (10, 1_000_000)
EXAMPLES = 100_000


def build(placement: str, mode: str, workdir: Path, image: np.ndarray) -> Run:
    """The experiment with everything on, over a larger source."""

    def make_data(cfg, split):
        source = Source({"image": image, "label": np.zeros(EXAMPLES, np.int32)}, origin="noise")
        training = split == "train"
        return make_batches(source, cfg, training=training, transform=augmented.augment if training else None)

    loaded = load.load(augmented.__file__)
    loaded = dataclasses.replace(loaded, functions={**loaded.functions, "make_data": make_data})
    values = {"data.batch_size": 128, "data.placement": placement, "train.compile": mode}
    values |= {"train.duration": "1000100 steps", "train.block_steps": 1}
    return run.build_run(loaded, config.finalize(override(loaded.get_config(), values)), workdir, time.monotonic())


def seconds(work, step: int) -> tuple[float, float]:
    """Of the clock and of our processor time; earlier runs are cleared away before."""
    gc.collect()
    wall, own = time.perf_counter(), time.process_time()
    work(step)
    return time.perf_counter() - wall, time.process_time() - own


def measure(placement: str, mode: str, repetitions: int, folder: Path) -> None:
    """Prints two rows of the table."""
    image = np.random.default_rng(0).normal(size=(EXAMPLES, augmented.SIDE, augmented.SIDE)).astype(np.float32)
    workdirs = {step: folder / f"{placement}-{step}" for step in STEPS}
    compiled = build(placement, mode, folder, image)
    for step, workdir in workdirs.items():
        compiled.state.step.assign(step)
        dataclasses.replace(compiled, workdir=workdir).checkpoints.save(compiled.state, {})

    def go_on(built: Run, step: int) -> None:
        dataclasses.replace(built, workdir=workdirs[step]).restore()
        built.train_block(1)
        assert int(built.state.step) == step + 1

    def start(step: int) -> None:
        go_on(build(placement, mode, workdirs[step], image), step)

    def first_batch(step: int) -> None:
        go_on(compiled, step)

    for name, work, times in (("start", start, repetitions), ("first batch", first_batch, 3 * repetitions)):
        work(STEPS[0])  # what the process does only once
        took: dict[int, list[tuple[float, float]]] = {step: [] for step in STEPS}
        for repetition in range(times):
            for step in STEPS if repetition % 2 else reversed(STEPS):
                took[step].append(seconds(work, step))
        wall, own = ({step: statistics.median(t[kind] for t in took[step]) for step in STEPS} for kind in (0, 1))
        early, late = STEPS
        print(
            f"| {placement} | {mode} | {name} | {wall[early]:.4f} | {wall[late]:.4f} | {wall[late] / wall[early]:.2f} |"
            f" {own[early]:.4f} | {own[late]:.4f} | {own[late] / own[early]:.2f} |",
            flush=True,
        )


def main() -> None:
    """Prints the machine and a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--mode", default="graph")
    options = parser.parse_args()
    facts = environment()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}, TensorFlow {facts['packages']['tensorflow']}")
    print("| data | compile | what | step 10, s | step 1,000,000, s | ratio | own, s | own, s | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for placement in ("resident", "stream"):
            measure(placement, options.mode, options.repetitions, Path(folder))


if __name__ == "__main__":
    main()

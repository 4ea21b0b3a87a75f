"""What a checkpoint costs the training of 50 million parameters: beside it, and waited for.

    python tests/benchmarks/checkpoint_async.py

Dense layers with Adam, 600 MB of state. Each repetition times 20 steps, 20 with an asynchronous save before the first,
the wait for what is not yet written then, and a synchronous save; all are flushed to disk and hashed. A repetition
waits for a quiet machine, and does not count if other processes took more than `--others` of it.
"""

import argparse
import dataclasses
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import config, losses, paths
from framework.checkpoint.checkpoints import Checkpoints, write_state
from framework.config.overrides import override
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.experiment import load
from framework.run import build as run
from framework.run.environment import environment
from framework.run.run import Run

WIDTH, LAYERS, STEPS = 2672, 7, 20
PATIENCE_SECONDS = 3600


def build(mode: str, batch_size: int) -> Run:
    """Seven square layers."""

    def make_data(cfg, split):
        x = np.random.default_rng(0).normal(size=(4 * batch_size, WIDTH)).astype(np.float32)
        return make_batches(Source({"x": x}, origin="noise"), cfg, training=split == "train")

    def make_model(cfg):
        return keras.Sequential([keras.layers.Dense(WIDTH, "relu", use_bias=False) for _ in range(LAYERS)])

    def make_loss(cfg):
        def loss(model, batch, training):
            squares = tf.reduce_mean(tf.square(model(batch["x"], training=training) - batch["x"]), axis=1)
            term = losses.Term(tf.reduce_sum(squares * batch["weight"]), tf.reduce_sum(batch["weight"]))
            return {"squares": term}, {}

        return loss

    loaded = load.load("tests/tiny.py")
    functions = {name: loaded.functions[name] for name in ("get_config", "make_schedule")}
    functions |= {"make_data": make_data, "make_model": make_model, "make_loss": make_loss}
    values = {"data.batch_size": batch_size, "eval.batch_size": batch_size, "train.duration": "100000 steps"}
    values |= {"train.compile": mode, "checkpoint.best_metric": "", "train.block_steps": STEPS}
    final = config.finalize(override(loaded.get_config(), values))
    return run.build_run(dataclasses.replace(loaded, functions=functions), final, Path("nowhere"), time.monotonic())


def write_bundle(state, folder: Path) -> None:
    """A checkpoint as TensorFlow writes it, flushed and hashed."""
    variables = paths.variables(state)
    tf.raw_ops.SaveV2(
        prefix=str(folder / "state"),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[variable.read_value() for variable in variables.values()],
    )
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            hashlib.file_digest(file, "sha256")


def compare_formats(state, folder: Path, repetitions: int) -> None:
    """Prints wall and processor time of a bundle and of a file of raw bytes, both flushed and hashed."""
    took = {"TensorFlow bundle": [], "arrays.bin": []}
    for _ in range(repetitions):
        for name, write in zip(took, (write_bundle, lambda state, to: write_state(state, {}, to)), strict=True):
            to = folder / name
            to.mkdir()
            start = time.perf_counter(), time.process_time()
            write(state, to)
            took[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            shutil.rmtree(to)
    for name, pairs in took.items():
        wall, processor = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{name}: {wall:.3f} s, {processor:.3f} s of a processor")


def seconds(work) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Others:
    """The share of the processors that other processes took since the last look."""

    def __init__(self) -> None:
        self._last = self._read()

    def _read(self) -> np.ndarray:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
        idle = (fields[3] + fields[4]) / ticks
        return np.array([sum(fields) / ticks, idle, time.process_time()])

    def share(self) -> float:
        """0 .. 1."""
        now = self._read()
        whole, idle, own = now - self._last
        self._last = now
        return max(0.0, (whole - idle - own) / whole) if whole else 0.0

    def wait(self, share: float) -> None:
        """Returns after a quiet second, or gives up."""
        self.share()
        for _ in range(PATIENCE_SECONDS):
            time.sleep(1)
            if self.share() <= share:
                return
        sys.exit(f"other processes kept the machine busy for {PATIENCE_SECONDS} seconds")


def main() -> None:
    """Prints a line a repetition, then medians and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="graph")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--others", type=float, default=0.1, help="share of the machine that others may take, 0 .. 1")
    parser.add_argument("--folder", default=None, help="on the disk to be measured; a temporary one by default")
    options = parser.parse_args()
    built = build(options.mode, options.batch_size)
    state, block = built.state, built.train_block
    size = sum(variable.shape.num_elements() * variable.dtype.size for variable in paths.variables(state).values())
    facts = environment()
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}, TensorFlow {facts['packages']['tensorflow']}")
    print(f"{sum(v.shape.num_elements() for v in paths.trainable(built.model).values()):,} parameters, {size:,} bytes")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        beside = Checkpoints(Path(folder, "asynchronous"), keep=1)
        waited = Checkpoints(Path(folder, "synchronous"), keep=1, asynchronous=False)

        def steps(save: bool = False) -> None:
            if save:
                beside.save(state, {})
            block(STEPS)

        def save_and_wait() -> None:
            waited.save(state, {})

        for warm_up in (steps, lambda: steps(save=True), save_and_wait):
            warm_up()
        rows, others = [], Others()
        while len(rows) < options.repetitions:
            others.wait(options.others)
            took = {}
            for kind in ("plain", "saving") if len(rows) % 2 else ("saving", "plain"):
                took[kind] = seconds(lambda kind=kind: steps(save=kind == "saving"))
                if kind == "saving":
                    took["left"] = seconds(beside.steps)  # returns when the write has ended
            took["synchronous"] = seconds(save_and_wait)
            took["others"] = others.share()
            rows += [took] if took["others"] <= options.others else []
            print("  ".join(f"{name} {value:.3f}" for name, value in took.items()), flush=True)
        beside.close()
        waited.close()
        compare_formats(state, Path(folder), options.repetitions)
    plain, left, synchronous = (
        statistics.median(row[name] for row in rows) for name in ("plain", "left", "synchronous")
    )
    extra = statistics.median(row["saving"] - row["plain"] for row in rows)
    print(f"20 steps {plain:.3f} s, with an asynchronous save +{extra:.3f} s, synchronous save {synchronous:.3f} s")
    print(
        f"ratio {extra / synchronous:.3f}; with the wait for what is not yet written, {left:.3f} s,"
        f" {(extra + left) / synchronous:.3f}"
    )


if __name__ == "__main__":
    main()

"""Peak memory and time of a training step: activations kept or computed again, one piece or micro-batches.

    python tests/benchmarks/remat_memory.py --repeats=3

A residual MLP of 24 blocks whose activations outweigh its parameters by far. Each variant runs in processes of its own,
one for memory and one for time; variants alternate, and the first step, which compiles, is not measured. Peak: the
largest resident size during one step minus that right before it, by the kernel's own count (Linux). For it,
TensorFlow's pooling of memory is off, which makes steps slower. A Markdown table goes to standard output.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HIDDEN, DEPTH, BATCH = 128, 1024, 24, 2048
TIMED = 3  # steps
# (activations, batch, micro_batches)
VARIANTS = (("kept", BATCH, 1), ("again", BATCH, 1), ("kept", BATCH, 4), ("kept", BATCH // 4, 1), ("kept", BATCH, 8))
MODES = ("graph", "xla")


def measure(activations: str, batch: int, micro_batches: int, mode: str) -> dict[str, float]:
    """Megabytes and seconds of one step, in this process."""
    run = build(activations, batch, micro_batches, mode)
    run.train_block(1)
    before = reset_peak()
    run.train_block(1)
    megabytes = (status("VmHWM") - before) / 1024
    seconds = []
    for _ in range(TIMED):
        started = time.perf_counter()
        run.train_block(1)
        seconds.append(time.perf_counter() - started)
    return {"megabytes": megabytes, "seconds": statistics.median(seconds)}


def status(key: str) -> int:
    """Kilobytes of this process, by /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def reset_peak() -> int:
    """Forgets the largest resident size so far; returns the present one, in kilobytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def build(activations: str, batch: int, micro_batches: int, mode: str):
    """The run, put together as launch.py would."""
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    from framework import config, losses, optim
    from framework.config.overrides import override
    from framework.data.batches import make_batches
    from framework.data.sources import Source
    from framework.experiment import load
    from framework.run import build as run

    def make_data(cfg, split):
        x = np.random.default_rng(0).normal(size=(BATCH, WIDTH)).astype(np.float32)
        return make_batches(Source({"x": x}, origin="made up"), cfg, training=split == "train")

    class Block(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.wide = keras.layers.Dense(HIDDEN, activation="gelu")
            self.narrow = keras.layers.Dense(WIDTH)

        def call(self, x):
            return x + self.narrow(self.wide(x))

    def make_loss(cfg):
        def loss(model, batch, training):
            squares = tf.reduce_mean(tf.square(model(batch["x"], training=training)), axis=1)
            return {"square": losses.Term(tf.reduce_sum(squares * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    functions = {
        "get_config": lambda arg: config.base_config(),
        "make_data": make_data,
        "make_model": lambda cfg: keras.Sequential([Block() for _ in range(DEPTH)]),
        "make_loss": make_loss,
        "make_schedule": optim.make_schedule,
    }
    settings = {
        "data.batch_size": batch,
        "eval.batch_size": batch,
        "train.duration": "100 steps",
        "train.compile": mode,
        "train.micro_batches": micro_batches,
        "train.remat": "block.*" if activations == "again" else "",
        "optimizer.name": "sgd",
    }
    final = config.finalize(override(config.base_config(), settings))
    return run.build_run(load.Experiment(Path(__file__), "", functions), final, None, time.monotonic())


# oneDNN brings an allocator that keeps what is freed; and every large buffer is to be a mapping of its own, which is
# given back to the system at once.
UNPOOLED = {"TF_ENABLE_ONEDNN_OPTS": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}


def in_own_processes(*variant: object) -> dict[str, float]:
    """The memory of `variant` in one, its time in another."""
    found = {}
    for key, environment in (("megabytes", UNPOOLED), ("seconds", {})):
        command = [sys.executable, __file__, "--variant", json.dumps(variant)]
        done = subprocess.run(
            command, env={**os.environ, **environment}, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        found[key] = json.loads(done.stdout.splitlines()[-1])[key]
    return found


def tables(repeats: int) -> None:
    """Measures all variants in turn and prints a table."""
    import importlib.metadata

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "tf_keras"))
    print(f"{versions}; Python {platform.python_version()}; {os.cpu_count()} cores, {processor()}")
    found: dict[tuple[object, ...], list[dict[str, float]]] = {}
    for repeat in range(repeats):
        for mode in MODES:
            for variant in VARIANTS:
                found.setdefault((*variant, mode), []).append(in_own_processes(*variant, mode))
                print(f"{repeat + 1}/{repeats} {mode} {variant}: {found[*variant, mode][-1]}", file=sys.stderr)
    print("\n| compile | activations | batch | micro-batches | peak MB | of the first | step s | of the first |")
    print("|---|---|---|---|---|---|---|---|")
    for mode in MODES:
        first = medians(found[*VARIANTS[0], mode])
        for activations, batch, micro_batches in VARIANTS:
            megabytes, seconds = medians(found[activations, batch, micro_batches, mode])
            print(
                f"| {mode} | {activations} | {batch} | {micro_batches} | {megabytes:.0f} | {megabytes / first[0]:.2f}"
                f" | {seconds:.2f} | {seconds / first[1]:.2f} |"
            )


def medians(runs: list[dict[str, float]]) -> tuple[float, float]:
    """Of megabytes and of seconds."""
    return tuple(statistics.median(run[key] for run in runs) for key in ("megabytes", "seconds"))


def processor() -> str:
    """What the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        sys.path.insert(0, str(ROOT))
        print(json.dumps(measure(*arguments.variant)))
    else:
        tables(arguments.repeats)

"""The constants of a machine that the cost model of SCALING.md asks for, and the steps that it is checked against.

    python tests/benchmarks/scaling_measured.py

Step time against batch size on one device; on 1, 2 and 4 virtual devices and 2 local workers, which share the cores;
and the time of an all-reduce against its bytes. Every device has one thread (`runtime.threads=1`). All sides of a table
take turns in every repetition; medians with least and greatest, of the clock and of the processor time of all.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import mirrored_overhead
import tensorflow as tf

import framework
from framework.distribute.replicas import Replicas
from framework.run.environment import environment
from framework.run.run import Run

WORKLOADS = {"cnn-graph": (16, 32, 64, 128), "mlp-graph": (32, 128, 512, 2048)}
KILOBYTES = (1, 400, 1_000, 2_600, 10_000, 40_000)
MOST_DEVICES = 4
WORKERS = 2


def build(workload: str, **settings) -> Run:
    """A run whose devices have one thread each."""
    name, steps, own = mirrored_overhead.WORKLOADS[workload]
    values = {**mirrored_overhead.QUIET, **own, "train.block_steps": steps, "runtime.threads": 1, **settings}
    return framework.build(name, values, "nowhere")


def on_devices(count: int) -> dict[str, object]:
    """Settings for so many virtual devices of a process that has MOST_DEVICES."""
    return {"runtime.strategy": "mirrored", "runtime.virtual_devices": MOST_DEVICES, "runtime.devices": count}


def timed(work) -> tuple[float, float]:
    """Seconds of the clock and of our processor time."""
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


def a_step(run: Run):
    """() -> seconds (clock, processor) of one step of a block."""
    steps = run.train_block.block_steps
    for _ in range(2):  # compiles; and what only a first call does
        run.train_block(steps)

    def measure() -> tuple[float, float]:
        wall, own = timed(lambda: run.train_block(steps))
        return wall / steps, own / steps

    return measure


def a_sum(replicas: Replicas, kilobytes: int):
    """() -> seconds (clock, processor) of the sum over replicas of a float32 vector that lies on each."""
    vectors = []
    for device in replicas.devices:
        with tf.device(device):
            vectors.append(tf.Variable(tf.ones([250 * kilobytes])))
    times = max(4, 4_000 // (kilobytes + 100))

    def step(done: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([value]):  # one after the other
            total = replicas.all_reduce_sum(lambda index: vectors[index - replicas.first].read_value())
        return done + 1, total[0]

    @tf.function(autograph=False)
    def run() -> tf.Tensor:
        start = (tf.constant(0), tf.constant(0.0))
        return tf.while_loop(lambda done, value: done < times, step, start, parallel_iterations=1)[1]

    assert float(run()) == replicas.count

    def measure() -> tuple[float, float]:
        wall, own = timed(run)
        return wall / times, own / times

    return measure


def in_turns(title: str, sides: dict, repetitions: int) -> None:
    """Prints a row for each of the sides, {name: () -> seconds (clock, processor)}."""
    print(f"\n| {title} | clock, ms | processor, ms |\n|---|---|---|")
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        for name in sides if repetition % 2 else reversed(sides):
            took[name].append(sides[name]())
    for name, pairs in took.items():
        cells = [
            f"{1e3 * statistics.median(t):.3f} ({1e3 * min(t):.3f} to {1e3 * max(t):.3f})"
            for t in zip(*pairs, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


class Workers:
    """Two processes of a cluster on 127.0.0.1 that wait for what to measure."""

    def __init__(self, workload: str) -> None:
        self._workload = workload

    def __enter__(self) -> "Workers":
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(WORKERS)]
        hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
        for s in sockets:
            s.close()
        self._processes = []
        for index in range(WORKERS):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, f"--worker={self._workload}"],
                    env={**os.environ, "TF_CONFIG": json.dumps(task)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.stdin.close()
            process.wait()

    def measure(self, kilobytes: int = 0) -> tuple[float, float]:
        """Seconds of a step, or of a sum: the longest of the clock, all processor time."""
        for process in self._processes:
            print(kilobytes, file=process.stdin, flush=True)
        found = [json.loads(process.stdout.readline()) for process in self._processes]
        return max(wall for wall, _ in found), sum(own for _, own in found)


def work(workload: str) -> None:
    """A worker: makes what it is asked for when it is asked the first time, and times it; 0 kB are a step."""
    run = build(workload, **{"runtime.strategy": "multi_worker"})
    known = {}
    for line in sys.stdin:
        kilobytes = int(line)
        if kilobytes not in known:
            known[kilobytes] = a_sum(run.replicas, kilobytes) if kilobytes else a_step(run)
        print(json.dumps(known[kilobytes]()), flush=True)


def main() -> None:
    """Prints the machine and the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--worker", help="the workload of a process of the local cluster")
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    facts = environment()
    versions = ", ".join(f"{name} {facts['packages'][name]}" for name in ("tensorflow", "tf-keras", "numpy"))
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}, Python {facts['python']}, {versions}")
    print(f"{options.repetitions} repetitions; load of the machine at the start {os.getloadavg()[0]:.1f}")
    many = build("mlp-graph", **on_devices(MOST_DEVICES))  # first: it makes the devices
    for workload, sizes in WORKLOADS.items():
        sides = {f"batch {size}": a_step(build(workload, **{"data.batch_size": size})) for size in sizes}
        in_turns(f"{workload}, one device", sides, options.repetitions)
    for workload in WORKLOADS:
        sides = {"one_device": a_step(build(workload))}
        sides |= {f"{n} virtual devices": a_step(build(workload, **on_devices(n))) for n in (1, 2, 4)}
        with Workers(workload) as workers:
            sides |= {f"{WORKERS} local workers": workers.measure}
            in_turns(f"{workload}, global batch 128", sides, options.repetitions)
    assert many.replicas.count == MOST_DEVICES
    two = build("mlp-graph", **on_devices(2)).replicas
    with Workers("mlp-graph") as workers:
        for kilobytes in KILOBYTES:
            sides = {"2 virtual devices": a_sum(two, kilobytes), "4 virtual devices": a_sum(many.replicas, kilobytes)}
            sides |= {f"{WORKERS} local workers": lambda size=kilobytes: workers.measure(size)}
            in_turns(f"sum of {kilobytes:,} kB", sides, options.repetitions)


if __name__ == "__main__":
    main()

"""What a step with a large table costs if its gradient is dense, and if it is the rows that were looked up.

    python tests/benchmarks/table_updates.py
    python tests/benchmarks/table_updates.py --rows 100000 1000000 --steps=5

A table of made-up numbers, width 32, of which a step looks up 2,048 random rows (and squares them), differentiates and
updates, in a graph, by the optimizers of the framework. `dense` makes a gradient as large as the table; `rows` is what
`optimizer.table_gradients=rows` has. It prints milliseconds of a step, the fastest of all, and how many gigabytes
table, slots and gradients take at the peak; those of the first line of a process, because later lines reuse memory.
"""

import argparse
import gc
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework.optim.adam import Adam
from framework.optim.optimizers import Optimizer
from framework.optim.sgd import Sgd
from framework.step.gradients import _dense, _each_row_once

WIDTH, LOOKED_UP = 32, 2048
OPTIMIZERS = {
    "sgd": lambda: Sgd(learning_rate=0.1),
    "momentum": lambda: Sgd(learning_rate=0.1, momentum=0.9),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1, jit_compile=False),
    "adam": lambda: Adam(learning_rate=0.01, jit_compile=False),
    "lazy_adam": lambda: Adam(learning_rate=0.01, lazy=True, jit_compile=False),
}
SIDES = {"dense": _dense, "rows": _each_row_once}


def measured(name: str, side: str, rows: int, steps: int) -> tuple[float, float]:
    """Returns milliseconds of a step, and gigabytes at the peak beyond those before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = _gigabytes("VmRSS")
    table = tf.Variable(tf.zeros([rows, WIDTH]), name="table")
    optimizer = Optimizer([(OPTIMIZERS[name](), {"table": table})])
    shape = table.shape

    @tf.function(autograph=False)
    def step(places: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table, places) - 1))
        optimizer.apply({"table": SIDES[side](tape.gradient(loss, table), shape)})

    random = np.random.default_rng(0)
    times = []
    for _ in range(steps + 1):
        places = tf.constant(random.integers(rows, size=LOOKED_UP))
        begin = time.perf_counter()
        step(places)
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times[1:]), _gigabytes("VmHWM") - start


def _gigabytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--steps", type=int, default=10)
    flags = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    print(f"{'rows':>10} {'optimizer':>10} {'gradient':>9} {'ms':>9} {'GB':>6}")
    for rows in flags.rows:
        for name in flags.optimizers:
            for side in flags.sides:
                milliseconds, gigabytes = measured(name, side, rows, flags.steps)
                gc.collect()
                print(f"{rows:10} {name:>10} {side:>9} {milliseconds:9.2f} {gigabytes:6.2f}", flush=True)


if __name__ == "__main__":
    main()

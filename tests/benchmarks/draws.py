"""Draws of `framework.rng` and its dropout beside TensorFlow's own, which have a state: ms of each, and their ratio.

    python tests/benchmarks/draws.py
    python tests/benchmarks/draws.py --sizes=16384 --repetitions=21

Each side makes 20 draws in one compiled `tf.while_loop`, so that what a call costs is small. Both take turns in one
process, in an order that is reversed each time. The ratio is the median over repetitions of ours over theirs, with a
bootstrap interval of 95 %.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

from framework import layers, rng
from framework.compile import Compiled
from tests.benchmarks import compare
from tests.benchmarks.ratios import interval

EXAMPLES, DRAWS, RATE = 128, 20, 0.1
SIZES = (2**14, 2**18, 2**22)
SECONDS = 0.1  # of a turn, as far as one call is not longer

# x, float32 [examples, elements of each] -> what is drawn, as many elements
Draw = Callable[[tf.Tensor], tf.Tensor]


class Pair(NamedTuple):
    """What is drawn, by us and by an op that has a state."""

    name: str
    ours: Draw
    theirs_name: str
    theirs: Draw
    dtype: tf.DType = tf.float32


def pairs() -> list[Pair]:
    """All that are compared."""
    generator = tf.random.Generator.from_seed(1)
    dropout = layers.Dropout(RATE)

    def our_dropout(x: tf.Tensor) -> tf.Tensor:
        return dropout(x, training=True)

    def with_generator(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.experimental.general_dropout(x, RATE, generator.uniform)

    return [
        Pair(
            "`rng.random_bits`",
            lambda x: rng.random_bits("words", *x.shape),
            "`Generator.uniform_full_int`",
            lambda x: generator.uniform_full_int(x.shape, tf.uint32),
            tf.uint32,
        ),
        Pair(
            "`rng.uniform`",
            lambda x: rng.uniform("uniform", *x.shape),
            "`tf.random.uniform`",
            lambda x: tf.random.uniform(x.shape),
        ),
        Pair("`layers.Dropout`", our_dropout, "`tf.nn.dropout`", lambda x: tf.nn.dropout(x, RATE)),
        Pair("`layers.Dropout`", our_dropout, "`general_dropout`, Generator", with_generator),
    ]


def many(draw: Draw, dtype: tf.DType, mode: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """x -> the last of DRAWS draws, each at a step of its own; compiled by `mode`, 'graph' or 'xla'."""

    def loop(x: tf.Tensor) -> tf.Tensor:
        def body(step: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with rng.scope(rng.key(0), step):
                return step + 1, draw(x)

        start = (tf.constant(0, tf.int64), tf.zeros(x.shape, dtype))
        return tf.while_loop(lambda step, _: step < DRAWS, body, start, parallel_iterations=1)[1]

    return Compiled(loop, mode, "draws")


def milliseconds(call: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, times: int) -> float:
    """Of one draw."""
    begin = time.perf_counter()
    for _ in range(times):
        call(x)
    return 1e3 * (time.perf_counter() - begin) / (times * DRAWS)


def measure(pair: Pair, mode: str, elements: int, repetitions: int) -> str:
    """A row of the table."""
    x = tf.random.stateless_normal([EXAMPLES, elements // EXAMPLES], (1, 2))
    sides = [many(draw, pair.dtype, mode) for draw in (pair.ours, pair.theirs)]
    once = 0.0
    for call in sides:
        milliseconds(call, x, 1)  # compiles
        once = max(once, milliseconds(call, x, 1) * DRAWS / 1e3)
    times = max(1, int(SECONDS / once))
    took = []
    for repetition in range(repetitions):
        order = (0, 1) if repetition % 2 else (1, 0)
        turn = {side: milliseconds(sides[side], x, times) for side in order}
        took.append([turn[0], turn[1]])
    ours, theirs = np.array(took).T
    low, high = interval(ours / theirs)
    ratio = f"{np.median(ours / theirs):.2f} [{low:.2f}, {high:.2f}]"
    cells = (pair.name, pair.theirs_name, mode, f"{elements:,}", f"{statistics.median(ours):.4f}")
    return f"| {' | '.join(cells)} | {statistics.median(theirs):.4f} | {ratio} |"


def main() -> None:
    """Prints the machine and the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="elements, multiples of 128")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(f"{compare.machine()}; TensorFlow {tf.__version__}; {options.repetitions} repetitions\n")
    print("| ours | theirs | compiled | elements | ours, ms | theirs, ms | ratio |\n" + "|---" * 7 + "|")
    for pair in pairs():
        for mode in ("graph", "xla"):
            for size in map(int, options.sizes.split(",")):
                print(measure(pair, mode, size, options.repetitions), flush=True)


if __name__ == "__main__":
    main()

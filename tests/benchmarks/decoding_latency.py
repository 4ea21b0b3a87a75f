"""Milliseconds to decode one word: eager execution beside a graph and XLA, greedy and by beam search.

    python tests/benchmarks/decoding_latency.py
    python tests/benchmarks/decoding_latency.py --lengths=8 --precision=float32 --repetitions=5

The model is that of `experiments/g2p_transformer.py` (4 + 4 layers of width 128, 30 letters, 42 phonemes) with random
weights. The logits of special tokens, of the end too, are lowered, so every search takes exactly `--lengths` positions,
and the time does not depend on the weights. A batch is one word. By turns, each turn some words of one side; the ratio
of a repetition is eager over compiled, the median with a bootstrap interval of 95 %. Tracing and compiling are not in
the times, but printed. On a machine that other programs use, --clock=processor says more.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

from experiments import g2p_transformer
from framework import decoding, layers, precision
from framework.compile import jit
from framework.data import text
from tests.benchmarks.compare import machine
from tests.benchmarks.ratios import interval

LETTERS, PHONEMES = 30, 42  # symbols of CMUdict and special tokens, without stress
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_NEVER = -1e4  # a logit that no search takes


def make_search(dtype: str, length: int, method: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the search: letters int32 [1, letters] -> phonemes int32 [1, length]."""
    sizes = g2p_transformer.get_config("").model
    names = ("layers", "width", "heads", "feed_forward", "dropout")
    with precision.scope(dtype):
        tf.random.set_seed(0)
        model = layers.Transformer(
            LETTERS, PHONEMES, begin=text.BEGIN, max_length=64, **{name: sizes[name] for name in names}
        )
        model((tf.ones([1, 2], tf.int32), tf.ones([1, 2], tf.int32)))
    is_special = tf.range(PHONEMES) <= text.END

    def step(tokens: tf.Tensor, state: Any, position: tf.Tensor) -> tuple[tf.Tensor, Any]:
        logits, state = model.step(tokens, state, position)
        return tf.where(is_special, tf.constant(_NEVER, logits.dtype), logits), state

    def search(source: tf.Tensor) -> tf.Tensor:
        with precision.scope(dtype):
            state = model.start(source, length)
            return decoding.decode(step, state, text.BEGIN, text.END, length, method).ids[:, 0]

    return search


def milliseconds(
    search: Callable[[tf.Tensor], tf.Tensor], words: Sequence[tf.Tensor], clock: Callable[[], float]
) -> float:
    """Returns the mean time of a word, until its phonemes are on the host."""
    start = clock()
    for word in words:
        search(word).numpy()
    return 1000 * (clock() - start) / len(words)


def measured(dtype: str, length: int, method: Any, options: argparse.Namespace) -> dict[str, list[float]]:
    """Returns {side: milliseconds of a word, one a repetition}."""
    search = make_search(dtype, length, method)
    draws = np.random.default_rng(0).integers(4, LETTERS, size=(options.words, 1, options.letters))
    words = [tf.constant(word, tf.int32) for word in draws]
    sides = {"eager": search, "graph": tf.function(search, autograph=False), "xla": jit(search)}
    first = {}
    for side, fn in sides.items():
        before = time.perf_counter()
        ids = fn(words[0]).numpy()
        first[side] = time.perf_counter() - before
        assert ids.shape == (1, length) and (ids > text.END).all(), ids
    print(f"{dtype}, {method}, {length}: first call, s: {first}", file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for repetition in range(options.repetitions):
        for side in sides if repetition % 2 else reversed(sides):
            few = words[:: options.eager_share] if side == "eager" else words
            times[side].append(milliseconds(sides[side], few, CLOCKS[options.clock]))
    return times


def row(name: str, length: int, times: dict[str, list[float]]) -> str:
    """Returns a line of the table."""
    cells = [name, str(length), *(f"{statistics.median(of_side):.2f}" for of_side in times.values())]
    for side in ("graph", "xla"):
        ratios = np.array(times["eager"]) / np.array(times[side])
        low, high = interval(ratios)
        cells.append(f"{np.median(ratios):.1f} [{low:.1f}, {high:.1f}]")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bfloat16", help="of the experiment by default; or float32")
    parser.add_argument("--lengths", default="8,32", help="positions that are decoded")
    parser.add_argument("--letters", type=int, default=8, help="of a word, the end included")
    parser.add_argument("--words", type=int, default=20, help="of a turn")
    parser.add_argument("--eager_share", type=int, default=5, help="one word of so many is decoded eagerly")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: of all threads, beside other work")
    options = parser.parse_args()
    beam = g2p_transformer.get_config("").model
    methods = {
        "greedy": decoding.Greedy(),
        f"beam of {beam.beam}": decoding.Beam(beam.beam, length_penalty=beam.length_penalty),
    }
    print(f"{machine()}; TensorFlow {tf.__version__}")
    print(f"{options.precision}, one word of {options.letters} letters, {options.clock} time")
    print("| search | positions | eager, ms | graph, ms | XLA, ms | eager / graph [95 %] | eager / XLA [95 %] |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, method in methods.items():
        for length in map(int, options.lengths.split(",")):
            print(row(name, length, measured(options.precision, length, method, options)), flush=True)


if __name__ == "__main__":
    main()

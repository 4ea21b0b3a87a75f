"""Counter-based randomness: a draw depends on (seed, stream, step, example) alone, never on what ran before.

    with rng.scope(key, step, first_example=0):
        keep = rng.keep_mask('dropout', examples=tf.shape(x)[0], per_example=784, rate=0.2)   # bool [examples, 784]

The generator is Philox 4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), by the op of
TensorFlow that takes key and counter and gives the same words in eager, graph and XLA. Key = seed ^ hash(stream),
counter = (example, step). The words of each example start at a whole counter, so a replica with examples 64 to 127 of a
global batch draws exactly the words that one device would have drawn for them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from framework import compat, moved
from framework.compile import is_in_xla

_PHILOX = 1  # TensorFlow's number of the algorithm
_WORDS_PER_COUNT = 4  # uint32 that one counter gives
_HALVES_PER_COUNT = 8  # uint16 that one counter gives
# Constants of Philox 4x32-10; the multipliers by the place of the word that they multiply.
_ROUNDS = 10
_MULTIPLIERS = {0: 0xD2511F53, 2: 0xCD9E8D57}
_WEYL = (0x9E3779B9, 0xBB67AE85)

_Words = tuple[tf.Tensor, tf.Tensor]  # low and high word of a uint64


@dataclasses.dataclass(eq=False)
class _Scope:
    """What an open scope draws with; `calls` counts the draws of each stream."""

    key: tf.Tensor
    step: tf.Tensor
    first_example: Any
    calls: Counter[str]
    graph: Any  # in which it was opened; None outside of a trace


_local = threading.local()


def key(seed: int) -> int:
    """Returns the 64-bit generator key of a seed; nearby seeds have unrelated keys."""
    return int.from_bytes(hashlib.sha256(f"seed {seed}".encode()).digest()[:8], "little")


@contextlib.contextmanager
def scope(key: Any, step: Any, first_example: Any = 0) -> Iterator[None]:
    """Lets layers draw while it is open, which they may nowhere else. A scope belongs to one trace and one thread.

    Args:
      key: uint64 scalar, from `key(seed)`.
      step: int64 scalar, the global step.
      first_example: int scalar, index in the global batch of the first example of this replica or micro-batch.
    """
    outer = current()
    _local.scope = _Scope(_uint64(key), _uint64(step), first_example, Counter(), _graph())
    try:
        yield
    finally:
        _local.scope = outer


def random_bits(stream: str, examples: Any, per_example: int) -> tf.Tensor:
    """Draws uint32 words, uniform over all 2**32 values.

    Args:
      stream: name of what draws, e.g. a layer's path. A second call in one scope draws other words.
      examples: int scalar, number of examples.
      per_example: number of words for each.

    Returns:
      uint32 [examples, per_example].

    Raises:
      RuntimeError: there is no open scope.
    """
    counts = -(-per_example // _WORDS_PER_COUNT)
    stream_key, first, step = _counter(stream, counts)
    shape = tf.stack([examples, counts * _WORDS_PER_COUNT])
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=stream_key[tf.newaxis], counter=tf.stack([first, step]), alg=_PHILOX, dtype=tf.uint32
    )
    return words[:, :per_example]


def _counter(stream: str, counts: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns key, low and high half of the counter, uint64 scalars, of a draw of `counts` counters an example."""
    opened = current()
    if opened is None:
        raise RuntimeError(_outside(stream))
    _refuse_loop(stream, opened)
    call = opened.calls[stream]
    if not is_shape_inference():
        opened.calls[stream] += 1
    digest = hashlib.sha256(f"{stream}#{call}".encode()).digest()[:8]
    stream_key = tf.bitwise.bitwise_xor(opened.key, tf.constant(int.from_bytes(digest, "little"), tf.uint64))
    return stream_key, _uint64(opened.first_example) * tf.constant(counts, tf.uint64), opened.step


def _outside(stream: str) -> str:
    return (
        f"'{stream}' draws random numbers outside of rng.scope. The step opens one; in a test, write"
        " `with rng.scope(rng.key(0), step=0): layer(x, training=True)`."
    )


def _refuse_loop(stream: str, opened: _Scope) -> None:
    """Raises RuntimeError in a loop inside of the scope: all turns would get the words of the one draw in its trace."""
    graph = _graph()
    while graph is not opened.graph and hasattr(graph, "outer_graph"):
        if compat.is_loop_body(graph):
            raise RuntimeError(
                f"'{stream}' draws random numbers in a loop of TensorFlow (tf.while_loop, tf.map_fn, TimeDistributed),"
                " each turn of which would get the same. Draw before the loop, for all turns."
            )
        graph = graph.outer_graph


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def is_shape_inference() -> bool:
    """Returns whether Keras traces only to learn shapes, as Sequential does for each new batch size.

    Such draws are never used. Counting them would make the draws that are used depend on what ran before.
    """
    graph = _graph()
    while hasattr(graph, "outer_graph"):  # the branches of a condition are graphs in the graph
        if compat.is_scratch(graph):
            return True
        graph = graph.outer_graph
    return False


def current() -> Any:
    """Returns the open scope of this thread, for `entered`; None if there is none."""
    return getattr(_local, "scope", None)


@contextlib.contextmanager
def entered(outer: Any, start: Counter[str]) -> Iterator[None]:
    """Opens another thread's scope in this one: replicas trace in threads of their own, and draw as their step does.

    Args:
      outer: the other thread's `current()`.
      start: its `save_counters()`.
    """
    before = current()
    _local.scope = None if outer is None else dataclasses.replace(outer, calls=start.copy())
    try:
        yield
    finally:
        if outer is not None:
            outer.calls |= _local.scope.calls
        _local.scope = before


def is_open() -> bool:
    """Returns whether a scope is open: a step is being traced or run."""
    return current() is not None


def save_counters() -> Counter[str]:
    """Returns how often each stream has drawn in the open scope; empty without one."""
    opened = current()
    return Counter() if opened is None else opened.calls.copy()


@contextlib.contextmanager
def replay_from(start: Counter[str]) -> Iterator[None]:
    """Counts draws from saved counters on, so that a second computation draws the same words as the first.

    On exit each stream continues at the higher of its two counts.
    """
    opened = current()
    if opened is None:
        yield
        return
    before = opened.calls
    opened.calls = start.copy()
    try:
        yield
    finally:
        opened.calls |= before


@contextlib.contextmanager
def at_example(first_example: Any) -> Iterator[None]:
    """Narrows the open scope to some of its examples, such as a micro-batch.

    Args:
      first_example: int scalar, index of the first of them among the examples of the scope.
    """
    with _beginning_at(lambda first: first + _uint64(first_example)):
        yield


@contextlib.contextmanager
def of_batch() -> Iterator[None]:
    """Turns the open scope into one of the whole batch: every replica and micro-batch draws the same."""
    with _beginning_at(tf.zeros_like):
        yield


@contextlib.contextmanager
def of_rows(rows: int) -> Iterator[None]:
    """Turns the open scope into one whose examples are rows: `rows` for each example, those of one in a row."""
    with _beginning_at(lambda first: first * tf.constant(rows, tf.uint64)):
        yield


@contextlib.contextmanager
def _beginning_at(place: Callable[[tf.Tensor], tf.Tensor]) -> Iterator[None]:
    outer = current()
    if outer is None:
        yield
        return
    first = place(_uint64(outer.first_example))
    _local.scope = dataclasses.replace(outer, first_example=first, calls=outer.calls.copy(), graph=_graph())
    try:
        yield
    finally:
        outer.calls |= _local.scope.calls
        _local.scope = outer


def uniform(stream: str, examples: Any, per_example: int) -> tf.Tensor:
    """Draws float32 [examples, per_example] in [0, 1): multiples of 2**-24, by exact arithmetic on words."""
    top = tf.bitwise.right_shift(random_bits(stream, examples, per_example), tf.constant(8, tf.uint32))
    return tf.cast(top, tf.float32) * (2.0**-24)


def normal(
    stream: str, examples: Any, per_example: int, stddev: float = 1.0, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Draws normal numbers of mean 0, [examples, per_example]: sums of two quantiles, looked up by halves of a word.

    Logarithms and cosines have other bits in XLA than in a graph; additions have the same. No number is further than
    6 standard deviations from 0.
    """
    table = tf.constant(_quantiles() * (stddev / 2**0.5), dtype)
    halves = tf.cast(random_bits16(stream, examples, 2 * per_example), tf.int32)
    pairs = tf.reshape(tf.gather(table, halves), [-1, per_example, 2])
    return pairs[..., 0] + pairs[..., 1]


@functools.cache
def _quantiles() -> np.ndarray:
    """Returns the quantiles of a normal distribution of variance 1 at 2**16 equal steps, float64.

    All are multiples of 2**-20: a machine whose logarithm rounds otherwise gets the same.
    """
    lower = [statistics.NormalDist().inv_cdf((i + 0.5) / 2**16) for i in range(2**15)]
    table = np.concatenate([lower, -np.array(lower[::-1])])
    return np.asarray(np.round(table / table.std() * 2**20) / 2**20)


def random_bits16(stream: str, examples: Any, per_example: int) -> tf.Tensor:
    """Draws uint16 [examples, per_example], uniform over all 2**16 values: the low half of each word, then the high."""
    counts = -(-per_example // _HALVES_PER_COUNT)
    halves = tf.bitcast(random_bits(stream, examples, counts * _WORDS_PER_COUNT), tf.uint16)  # copies nothing
    return tf.reshape(halves, [examples, counts * _HALVES_PER_COUNT])[:, :per_example]


def bits_of_index(stream: str, index: tf.Tensor) -> tf.Tensor:
    """Returns a uniform uint32 word for each index: a function of (seed, stream, index), the same at every step.

    Args:
      stream: name of what draws.
      index: int64, any shape, at least 0: the numbers of examples in their data, not their places in a batch.

    Raises:
      RuntimeError: there is no open scope.
    """
    opened = current()
    if opened is None:
        raise RuntimeError(_outside(stream))
    digest = hashlib.sha256(f"{stream} of an index".encode()).digest()[:8]
    low, high = _words_of(_xor(opened.key, tf.constant(int.from_bytes(digest, "little"), tf.uint64)))
    index_low, index_high = _words_of(tf.cast(index, tf.uint64))
    return mix(_xor(mix(_xor(mix(_xor(index_low, low)), high)), index_high))


def mix(x: tf.Tensor) -> tf.Tensor:
    """Applies MurmurHash3's 32-bit finaliser (Appleby, 2011), in which every input bit reaches every output bit."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(factor, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))


def keep_mask(stream: str, examples: Any, per_example: int, rate: float) -> tf.Tensor:
    """Draws bool [examples, per_example], False with probability `threshold(rate) / 2**16`, for dropout.

    The mask is `random_bits16(…) >= threshold(rate)`. In XLA programs TensorFlow's op would be most of the cost of
    dropout, so there Philox is written out in elementwise ops, with the same bits.
    """
    if is_in_xla():
        return _keep_mask_in_xla(stream, examples, per_example, threshold(rate))
    return random_bits16(stream, examples, per_example) >= tf.constant(threshold(rate), tf.uint16)


def _keep_mask_in_xla(stream: str, examples: Any, per_example: int, least: int) -> tf.Tensor:
    """Returns `keep_mask`: evaluates each counter once and keeps its eight comparisons as bits of one integer."""
    counts = -(-per_example // _HALVES_PER_COUNT)
    stream_key, first, step = _counter(stream, counts)
    bits: Any = 0
    for place, word in enumerate(_philox(_words_of(stream_key), _words_of(first), _words_of(step), examples * counts)):
        low = tf.bitwise.bitwise_and(word, tf.constant(0xFFFF, tf.uint32))
        high = tf.bitwise.right_shift(word, tf.constant(16, tf.uint32))
        for half, bit in ((low, 2 * place), (high, 2 * place + 1)):
            bits += tf.cast(half >= tf.constant(least, tf.uint32), tf.int32) * 2**bit
    # The remainder changes nothing here, but XLA takes it for expensive: it keeps the result, instead of computing it
    # and everything before it again for each of the eight bits.
    bits = tf.raw_ops.TruncateMod(x=bits, y=tf.constant(257))
    unpacked = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits[:, tf.newaxis], tf.range(_HALVES_PER_COUNT)), 1)
    return tf.reshape(unpacked > 0, [examples, counts * _HALVES_PER_COUNT])[:, :per_example]


def _philox(key: _Words, first: _Words, step: _Words, counts: Any) -> list[tf.Tensor]:
    """Returns the four words of each of `counts` counters, uint32 [counts] each, as TensorFlow's op computes them."""
    index = tf.cast(tf.range(counts), tf.uint32)
    low = first[0] + index
    carry = tf.cast(low < index, tf.uint32)
    c = [low, first[1] + carry, step[0] + tf.zeros_like(index), step[1] + tf.zeros_like(index)]
    for _ in range(_ROUNDS):
        (high_0, low_0), (high_2, low_2) = (_words_of_product(c[i], _MULTIPLIERS[i]) for i in (0, 2))
        c = [_xor(_xor(high_2, c[1]), key[0]), low_2, _xor(_xor(high_0, c[3]), key[1]), low_0]
        key = (key[0] + tf.constant(_WEYL[0], tf.uint32), key[1] + tf.constant(_WEYL[1], tf.uint32))
    return c


def _words_of_product(word: tf.Tensor, multiplier: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the high and low word of the product of a uint32 and a constant."""
    low, high = _words_of(tf.cast(word, tf.uint64) * tf.constant(multiplier, tf.uint64))
    return high, low


def _words_of(value: tf.Tensor) -> _Words:
    """Returns the low and high word of a uint64."""
    return tf.cast(value, tf.uint32), tf.cast(tf.bitwise.right_shift(value, tf.constant(32, tf.uint64)), tf.uint32)


def _xor(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(a, b)


def threshold(rate: float) -> int:
    """Returns t such that `random_bits16` is below t with the probability nearest to `rate` (0 <= rate < 1)."""
    return min(round(rate * 2**16), 2**16 - 1)


def name_streams(paths: dict[str, Any]) -> None:
    """Sets `rng_stream` of each object that draws, or of its generator, to the object's path in its model."""
    for path, layer in paths.items():
        drawing: Any
        for drawing in (layer, compat.generator_of(layer)):
            if hasattr(drawing, "rng_stream"):
                drawing.rng_stream = path


def _uint64(value: Any) -> tf.Tensor:
    return tf.cast(value, tf.uint64) if tf.is_tensor(value) else tf.constant(value, tf.uint64)


__getattr__ = moved.former_names(__name__)

"""Counter-based randomness: a draw is a pure function of (seed, stream, step, example), never of what ran before.

    with rng.scope(key, step, first_example=0):
        halves = rng.halves(stream='dropout', examples=tf.shape(x)[0], per_example=784)   # uint16 [examples, 784]
        keep = halves >= rng.threshold(0.2)

The generator is Philox 4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") through the op of
TensorFlow that takes key and counter, whose words are the same in eager, graph and XLA. Key = seed ^ hash(stream);
counter = (example, step). Each example's words start at a whole counter step, so a replica that holds examples 64..127
of a global batch draws exactly the words that one device would have drawn for them.
"""

import contextlib
import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_PHILOX = 1
_WORDS_PER_COUNT = 4


@dataclasses.dataclass
class _Scope:
    key: tf.Tensor
    step: tf.Tensor
    first_example: Any
    calls: Counter[str]


_local = threading.local()


def key(seed: int) -> int:
    """A 64-bit generator key from a seed: nearby seeds give unrelated keys."""
    return int.from_bytes(hashlib.sha256(f"seed {seed}".encode()).digest()[:8], "little")


@contextlib.contextmanager
def scope(key: Any, step: Any, first_example: Any = 0) -> Iterator[None]:
    """Opens the only place where layers may draw. It lives at trace time, in this thread.

    Args:
      key: uint64 scalar, from `key(seed)`.
      step: int64 scalar, the global step.
      first_example: int scalar, index in the global batch of this replica's (or micro-batch's) first example.
    """
    outer = current()
    _local.scope = _Scope(_uint64(key), _uint64(step), first_example, Counter())
    try:
        yield
    finally:
        _local.scope = outer


def words(stream: str, examples: Any, per_example: int) -> tf.Tensor:
    """Draws uint32 words, uniform over all 2**32 values.

    Args:
      stream: who draws, e.g. a layer's path. A second call with the same stream in one scope draws other words.
      examples: int scalar, how many examples are at hand.
      per_example: words for each.

    Returns:
      uint32 [examples, per_example].

    Raises:
      RuntimeError: there is no open scope.
    """
    opened = current()
    if opened is None:
        raise RuntimeError(
            f"'{stream}' draws random numbers outside of rng.scope. The step opens one; in a test, write"
            " `with rng.scope(rng.key(0), step=0): layer(x, training=True)`."
        )
    call = opened.calls[stream]
    if not _is_layout():
        opened.calls[stream] += 1
    digest = hashlib.sha256(f"{stream}#{call}".encode()).digest()[:8]
    counts = -(-per_example // _WORDS_PER_COUNT)
    first = _uint64(opened.first_example) * tf.constant(counts, tf.uint64)
    drawn = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=tf.stack([examples, counts * _WORDS_PER_COUNT]),
        key=tf.bitwise.bitwise_xor(opened.key, tf.constant(int.from_bytes(digest, "little"), tf.uint64))[tf.newaxis],
        counter=tf.stack([first, opened.step]),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    return drawn[:, :per_example]


def _is_layout() -> bool:
    """Whether Keras only lays a network out, in a graph of its own, as Sequential does for each new batch size.

    What is drawn there is never used, and must not number the draws that are: they would depend on what ran before.
    """
    return not tf.executing_eagerly() and tf.compat.v1.get_default_graph().name.endswith("_scratch_graph")


def current() -> Any:
    """The open scope of this thread, for `entered`; None outside of one."""
    return getattr(_local, "scope", None)


@contextlib.contextmanager
def entered(outer: Any, start: Counter[str]) -> Iterator[None]:
    """The scope of another thread in this one, from a `position` of it on: replicas draw as their step does."""
    before = current()
    _local.scope = None if outer is None else dataclasses.replace(outer, calls=start.copy())
    try:
        yield
    finally:
        if outer is not None:
            outer.calls |= _local.scope.calls
        _local.scope = before


def is_open() -> bool:
    """Whether a scope is open: this is traced or run as part of a step."""
    return current() is not None


def position() -> Counter[str]:
    """How often each stream has drawn in the open scope; empty outside of one."""
    opened = current()
    return Counter() if opened is None else opened.calls.copy()


@contextlib.contextmanager
def rewound(start: Counter[str]) -> Iterator[None]:
    """Draws are numbered from a `position` on, so that what is computed a second time draws the same words.

    Afterwards they are numbered from where the further of the two ended.
    """
    opened = current()
    if opened is None:
        yield
        return
    before, opened.calls = opened.calls, start.copy()
    try:
        yield
    finally:
        opened.calls |= before


@contextlib.contextmanager
def at_example(first_example: Any) -> Iterator[None]:
    """The open scope for a part of its examples, such as a micro-batch.

    Args:
      first_example: int scalar, place of the part's first example among those of the scope.
    """
    outer = current()
    if outer is None:
        yield
        return
    first = _uint64(outer.first_example) + _uint64(first_example)
    _local.scope = dataclasses.replace(outer, first_example=first, calls=outer.calls.copy())
    try:
        yield
    finally:
        outer.calls |= _local.scope.calls
        _local.scope = outer


def uniform(stream: str, examples: Any, per_example: int) -> tf.Tensor:
    """float32 [examples, per_example] in [0, 1), multiples of 2**-24, made from words by exact arithmetic."""
    top = tf.bitwise.right_shift(words(stream, examples, per_example), tf.constant(8, tf.uint32))
    return tf.cast(top, tf.float32) * (2.0**-24)


def halves(stream: str, examples: Any, per_example: int) -> tf.Tensor:
    """uint16 [examples, per_example], uniform over all 2**16 values: two of each word, for half the time.

    Of each example first the low halves of its words, then the high ones; a bitcast takes XLA twice as long.
    """
    drawn = words(stream, examples, -(-per_example // 2))
    high = tf.bitwise.right_shift(drawn, tf.constant(16, tf.uint32))
    return tf.concat([tf.cast(drawn, tf.uint16), tf.cast(high, tf.uint16)], axis=1)[:, :per_example]


def threshold(rate: float) -> int:
    """t such that one of `halves` is below t with probability t / 2**16, the nearest to `rate` (0 <= rate < 1)."""
    return min(round(rate * 2**16), 2**16 - 1)


def name_streams(paths: dict[str, Any]) -> None:
    """Tells every object that draws (it has an attribute `rng_stream`) the path it has in its model."""
    for path, layer in paths.items():
        if hasattr(layer, "rng_stream"):
            layer.rng_stream = path


def _uint64(value: Any) -> tf.Tensor:
    return tf.cast(value, tf.uint64) if tf.is_tensor(value) else tf.constant(value, tf.uint64)

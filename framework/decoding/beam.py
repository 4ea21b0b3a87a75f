"""Beam search: the best sequences that extending the best prefixes meets, for each example of a batch at once.

beam_search(task, state, Beam(4, length_penalty=0.6, n_best=2))
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from framework.decoding.methods import Beam
from framework.decoding.row_state import RowState
from framework.decoding.task import Decoded, Task, write


class _Live(NamedTuple):
    """The prefixes that are extended; one whose sum is -inf does not exist."""

    tokens: tf.Tensor  # int32 [batch, width], the last ones
    ids: tf.Tensor  # int32 [batch, width, length]
    sums: tf.Tensor  # float32 [batch, width], log-probabilities


class _Kept(NamedTuple):
    """The best ended sequences, the best first; one whose score is -inf does not exist."""

    ids: tf.Tensor  # int32 [batch, n, length]
    lengths: tf.Tensor  # int32 [batch, n]
    sums: tf.Tensor  # float32 [batch, n]
    scores: tf.Tensor  # float32 [batch, n]


def beam_search(task: Task, state: Any, beam: Beam) -> Decoded:
    """Returns the `n_best` best sequences for each example.

    The search of an example ends as soon as its worst kept sequence scores at least as high as its best prefix could if
    all tokens that may follow had probability 1; the loop ends with the last example.
    """
    examples = tf.range(task.batch)
    rows = _repeated(RowState(state, task.batch), task.batch, beam.width)
    penalties = _Penalties(task, beam)

    def is_unfinished(position: tf.Tensor, live: _Live, kept: _Kept, is_done: tf.Tensor, *rest: Any) -> tf.Tensor:
        return (position < task.length) & ~tf.reduce_all(is_done)

    def extend(
        position: tf.Tensor,
        live: _Live,
        kept: _Kept,
        is_done: tf.Tensor,
        was_invalid: tf.Tensor,
        leaves: Sequence[tf.Tensor],
    ) -> tuple[Any, ...]:
        values, is_invalid, new = task.advance(tf.reshape(live.tokens, [-1]), rows, leaves, position)
        exists = live.sums > -np.inf
        is_invalid = tf.reduce_any(tf.reshape(is_invalid, tf.shape(exists)) & exists, axis=1)
        was_invalid |= is_invalid & ~is_done
        extensions, parents = _extended(live, values, position, 2 * beam.width)
        is_end = extensions.tokens == task.end
        ends = is_end | (position == task.length - 1)
        first = tf.range(extensions.tokens.shape[1]) < beam.width
        sums = tf.where(ends & first & ~is_done[:, tf.newaxis], extensions.sums, -np.inf)
        kept = _merged(kept, extensions.ids, sums, sums / penalties.at(position), position)
        sums, places = tf.math.top_k(tf.where(is_end, -np.inf, extensions.sums), beam.width)
        live = _Live(
            tokens=tf.ensure_shape(tf.gather(extensions.tokens, places, batch_dims=1), live.tokens.shape),
            ids=tf.ensure_shape(tf.gather(extensions.ids, places, batch_dims=1), live.ids.shape),
            sums=tf.ensure_shape(sums, live.sums.shape),
        )
        reachable = live.sums[:, 0] / penalties.last
        is_done |= was_invalid | (kept.scores[:, -1] >= reachable)
        chosen = tf.gather(parents, places, batch_dims=1) + examples[:, tf.newaxis] * beam.width
        return position + 1, live, kept, is_done, was_invalid, _gathered(leaves, new, tf.reshape(chosen, [-1]))

    start = (tf.constant(0), _first_live(task, beam), _none_kept(task, beam))
    false = tf.zeros_like(task.begin, tf.bool)
    steps, _, kept, _, was_invalid, _ = tf.while_loop(is_unfinished, extend, (*start, false, false, rows.leaves))
    exists = kept.scores > -np.inf
    ids = tf.where(exists[..., tf.newaxis], kept.ids, task.padding)
    lengths = tf.where(exists, kept.lengths, 0)
    return task.decoded(Decoded(ids, lengths, kept.sums, kept.scores, steps), was_invalid)


def scored(task: Task, beam: Beam, result: Decoded) -> Decoded:
    """Returns decoded sequences with the scores that `beam` gives them."""
    return result._replace(scores=result.log_probabilities / _Penalties(task, beam).of(result.lengths))


class _Penalties:
    """Divisors of the log-probability by the number of tokens: a table, so that their bits are the same in XLA."""

    def __init__(self, task: Task, beam: Beam) -> None:
        table = ((5 + np.arange(task.length + 1)) / 6) ** beam.length_penalty
        self._table = tf.constant(table, tf.float32)
        self._prefix_lengths = task.prefix_lengths
        self.last = tf.gather(self._table, task.length - self._prefix_lengths)  # [batch]

    def at(self, position: tf.Tensor) -> tf.Tensor:
        """Returns float32 [batch, 1], the divisor of a sequence that ends at a position."""
        return self.of(tf.reshape(position + 1, [1, 1]))

    def of(self, lengths: tf.Tensor) -> tf.Tensor:
        """Returns float32 [batch, n], the divisors of sequences of lengths int32 [batch or 1, n], prompts included."""
        return tf.gather(self._table, tf.maximum(lengths - self._prefix_lengths[:, tf.newaxis], 0))


def _first_live(task: Task, beam: Beam) -> _Live:
    """Returns the empty prefix; the other places are free."""
    first = tf.one_hot(0, beam.width, 0.0, -np.inf)
    return _Live(
        tokens=tf.tile(task.begin[:, tf.newaxis], [1, beam.width]),
        ids=tf.fill([task.batch, beam.width, task.length], task.padding),
        sums=tf.tile(first[tf.newaxis], [task.batch, 1]),
    )


def _none_kept(task: Task, beam: Beam) -> _Kept:
    shape = [task.batch, beam.n_best]
    nothing = tf.fill(shape, -np.float32(np.inf))
    return _Kept(tf.fill([*shape, task.length], task.padding), tf.fill(shape, 0), nothing, nothing)


def _extended(live: _Live, values: tf.Tensor, position: tf.Tensor, count: int) -> tuple[_Live, tf.Tensor]:
    """Returns the `count` best extensions of prefixes by one token, the best first, and the places of their prefixes.

    Args:
      live: the prefixes.
      values: float32 [batch * width, vocabulary], log-probabilities of the next token.
      position: int32 scalar.
      count: at most this many; fewer if a tiny vocabulary has no more.
    """
    width, vocabulary = live.sums.shape[1], values.shape[1]
    totals = live.sums[:, :, tf.newaxis] + tf.reshape(values, [-1, width, vocabulary])
    sums, places = tf.math.top_k(tf.reshape(totals, [-1, width * vocabulary]), min(count, width * vocabulary))
    parents, tokens = places // vocabulary, places % vocabulary
    ids = write(tf.gather(live.ids, parents, batch_dims=1), tokens, position)
    return _Live(tokens, ids, sums), parents


def _merged(kept: _Kept, ids: tf.Tensor, sums: tf.Tensor, scores: tf.Tensor, position: tf.Tensor) -> _Kept:
    """Returns the best of the kept sequences and of new ones; of equal ones, the kept."""
    lengths = tf.zeros_like(sums, tf.int32) + position + 1
    both = [tf.concat(pair, axis=1) for pair in zip(kept, (ids, lengths, sums, scores), strict=True)]
    _, places = tf.math.top_k(both[-1], kept.scores.shape[1])
    chosen = (tf.gather(values, places, batch_dims=1) for values in both)
    return _Kept(*(tf.ensure_shape(new, old.shape) for new, old in zip(chosen, kept, strict=True)))


def _repeated(state: RowState, batch: Any, width: int) -> RowState:
    """Returns the state with `width` equal rows for each row."""
    rows = tf.range(batch * width) // width
    repeated = [tf.ensure_shape(tf.gather(leaf, rows), _times(leaf.shape, width)) for leaf in state.leaves]
    return RowState(state.nest(repeated), batch * width)


def _times(shape: tf.TensorShape, width: int) -> list[int | None]:
    first, *rest = shape.as_list()
    return [None if first is None else first * width, *rest]


def _gathered(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor], rows: tf.Tensor) -> list[tf.Tensor]:
    """Returns the rows of each leaf, one for each new prefix.

    A leaf that `step` returns as it was given, such as the output of an encoder, has equal rows for all prefixes of an
    example and is not copied.
    """
    pairs = zip(before, after, strict=True)
    return [new if new is old else tf.ensure_shape(tf.gather(new, rows), old.shape) for old, new in pairs]

"""Decoding of one sequence for each example: the most probable tokens, or drawn ones.

single(task, state, most_probable)
single(task, state, drawn(Sample(0.8), key, first_example=0))
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from framework import rng
from framework.decoding.methods import Sample
from framework.decoding.row_state import RowState
from framework.decoding.task import Decoded, Task, write

# (log-probabilities float32 [batch, vocabulary], position) -> tokens int32 [batch]
Choose = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
_STREAM = "decode"


class _Sequences(NamedTuple):
    """The sequences so far."""

    tokens: tf.Tensor  # int32 [batch], the last ones
    ids: tf.Tensor  # int32 [batch, length]
    lengths: tf.Tensor  # int32 [batch]
    log_probabilities: tf.Tensor  # float32 [batch]
    has_ended: tf.Tensor  # bool [batch]
    is_invalid: tf.Tensor  # bool [batch]


def single(task: Task, state: Any, choose: Choose) -> Decoded:
    """Returns one sequence for each example, of the tokens that `choose` takes."""
    rows = RowState(state, task.batch)
    false = tf.zeros_like(task.begin, tf.bool)
    start = _Sequences(
        tokens=task.begin,
        ids=tf.fill([task.batch, task.length], task.padding),
        lengths=tf.zeros_like(task.begin),
        log_probabilities=tf.zeros_like(task.begin, tf.float32),
        has_ended=false,
        is_invalid=false,
    )

    def is_unfinished(position: tf.Tensor, so_far: _Sequences, leaves: Sequence[tf.Tensor]) -> tf.Tensor:
        return (position < task.length) & ~tf.reduce_all(so_far.has_ended)

    def extend(position: tf.Tensor, so_far: _Sequences, leaves: Sequence[tf.Tensor]) -> tuple[Any, ...]:
        values, is_invalid, new = task.advance(so_far.tokens, rows, leaves, position)
        tokens = choose(values, position)
        ended = so_far.has_ended
        gained = tf.gather(values, tokens, batch_dims=1)
        tokens = tf.where(ended, task.end, tokens)
        is_invalid = so_far.is_invalid | (is_invalid & ~ended)
        extended = _Sequences(
            tokens=tokens,
            ids=write(so_far.ids, tf.where(ended, task.padding, tokens), position),
            lengths=tf.where(ended, so_far.lengths, position + 1),
            log_probabilities=so_far.log_probabilities + tf.where(ended, 0.0, gained),
            has_ended=ended | (tokens == task.end) | is_invalid,
            is_invalid=is_invalid,
        )
        return position + 1, extended, new

    steps, final, _ = tf.while_loop(is_unfinished, extend, (tf.constant(0), start, rows.leaves))
    total = final.log_probabilities[:, tf.newaxis]
    result = Decoded(final.ids[:, tf.newaxis], final.lengths[:, tf.newaxis], total, total, steps)
    return task.decoded(result, final.is_invalid)


def most_probable(values: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Returns the most probable token of each example; of equal ones, the lowest id."""
    return tf.argmax(values, axis=1, output_type=tf.int32)


def drawn(method: Sample, key: Any, first_example: Any) -> Choose:
    """Returns a function that draws the token of each example from the words of (key, example, position)."""

    def choose(values: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        with rng.scope(key, tf.cast(position, tf.int64), first_example):
            share = rng.uniform(_STREAM, tf.shape(values)[0], 1)
        return draw(method, values, share)

    return choose


def draw(method: Sample, values: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns the token at which the cumulated probabilities pass a share of their sum.

    Args:
      method: which tokens are left.
      values: float32 [batch, vocabulary], log-probabilities.
      share: float32 [batch, 1], in [0, 1).
    """
    vocabulary = values.shape[1]
    values = values / method.temperature
    ids = None
    if method.top_k or method.top_p < 1:
        values, ids = tf.math.top_k(values, min(method.top_k or vocabulary, vocabulary))
        if method.top_p < 1:
            probabilities = tf.nn.softmax(values)
            before = tf.cumsum(probabilities, axis=1, exclusive=True)
            values = tf.where(before < method.top_p, values, -np.inf)
    # An invalid row has no token that is left; its result is not used.
    cumulated = tf.cumsum(tf.nn.softmax(values), axis=1)
    passed = tf.reduce_sum(tf.cast(cumulated <= share * cumulated[:, -1:], tf.int32), axis=1)
    place = tf.minimum(passed, values.shape[1] - 1)
    return place if ids is None else tf.gather(ids, place, batch_dims=1)

"""Losses of retrieval: the softmax of a user's item among all items or those of the batch, and negatives.

    drawn = losses.popularity_negatives("negatives", 256, counts)          # the same on every replica
    term = losses.in_batch_softmax(
        users, items, batch["film"], batch["weight"], log_q=tf.gather(log_shares, batch["film"]),
        negatives=model.items(drawn.rows), drawn=drawn,
    )

A loss that uses it compares over all replicas if it says `loss.needs_collectives = True`.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from framework import rng
from framework.errors import UserError
from framework.losses.base import BatchDependent, Term, all_gather, gather_offset, in_full, mean, where_weighted
from framework.losses.classification import cross_entropy, sparse_cross_entropy
from framework.trace.guards import IN_RANGE

_WORD = 2.0**32
_LOWEST = -1e4  # a logit without a probability, finite in float16


class Drawn(NamedTuple):
    """Rows of a table that were drawn as negatives, with replacement; the same on all replicas.

    Attributes:
      rows: int32 [count].
      log_q: float32 [count], the log of how often each is expected among the `count` draws.
    """

    rows: tf.Tensor
    log_q: tf.Tensor


def full_softmax(users: tf.Tensor, items: tf.Tensor, rows: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns the cross-entropy of each user's item among all items but row 0, which is padding.

    Args:
      users: floating [batch, width]; scores are products.
      items: floating [rows, width], of all items; row 0 is that of padding.
      rows: integer [batch]: which item, from 1; where the weight is 0, anything.
      weight: [batch].
    """
    logits = tf.matmul(users, items, transpose_b=True)
    is_padding = tf.equal(tf.range(tf.shape(logits)[1]), 0)
    lowest = tf.constant(_LOWEST, logits.dtype)
    return sparse_cross_entropy(tf.where(is_padding, lowest, logits), rows, weight)


def in_batch_softmax(
    users: tf.Tensor,
    items: tf.Tensor,
    ids: tf.Tensor,
    weight: tf.Tensor,
    log_q: tf.Tensor | None = None,
    negatives: tf.Tensor | None = None,
    drawn: Drawn | None = None,
    hardest: int | None = None,
) -> BatchDependent:
    """Returns the cross-entropy of each user's item among the items of the batch, of all replicas, and of negatives.

    A candidate that is the user's own item again, in another example or among the negatives, is left out (an accidental
    hit), and so is the item of an example of weight 0. Scores are products, computed in at least float32; temperature
    and cosine are those of `layers.Score`, whose `user_vectors` and `item_vectors` these are.

    With `log_q`, scores of all candidates, the own item too, are lowered by it (Yi et al., 2019, "Sampling-bias-
    corrected neural modeling for large corpus item recommendations"): popular items are negatives more often than
    others, and would be pushed down for it. A constant in all of them changes nothing; beside drawn negatives, give the
    log of the expected count among the examples of the global batch, log(batch size * share of the item).

    Args:
      users: floating [batch, width]; where the weight is 0, anything.
      items: floating [batch, width]: of each user's item; where the weight is 0, anything.
      ids: integer [batch]: which item.
      weight: [batch].
      log_q: floating [batch]: of each item.
      negatives: floating [count, width]: more candidates, the same on all replicas.
      drawn: which items they are, with their `log_q`; the latter counts only if `log_q` is given.
      hardest: of the candidates but the own item, only so many of the highest scores of each user count; their
        softmax is no estimate of that over all items, with or without `log_q`.

    Raises:
      UserError: shapes that do not belong together, or one of `negatives` and `drawn` without the other.
    """
    users, items, ids, weight = (tf.convert_to_tensor(tensor) for tensor in (users, items, ids, weight))
    _check_shapes(users, items, ids, weight, log_q, negatives, drawn, hardest)
    users, items = where_weighted(weight, in_full(users), in_full(items))
    own = gather_offset(items) + tf.range(tf.shape(items)[0])
    candidates, of_ids, counts = all_gather(items), all_gather(ids), tf.not_equal(all_gather(weight), 0)
    bias = None if log_q is None else all_gather(tf.cast(log_q, users.dtype))
    if negatives is not None and drawn is not None:
        candidates = tf.concat([candidates, tf.cast(negatives, users.dtype)], 0)
        of_ids = tf.concat([of_ids, tf.cast(drawn.rows, of_ids.dtype)], 0)
        counts = tf.concat([counts, tf.ones_like(drawn.rows, tf.bool)], 0)
        bias = None if bias is None else tf.concat([bias, tf.cast(drawn.log_q, bias.dtype)], 0)
    scores = tf.matmul(users, candidates, transpose_b=True)  # [batch, candidates]
    if bias is not None:
        scores -= tf.where(counts, bias, 0)
    is_negative = counts & tf.not_equal(ids[:, tf.newaxis], of_ids)
    if hardest is None:
        is_own = tf.equal(own[:, tf.newaxis], tf.range(tf.shape(scores)[1]))
        return BatchDependent(*mean(cross_entropy(tf.where(is_negative | is_own, scores, -np.inf), own), weight))
    right = tf.gather(scores, own[:, tf.newaxis], batch_dims=1, name=IN_RANGE)
    others = tf.where(is_negative, scores, -np.inf)
    others = tf.math.top_k(others, tf.minimum(hardest, tf.shape(others)[1]), sorted=False).values
    return BatchDependent(*mean(cross_entropy(tf.concat([right, others], 1), tf.zeros_like(own)), weight))


def uniform_negatives(stream: str, count: int, rows: int, first: int = 1) -> Drawn:
    """Draws rows of a table, `first` to `rows` - 1, each as likely as the others, by (seed, stream, step).

    Args:
      stream: name of the draw; a second call in a step draws others.
      count: how many to draw.
      rows: of the table.
      first: the first row that is drawn; 1 leaves out padding.

    Raises:
      RuntimeError: it is called outside of a training step, see `framework/rng.py`.
    """
    if not 0 <= first < rows or count < 1:
        raise UserError(f"uniform_negatives: count={count} of the rows {first} to {rows - 1}; both must be at least 1.")
    size = rows - first
    place = _below(_words(stream, count), size)
    return Drawn(first + place, tf.fill([count], np.float32(np.log(count / size))))


def popularity_negatives(stream: str, count: int, counts: np.ndarray, power: float = 1.0) -> Drawn:
    """Draws rows of a table with probabilities in proportion to counts**power, by (seed, stream, step).

    The probabilities are exact to 2**-32, in every compile mode: each draw takes two words and two places of Walker's
    alias table (1977).

    Args:
      stream, count: as in `uniform_negatives`.
      counts: [rows], at least 0: of each row of the table, such as how many examples have it; 0 for padding. A row of 0
        is never drawn.
      power: 1 draws items as a batch does, 0.75 rare ones more often (Mikolov et al., 2013).
    """
    shares = np.asarray(counts, np.float64)
    if shares.ndim != 1 or not (np.isfinite(shares).all() and (shares >= 0).all() and shares.any()) or count < 1:
        raise UserError(
            f"popularity_negatives: count={count} of counts of shape {shares.shape}; counts are finite numbers of at"
            " least 0, one for each row, not all 0, and count is at least 1."
        )
    shares = np.where(shares > 0, shares, 1) ** power * (shares > 0)
    shares /= shares.sum()
    keep, alias = _alias_table(shares)
    words = _words(stream, 2 * count)
    place = _below(words[:count], len(shares))
    limit, other = (tf.gather(tf.constant(table), place, name=IN_RANGE) for table in (keep, alias))
    rows = tf.where(tf.cast(words[count:], tf.int64) < limit, place, other)
    with np.errstate(divide="ignore"):
        log_q = np.log(shares * count).astype(np.float32)  # -inf of rows that are never drawn
    return Drawn(rows, tf.gather(tf.constant(log_q), rows, name=IN_RANGE))


def _words(stream: str, count: int) -> tf.Tensor:
    """Draws uint32 words, [count], the same on all replicas."""
    with rng.of_batch():
        return rng.random_bits(stream, 1, count)[0]


def _below(words: tf.Tensor, limit: int) -> tf.Tensor:
    """Turns uint32 words into int32 numbers from 0 to limit - 1."""
    product = tf.cast(words, tf.uint64) * tf.constant(limit, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(product, tf.constant(32, tf.uint64)), tf.int32)


def _alias_table(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each place, how many of 2**32 words stay there (int64), and where the others go (int32)."""
    scaled = shares * len(shares)
    keep, alias = np.full(len(shares), 1.0), np.arange(len(shares), dtype=np.int32)
    small, large = [*np.flatnonzero(scaled < 1)], [*np.flatnonzero(scaled >= 1)]
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], alias[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return np.round(keep * _WORD).astype(np.int64), alias


def _check_shapes(
    users: tf.Tensor,
    items: tf.Tensor,
    ids: tf.Tensor,
    weight: tf.Tensor,
    log_q: tf.Tensor | None,
    negatives: tf.Tensor | None,
    drawn: Drawn | None,
    hardest: int | None,
) -> None:
    batch, width = users.shape[:1], users.shape[-1:]
    of_examples = {"ids": ids, "weight": weight} | ({} if log_q is None else {"log_q": tf.convert_to_tensor(log_q)})
    is_right = users.shape.rank == 2 and items.shape.is_compatible_with(users.shape)
    is_right &= all(
        tensor.shape.rank == 1 and tensor.shape.is_compatible_with(batch) for tensor in of_examples.values()
    )
    if not is_right:
        shapes = ", ".join(f"{name} {tensor.shape}" for name, tensor in of_examples.items())
        raise UserError(
            f"in_batch_softmax: users have shape {users.shape}, items {items.shape}, {shapes}, but must be [batch,"
            " width] of users and items, and [batch] of the others."
        )
    if (negatives is None) != (drawn is None):
        raise UserError("in_batch_softmax: negatives are vectors of the rows of drawn. Give both, or neither.")
    if negatives is not None and drawn is not None:
        shape = drawn.rows.shape + width
        if not tf.convert_to_tensor(negatives).shape.is_compatible_with(shape):
            raise UserError(f"in_batch_softmax: negatives have shape {negatives.shape}, but must be {shape}.")
    if hardest is not None and hardest < 1:
        raise UserError(f"in_batch_softmax: hardest={hardest} must be at least 1, or None for all candidates.")

"""The best items of each user among all items, exactly, without a matrix of all users and items.

    scores, rows = retrieval.top_k(users, items, 10, seen)         # in a graph, such as that of an export
    place = retrieval.ranks(users, items, held_out, seen)          # of one item a user, among all items

Items and users are vectors whose product is the score, such as those of `layers.Score`. Items are rows of a table: row
0 is padding, is never recommended, and fills lists of different lengths, as in `layers.EmbeddingTable`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from framework.trace.guards import IN_RANGE

ITEM_BLOCK = 8192
# (state, scores of a block, the same without what is seen, its first row) -> state
_Visit = Callable[[Any, tf.Tensor, tf.Tensor, tf.Tensor], Any]


def top_k(
    users: tf.Tensor, items: tf.Tensor, k: int, seen: tf.Tensor | None = None, item_block: int = ITEM_BLOCK
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the k items of the highest scores of each user, by decreasing score; of equal ones the lower row first.

    Scores are computed for one block of items after the other, so memory is that of [users, item_block].

    Args:
      users: floating [users, width].
      items: floating [rows, width]; row 0 is padding.
      k: at least 1.
      seen: integer [users, length]: rows that a user is not given again, 0 is padding; or bool [users, rows], True at
        these rows.
      item_block: how many items are scored at once.

    Returns:
      scores, floating [users, k], and rows, int32 [users, k]. If fewer than k items are left, the list ends with the
      score -inf and row 0. A user with a score that is NaN has scores of NaN and rows of 0.
    """
    count = tf.shape(users)[0]
    start = (
        tf.fill([count, k], tf.constant(-np.inf, users.dtype)),
        tf.zeros([count, k], tf.int32),
        tf.zeros([count], tf.bool),
    )

    def visit(best: Any, scores: tf.Tensor, left: tf.Tensor, first: tf.Tensor) -> Any:
        of_best, rows, has_nan = best
        here = first + tf.broadcast_to(tf.range(tf.shape(left)[1]), tf.shape(left))
        # The earlier rows come first, because of equal scores the first one wins.
        scores, rows = tf.concat([of_best, left], 1), tf.concat([rows, here], 1)
        has_nan |= tf.reduce_any(tf.math.is_nan(scores), 1)
        of_best, places = tf.math.top_k(scores, k)
        return of_best, tf.gather(rows, places, batch_dims=1, name=IN_RANGE), has_nan

    scores, rows, has_nan = _each_block(users, items, seen, item_block, start, visit)
    rows = tf.where(has_nan[:, tf.newaxis] | tf.equal(scores, -np.inf), 0, rows)
    return tf.where(has_nan[:, tf.newaxis], tf.constant(np.nan, scores.dtype), scores), rows


def ranks(
    users: tf.Tensor,
    items: tf.Tensor,
    targets: tf.Tensor,
    seen: tf.Tensor | None = None,
    item_block: int = ITEM_BLOCK,
) -> tf.Tensor:
    """Returns the place of one item of each user among all items, from 1; ties as in `top_k`.

    Args:
      users, items, seen, item_block: as in `top_k`.
      targets: integer [users], rows; one that the user has seen is ranked among the unseen items all the same.

    Returns:
      int32 [users]; 0 for a user with a score that is NaN, and for a target that is 0 or no row.
    """
    targets = tf.cast(targets, tf.int32)
    count = tf.shape(users)[0]

    def own(score: tf.Tensor, scores: tf.Tensor, left: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        place = targets - first
        is_here = (place >= 0) & (place < tf.shape(scores)[1])
        here = tf.gather(scores, tf.where(is_here, place, 0), batch_dims=1, name=IN_RANGE)
        return tf.where(is_here, here, score)

    def counted(state: Any, score: tf.Tensor, left: tf.Tensor, first: tf.Tensor) -> Any:
        place, has_nan = state
        rows = first + tf.range(tf.shape(left)[1])
        is_above = (left > score[:, tf.newaxis]) | (
            tf.equal(left, score[:, tf.newaxis]) & (rows < targets[:, tf.newaxis])
        )
        # One pass over the scores: a sum of 0 and 1 is exact in float32, and NaN if a score is.
        above = tf.reduce_sum(tf.where(tf.math.is_nan(left), np.nan, tf.cast(is_above, tf.float32)), 1)
        is_bad = tf.math.is_nan(above)
        return place + tf.cast(tf.where(is_bad, 0.0, above), tf.int32), has_nan | is_bad

    def both(state: Any, scores: tf.Tensor, left: tf.Tensor, first: tf.Tensor) -> Any:
        score = own(state[0], scores, left, first)
        return score, counted(state[1], score, left, first)

    # The score comes out of the same products as those of the others, or equal ones would differ by rounding.
    lowest = tf.fill([count], tf.constant(-np.inf, users.dtype))
    start = (tf.ones([count], tf.int32), tf.zeros([count], tf.bool))
    if _is_one_block(items, item_block):
        score, (place, has_nan) = _each_block(users, items, seen, item_block, (lowest, start), both)
    else:
        score = _each_block(users, items, None, item_block, lowest, own)
        place, has_nan = _each_block(
            users, items, seen, item_block, start, lambda state, _, *block: counted(state, score, *block)
        )
    return tf.where(has_nan | tf.equal(score, -np.inf), 0, place)


def _is_one_block(items: tf.Tensor, item_block: int) -> bool:
    """Returns whether a block is known to hold all items; then the loop over blocks is left out."""
    return items.shape[0] is not None and 0 < items.shape[0] <= item_block


def _each_block(users: tf.Tensor, items: tf.Tensor, seen: Any, item_block: int, start: Any, visit: _Visit) -> Any:
    """Returns `start` after a visit to the scores of each block of items; -inf for row 0 and no rows.

    Args:
      seen: integer [users, length] as in `top_k`, or bool [users, rows], True at what is seen; or None.
    """
    rows, width = tf.shape(items)[0], items.shape[1]
    seen = None if seen is None else tf.convert_to_tensor(seen)

    def of_block(block_items: tf.Tensor, hidden: Any, size: Any, first: tf.Tensor, state: Any) -> Any:
        scores = tf.matmul(users, block_items, transpose_b=True)
        here = first + tf.range(size)
        scores = tf.where((here > 0) & (here < rows), scores, -np.inf)
        left = scores
        if hidden is not None:
            left = tf.where(hidden, -np.inf, scores)
        elif seen is not None:
            left = _without(scores, tf.cast(seen, tf.int32) - first)
        return visit(state, scores, left, first)

    is_mask = seen is not None and seen.dtype == tf.bool
    if _is_one_block(items, item_block):
        return of_block(items, seen if is_mask else None, items.shape[0], tf.constant(0), start)
    size = min(item_block, items.shape[0] or item_block)
    blocks = -(-rows // size)
    missing = blocks * size - rows
    whole = tf.reshape(tf.pad(items, [[0, missing], [0, 0]]), [blocks, size, width])
    masks = tf.reshape(tf.pad(seen, [[0, 0], [0, missing]]), [-1, blocks, size]) if is_mask else None

    def body(block: tf.Tensor, state: Any) -> Any:
        hidden = None if masks is None else tf.gather(masks, block, axis=1, name=IN_RANGE)
        return block + 1, of_block(tf.gather(whole, block, name=IN_RANGE), hidden, size, block * size, state)

    shapes = tf.nest.map_structure(lambda tensor: tensor.shape, start)
    return tf.while_loop(
        lambda block, state: block < blocks, body, (tf.constant(0), start), (tf.TensorShape([]), shapes)
    )[1]


def _without(scores: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Returns scores [users, block] that are -inf at places [users, length]; those outside of the block are skipped."""
    count, size = tf.unstack(tf.shape(scores))
    is_here = (places >= 0) & (places < size)
    users = tf.broadcast_to(tf.range(count)[:, tf.newaxis], tf.shape(places))
    flat = tf.where(is_here, users * (size + 1) + places, users * (size + 1) + size)  # the last column is thrown away
    wide = tf.reshape(tf.pad(scores, [[0, 0], [0, 1]]), [-1])
    hidden = tf.fill([tf.size(flat)], tf.constant(-np.inf, scores.dtype))
    wide = tf.tensor_scatter_nd_update(wide, tf.reshape(flat, [-1, 1]), hidden)
    return tf.reshape(wide, [count, size + 1])[:, :-1]

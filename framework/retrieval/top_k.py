"""The best items of each user among all items, exactly, without a matrix of all users and items.

    scores, rows = retrieval.top_k(users, items, 10, seen)             # in a graph, such as that of an export
    scores, rows = retrieval.top_k_of_all(users, items, 100, seen)     # users in blocks, NumPy arrays
    place = retrieval.ranks_of_all(users, items, held_out, seen)       # of one item a user, among all items

Items and users are vectors whose product is the score, such as those of `layers.Score`. Items are rows of a table: row
0 is padding, is never recommended, and fills lists of different lengths, as in `layers.EmbeddingTable`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.trace.guards import IN_RANGE

ITEM_BLOCK, USER_BLOCK = 8192, 1024
_Visit = Callable[[Any, tf.Tensor, tf.Tensor], Any]  # (state, scores of a block, its first row) -> state


def top_k(
    users: tf.Tensor, items: tf.Tensor, k: int, seen: tf.Tensor | None = None, item_block: int = ITEM_BLOCK
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the k items of the highest scores of each user, by decreasing score; of equal ones the lower row first.

    Scores are computed for one block of items after the other, so memory is that of [users, item_block].

    Args:
      users: floating [users, width].
      items: floating [rows, width]; row 0 is padding.
      k: at least 1.
      seen: integer [users, length]: rows that a user is not given again; 0 is padding.
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

    def visit(best: Any, scores: tf.Tensor, first: tf.Tensor) -> Any:
        of_best, rows, has_nan = best
        here = first + tf.broadcast_to(tf.range(tf.shape(scores)[1]), tf.shape(scores))
        # The earlier rows come first, because of equal scores the first one wins.
        scores, rows = tf.concat([of_best, scores], 1), tf.concat([rows, here], 1)
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

    def own(score: tf.Tensor, scores: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        rows = first + tf.range(tf.shape(scores)[1])
        here = tf.where(tf.equal(rows, targets[:, tf.newaxis]), scores, -np.inf)
        return tf.maximum(score, tf.reduce_max(here, 1))

    def above(state: Any, scores: tf.Tensor, first: tf.Tensor) -> Any:
        place, has_nan = state
        rows = first + tf.range(tf.shape(scores)[1])
        is_above = (scores > score[:, tf.newaxis]) | (
            tf.equal(scores, score[:, tf.newaxis]) & (rows < targets[:, tf.newaxis])
        )
        place += tf.reduce_sum(tf.cast(is_above, tf.int32), 1)
        return place, has_nan | tf.reduce_any(tf.math.is_nan(scores), 1)

    # The score comes out of the same products as those of the others, or equal ones would differ by rounding.
    lowest = tf.fill([count], tf.constant(-np.inf, users.dtype))
    score = _each_block(users, items, None, item_block, lowest, own)
    start = (tf.ones([count], tf.int32), tf.zeros([count], tf.bool))
    place, has_nan = _each_block(users, items, seen, item_block, start, above)
    return tf.where(has_nan | tf.equal(score, -np.inf), 0, place)


def top_k_of_all(
    users: np.ndarray,
    items: np.ndarray,
    k: int,
    seen: np.ndarray | None = None,
    user_block: int = USER_BLOCK,
    item_block: int = ITEM_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `top_k` of any number of users, a compiled call for each block of them.

    Raises:
      UserError: a score is NaN, or shapes do not belong together.
    """
    _check(users, items, seen)
    if k < 1:
        raise UserError(f"top_k_of_all: k={k} must be at least 1.")

    block = min(item_block, len(items))
    blocks = [*_user_blocks(_top_k, users, items, seen, user_block, k=k, item_block=block)]
    scores, rows = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    _check_scores(np.isnan(scores).any(1))
    return scores, rows


def ranks_of_all(
    users: np.ndarray,
    items: np.ndarray,
    targets: np.ndarray,
    seen: np.ndarray | None = None,
    user_block: int = USER_BLOCK,
    item_block: int = ITEM_BLOCK,
) -> np.ndarray:
    """Returns `ranks` of any number of users, int32 [users], a compiled call for each block of them.

    Raises:
      UserError: a score is NaN, a target is padding or no row, or shapes do not belong together.
    """
    _check(users, items, seen)
    targets = np.asarray(targets)
    if targets.shape != (len(users),) or not ((targets > 0) & (targets < len(items))).all():
        raise UserError(f"ranks_of_all: targets are {len(users)} rows from 1 to {len(items) - 1}, one for each user.")

    block = min(item_block, len(items))
    found = _user_blocks(_ranks, users, items, seen, user_block, targets=targets, item_block=block)
    places = np.concatenate([place for (place,) in found])
    _check_scores(places == 0)
    return places


def padded(lists: Any) -> np.ndarray:
    """Returns lists of rows of different lengths as int32 [lists, longest], filled up with 0."""
    lengths = [len(rows) for rows in lists]
    whole = np.zeros([len(lengths), max(lengths, default=0)], np.int32)
    for place, rows in enumerate(lists):
        whole[place, : len(rows)] = rows
    return whole


def _each_block(
    users: tf.Tensor, items: tf.Tensor, seen: tf.Tensor | None, item_block: int, start: Any, visit: _Visit
) -> Any:
    """Returns `start` after a visit to the scores of each block of items; -inf for row 0, seen rows and no rows."""
    rows, width = tf.shape(items)[0], items.shape[1]
    size = min(item_block, items.shape[0] or item_block)
    blocks = -(-rows // size)
    whole = tf.reshape(tf.pad(items, [[0, blocks * size - rows], [0, 0]]), [blocks, size, width])

    def body(block: tf.Tensor, state: Any) -> Any:
        first = block * size
        scores = tf.matmul(users, tf.gather(whole, block, name=IN_RANGE), transpose_b=True)
        here = first + tf.range(size)
        scores = tf.where((here > 0) & (here < rows), scores, -np.inf)
        if seen is not None:
            scores = _without(scores, tf.cast(seen, tf.int32) - first)
        return block + 1, visit(state, scores, first)

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


# Compiled once for each shape, whoever calls.
_top_k = tf.function(top_k, autograph=False, jit_compile=True)
_ranks = tf.function(lambda *args, **kwargs: (ranks(*args, **kwargs),), autograph=False, jit_compile=True)


def _user_blocks(
    fn: Callable[..., Any],
    users: np.ndarray,
    items: np.ndarray,
    seen: np.ndarray | None,
    size: int,
    targets: np.ndarray | None = None,
    **constants: int,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the results of fn(users, items, seen=seen, ...) for blocks of users; the last one is filled up."""
    arrays = {
        name: array for name, array in {"users": users, "seen": seen, "targets": targets}.items() if array is not None
    }
    size = max(1, min(size, len(users)))
    table = tf.constant(items)
    for begin in range(0, max(len(users), 1), size):
        block = {name: np.asarray(array[begin : begin + size]) for name, array in arrays.items()}
        count = len(block["users"])
        filled = {
            name: tf.constant(np.concatenate([x, np.zeros([size - count, *x.shape[1:]], x.dtype)]))
            for name, x in block.items()
        }
        results = fn(items=table, **filled, **constants)
        yield tuple(result.numpy()[:count] for result in results)


def _check(users: np.ndarray, items: np.ndarray, seen: np.ndarray | None) -> None:
    are_vectors = users.ndim == items.ndim == 2 and users.shape[1] == items.shape[1] and users.dtype == items.dtype
    if not are_vectors or len(items) < 2 or (seen is not None and (seen.ndim != 2 or len(seen) != len(users))):
        raise UserError(
            f"users are {users.dtype} {users.shape}, items {items.dtype} {items.shape} and seen"
            f" {None if seen is None else seen.shape}, but must be [users, width], [rows, width] of the same dtype with"
            " row 0 for padding, and [users, length]."
        )


def _check_scores(is_bad: np.ndarray) -> None:
    if is_bad.any():
        raise UserError(
            f"{is_bad.sum()} users have a score that is NaN, the first is user {np.flatnonzero(is_bad)[0]}: vectors of"
            " users or items are not finite."
        )

"""Searches of all items for any number of users, as NumPy arrays, in compiled calls for blocks of users.

    scores, rows = retrieval.top_k_of_all(users, items, 100, seen)
    place = retrieval.ranks_of_all(users, items, held_out, seen)             # of one item a user, among all items
    place, rows = retrieval.ranked_of_all(users, items, held_out, 100, seen)       # both, from the same products

`seen` has rows that are left out; as a `Seen` it need not be prepared for each of several searches.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.retrieval.top_k import ITEM_BLOCK, ranks, top_k

USER_BLOCK = 1024
_KEPT_BYTES = 2**27


class Seen:
    """The rows that users have seen, ready for searches that are made again and again, such as at each evaluation.

    What it prepares for a size of blocks is kept on the device up to 128 MB, a byte for each user and item. Of so many
    items that one block takes more, the rows stay as they are: memory is that of a block of items.

    Args:
      rows: integer [users, length], 0 is padding, as `padded` makes them; what is no row of the items does nothing.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = np.array(rows)
        self._kept: dict[tuple[int, int], list[tf.Tensor]] = {}

    def blocks(self, size: int, items: int) -> Iterator[tf.Tensor]:
        """Yields bool [size, items], True at what is seen, for each block of users; the last one is filled up.

        If that takes more than 128 MB, it yields integer [size, length], rows.
        """
        count = -(-max(len(self.rows), 1) // size)
        if size * items > _KEPT_BYTES:
            yield from (_filled(self.rows[number * size : (number + 1) * size], size) for number in range(count))
            return
        if count * size * items > _KEPT_BYTES:
            yield from (self._block(number, size, items) for number in range(count))
            return
        if (size, items) not in self._kept:
            self._kept[size, items] = [self._block(number, size, items) for number in range(count)]
        yield from self._kept[size, items]

    def _block(self, number: int, size: int, items: int) -> tf.Tensor:
        rows = self.rows[number * size : (number + 1) * size]
        mask = np.zeros([size, items], bool)
        np.put_along_axis(mask[: len(rows)], np.where((rows > 0) & (rows < items), rows, 0), True, axis=1)
        return tf.constant(mask)


def top_k_of_all(
    users: np.ndarray,
    items: np.ndarray,
    k: int,
    seen: np.ndarray | Seen | None = None,
    user_block: int = USER_BLOCK,
    item_block: int = ITEM_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `top_k` of any number of users, a compiled call for each block of them.

    Raises:
      UserError: a score is NaN, or shapes do not belong together.
    """
    _check(users, items, seen)
    _check_k("top_k_of_all", k)
    scores, rows = _blockwise(_top_k, users, items, seen, user_block, item_block, k=k)
    _check_scores(np.isnan(scores).any(1))
    return scores, rows


def ranks_of_all(
    users: np.ndarray,
    items: np.ndarray,
    targets: np.ndarray,
    seen: np.ndarray | Seen | None = None,
    user_block: int = USER_BLOCK,
    item_block: int = ITEM_BLOCK,
) -> np.ndarray:
    """Returns `ranks` of any number of users, int32 [users], a compiled call for each block of them.

    Raises:
      UserError: a score is NaN, a target is padding or no row, or shapes do not belong together.
    """
    _check(users, items, seen)
    _check_targets("ranks_of_all", targets, users, items)
    (places,) = _blockwise(_ranks, users, items, seen, user_block, item_block, np.asarray(targets))
    _check_scores(places == 0)
    return places


def ranked_of_all(
    users: np.ndarray,
    items: np.ndarray,
    targets: np.ndarray,
    k: int,
    seen: np.ndarray | Seen | None = None,
    user_block: int = USER_BLOCK,
    item_block: int = ITEM_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of `ranks_of_all`, int32 [users], and the rows of `top_k_of_all`, int32 [users, k].

    Raises:
      UserError: as these two.
    """
    _check(users, items, seen)
    _check_k("ranked_of_all", k)
    _check_targets("ranked_of_all", targets, users, items)
    places, rows = _blockwise(_ranked, users, items, seen, user_block, item_block, np.asarray(targets), k=k)
    _check_scores(places == 0)
    return places, rows


def padded(lists: Any) -> np.ndarray:
    """Returns lists of rows of different lengths as int32 [lists, longest], filled up with 0."""
    lengths = [len(rows) for rows in lists]
    whole = np.zeros([len(lengths), max(lengths, default=0)], np.int32)
    for place, rows in enumerate(lists):
        whole[place, : len(rows)] = rows
    return whole


# Compiled once for each shape, whoever calls.
_top_k = tf.function(top_k, autograph=False, jit_compile=True)
_ranks = tf.function(lambda *args, **kwargs: (ranks(*args, **kwargs),), autograph=False, jit_compile=True)


@tf.function(autograph=False, jit_compile=True)
def _ranked(users: Any, items: Any, targets: Any, k: int, seen: Any, item_block: int) -> tuple[tf.Tensor, tf.Tensor]:
    # XLA makes the products of both once, if a block holds all items.
    return ranks(users, items, targets, seen, item_block), top_k(users, items, k, seen, item_block)[1]


def _blockwise(
    fn: Callable[..., Any],
    users: np.ndarray,
    items: np.ndarray,
    seen: np.ndarray | Seen | None,
    user_block: int,
    item_block: int,
    targets: np.ndarray | None = None,
    **constants: int,
) -> list[np.ndarray]:
    """Returns the results of fn(users, items, seen=seen, ...) for blocks of users, one after the other.

    The last block is filled up, so that there is one shape.
    """
    arrays = {name: array for name, array in {"users": users, "targets": targets}.items() if array is not None}
    size = max(1, min(user_block, len(users)))
    constants["item_block"] = min(item_block, len(items))
    table = tf.constant(items)
    masks = None if seen is None else _seen(seen).blocks(size, len(items))
    blocks = []
    for begin in range(0, max(len(users), 1), size):
        block = {name: _filled(array[begin : begin + size], size) for name, array in arrays.items()}
        results = fn(items=table, seen=None if masks is None else next(masks), **block, **constants)
        blocks.append([result.numpy()[: len(users) - begin] for result in results])
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]


def _filled(array: np.ndarray, size: int) -> tf.Tensor:
    missing = np.zeros([size - len(array), *array.shape[1:]], array.dtype)
    return tf.constant(np.concatenate([array, missing]) if len(missing) else array)


def _seen(seen: np.ndarray | Seen) -> Seen:
    return seen if isinstance(seen, Seen) else Seen(seen)


def _check(users: np.ndarray, items: np.ndarray, given: np.ndarray | Seen | None) -> None:
    seen = given.rows if isinstance(given, Seen) else given
    are_vectors = users.ndim == items.ndim == 2 and users.shape[1] == items.shape[1] and users.dtype == items.dtype
    if not are_vectors or len(items) < 2 or (seen is not None and (seen.ndim != 2 or len(seen) != len(users))):
        raise UserError(
            f"users are {users.dtype} {users.shape}, items {items.dtype} {items.shape} and seen"
            f" {None if seen is None else seen.shape}, but must be [users, width], [rows, width] of the same dtype with"
            " row 0 for padding, and [users, length]."
        )


def _check_k(function: str, k: int) -> None:
    if k < 1:
        raise UserError(f"{function}: k={k} must be at least 1.")


def _check_targets(function: str, targets: np.ndarray, users: np.ndarray, items: np.ndarray) -> None:
    targets = np.asarray(targets)
    if targets.shape != (len(users),) or not ((targets > 0) & (targets < len(items))).all():
        raise UserError(f"{function}: targets are {len(users)} rows from 1 to {len(items) - 1}, one for each user.")


def _check_scores(is_bad: np.ndarray) -> None:
    if is_bad.any():
        raise UserError(
            f"{is_bad.sum()} users have a score that is NaN, the first is user {np.flatnonzero(is_bad)[0]}: vectors of"
            " users or items are not finite."
        )

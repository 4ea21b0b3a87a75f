"""An approximate index beside the exact search, on one's own vectors: for the report of an export.

compared(users, items, 10, seen)     # {'recall@10': 0.999, 'exact_ms': 0.9, 'approximate_ms': 0.1, 'build_seconds': …}
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from framework.compile import jit
from framework.errors import UserError
from framework.retrieval.approximate import Approximate, load_faiss, overlap
from framework.retrieval.of_all import top_k_of_all
from framework.retrieval.top_k import ITEM_BLOCK, top_k

QUERIES = 200  # users who are timed


def compared(users: np.ndarray, items: np.ndarray, k: int, seen: np.ndarray | None = None) -> dict[str, float | str]:
    """Returns which share of the exact lists `Approximate` finds, and how long both take.

    Args:
      users: floating [users, width].
      items: floating [rows, width]; row 0 is padding.
      k: length of a list.
      seen: integer [users, length]: rows that a user is not given again; 0 is padding.

    Returns:
      'recall@<k>', from all users; 'exact_ms' and 'approximate_ms', the median milliseconds of a call with one user, as
      a server has them, from the first 200; 'build_seconds' of the index, 'items' and 'users'. Without faiss: 'missing'
      alone, the line that says what to install.
    """
    try:
        load_faiss()
    except UserError as error:
        return {"missing": str(error)}
    users, items = (np.ascontiguousarray(array, np.float32) for array in (users, items))
    start = time.perf_counter()
    index = Approximate(items)
    seconds = time.perf_counter() - start
    table, block = tf.constant(items), min(ITEM_BLOCK, len(items))

    def of_user(user: tf.Tensor, seen: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return top_k(user, table, k, seen, block)

    def exact(place: slice) -> np.ndarray:
        own = None if seen is None else tf.constant(seen[place], tf.int32)
        return search(tf.constant(users[place]), own)[1].numpy()

    def approximate(place: slice) -> np.ndarray:
        return index.top_k(users[place], k, None if seen is None else seen[place])[1]

    search = jit(of_user)
    best = top_k_of_all(users, items, k, seen)[1]
    timed = min(len(users), QUERIES)
    return {
        f"recall@{k}": overlap(approximate(slice(None)), best),
        "exact_ms": milliseconds(exact, timed)[1],
        "approximate_ms": milliseconds(approximate, timed)[1],
        "build_seconds": seconds,
        "items": len(items) - 1,
        "users": len(users),
    }


def milliseconds(search: Callable[[slice], np.ndarray], users: int) -> tuple[Sequence[np.ndarray], float]:
    """Returns what `search` returns for each of some users, and the median milliseconds of a call after the first."""
    search(slice(0, 1))
    found, times = [], []
    for place in range(users):
        begin = time.perf_counter()
        found.append(search(slice(place, place + 1)))
        times.append(time.perf_counter() - begin)
    return found, 1e3 * statistics.median(times)

"""An approximate index of items on the host, for more of them than an exact search has time for.

index = retrieval.Approximate(items)                            # needs faiss: make run EXTRAS=recommend
scores, rows = index.top_k(users, 10, seen)
retrieval.overlap(rows, retrieval.top_k_of_all(users, items, 10, seen)[1])      # 0.999: how good it is
"""

import logging
from typing import Any

import numpy as np

from framework import extras
from framework.errors import UserError


class Approximate:
    """Finds most of the best items of a user by walking a graph of neighbours, without a look at all items.

    It is a hierarchical navigable small world (Malkov & Yashunin, 2018) of inner products, by faiss. Vectors of like
    lengths, such as those of a cosine, are found best. Measure `overlap` with the exact list on your own vectors.

    Args:
      items: float32 [rows, width], as in `top_k`: row 0 is padding and is never recommended.
      links: of each item to others; more find more and take more memory.
      effort: how many items a search keeps in view; more find more and take longer. At least as many are kept as the
        search must return.
    """

    def __init__(self, items: np.ndarray, links: int = 32, effort: int = 128) -> None:
        faiss = load_faiss()
        items = np.ascontiguousarray(items, np.float32)
        if items.ndim != 2 or len(items) < 2 or not np.isfinite(items[1:]).all():
            raise UserError(
                f"Approximate: items have shape {items.shape}, but must be finite [rows, width], row 0 for padding."
            )
        self._effort = effort
        self._graph = faiss.IndexHNSWFlat(items.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = max(effort, 2 * links)
        self._graph.add(items[1:])

    def top_k(self, users: np.ndarray, k: int, seen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores, float32 [users, k], and rows, int32 [users, k], as `top_k_of_all`, but some may be missing.

        Args:
          users: float32 [users, width].
          k: at least 1.
          seen: integer [users, length]: rows that a user is not given again; 0 is padding. As many more are searched.
        """
        if k < 1:
            raise UserError(f"Approximate.top_k: k={k} must be at least 1.")
        users = np.ascontiguousarray(users, np.float32)
        if not np.isfinite(users).all():
            raise UserError("Approximate.top_k: vectors of users are not finite.")
        wanted = min(k + (0 if seen is None else seen.shape[1]), self._graph.ntotal)
        self._graph.hnsw.efSearch = max(self._effort, wanted)
        scores, rows = self._graph.search(users, wanted)
        rows = rows.astype(np.int32) + 1  # faiss returns -1 for what it did not find
        if seen is not None:
            for user, some in enumerate(seen):
                rows[user, np.isin(rows[user], some)] = 0
        scores = np.where(rows > 0, scores, -np.inf)
        order = np.argsort(-scores, 1, kind="stable")[:, :k]
        short = ((0, 0), (0, k - order.shape[1]))
        scores, rows = (np.take_along_axis(array, order, 1) for array in (scores, rows))
        return np.pad(scores, short, constant_values=-np.inf), np.pad(rows, short)


def load_faiss() -> Any:
    """Returns the module faiss.

    Raises:
      UserError: it is not installed; the line says what to type.
    """
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # six lines about what the processor could do
    return extras.load("faiss", "recommend")


def overlap(found: np.ndarray, exact: np.ndarray) -> float:
    """Returns which share of the rows of exact lists is in the lists that were found: the recall of an index.

    Args:
      found, exact: integer [users, k]; 0 in exact lists is padding and does not count.
    """
    if len(found) != len(exact):
        raise UserError(f"overlap: there are {len(found)} lists and {len(exact)} exact ones, but each user has both.")
    hits = [np.isin(right[right > 0], rows) for rows, right in zip(found, exact, strict=True)]
    return float(np.concatenate(hits).mean()) if hits else float("nan")

"""Metrics of recommended items over all items, user by user, and what is recommended over all users.

    _, rows = retrieval.top_k_of_all(users, items, 100, seen)
    metrics.ranking(rows, held_out[:, np.newaxis], popularity, ks=(10, 100))
    # {'recall@10': 0.19, 'ndcg@10': 0.10, 'mrr@10': 0.08, 'coverage@10': 0.4, 'popularity@10': 210.0, …}

A list must be the best of *all* items that a user has not seen. Ranks among a sample of items are other numbers, of
which the better model may have the worse (Krichene & Rendle, 2020, "On sampled metrics for item recommendation"); they
do not belong here.
"""

from collections.abc import Sequence

import numpy as np

from framework.errors import UserError

_USERS = 1024  # at once, so that the comparison of lists with relevant items stays small


def ranking(
    recommended: np.ndarray, relevant: np.ndarray, popularity: np.ndarray, ks: Sequence[int] = (10, 100)
) -> dict[str, float]:
    """Returns the means of `ranking_per_user` over users with a relevant item, and what all lists together recommend.

    'coverage@k': share of the items that any user is recommended. 'popularity@k': mean popularity of the recommended
    items. 'gini@k': Gini coefficient of how often each item is recommended: 0 if all are alike, near 1 if few are all.

    Args:
      recommended, relevant, ks: as in `ranking_per_user`.
      popularity: [rows], such as how often training has each item; row 0 is padding and is no item.
    """
    popularity = np.asarray(popularity)
    of_users = ranking_per_user(recommended, relevant, ks)
    recommended = np.asarray(recommended)
    if popularity.ndim != 1 or (recommended.size and recommended.max() >= len(popularity)):
        raise UserError(
            f"ranking: popularity has shape {popularity.shape} and the largest recommended row is {recommended.max()},"
            " but popularity is [rows], one for each row of the items."
        )
    results = {name: float(np.nanmean(values)) if len(values) else np.nan for name, values in of_users.items()}
    for k in ks:
        rows = recommended[:, :k]
        rows = rows[rows > 0]
        counts = np.bincount(rows, minlength=len(popularity))[1:]
        results |= {
            f"coverage@{k}": float((counts > 0).mean()),
            f"popularity@{k}": float(popularity[rows].mean()) if rows.size else np.nan,
            f"gini@{k}": _gini(counts),
        }
    return results


def ranking_per_user(
    recommended: np.ndarray, relevant: np.ndarray, ks: Sequence[int] = (10, 100)
) -> dict[str, np.ndarray]:
    """Returns recall, NDCG and reciprocal rank of each user among the first k items, for each k.

    'recall@k': share of the relevant items that is recommended. 'ndcg@k': sum of 1 / log2(rank + 1) of the relevant
    items that are recommended, divided by that of the best list (Järvelin & Kekäläinen, 2002). 'mrr@k': 1 / rank of the
    first relevant item, 0 if none is recommended.

    Args:
      recommended: integer [users, length]: rows by decreasing score, each once; 0 ends a shorter list. Equal scores are
        in the order of the caller, such as that of `retrieval.top_k`: the lower row first.
      relevant: integer [users, most]: rows; 0 is padding, and a row twice counts once.
      ks: each at least 1, at most the length.

    Returns:
      {'recall@10': float64 [users], …}; NaN for a user without a relevant item.

    Raises:
      UserError: a k beyond the length, an item twice in a list, or arrays of other shapes.
    """
    recommended, relevant = np.asarray(recommended), np.asarray(relevant)
    _check(recommended, relevant, ks)
    relevant = np.sort(relevant, 1)
    relevant = np.where(np.diff(relevant, axis=1, prepend=-1) == 0, 0, relevant)  # a row twice
    count = (relevant > 0).sum(1)
    hits = np.concatenate(
        [np.zeros([0, recommended.shape[1]], bool)]
        + [
            ((rows[:, :, np.newaxis] == right[:, np.newaxis]) & (rows > 0)[:, :, np.newaxis]).any(2)
            for rows, right in zip(_blocks(recommended), _blocks(relevant), strict=True)
        ]
    )
    gains = 1 / np.log2(np.arange(2, recommended.shape[1] + 2))
    best = np.concatenate([[np.nan], np.cumsum(gains)])
    number = np.where(count > 0, count, np.nan)
    results: dict[str, np.ndarray] = {}
    for k in ks:
        first = np.where(hits[:, :k].any(1), hits[:, :k].argmax(1) + 1.0, np.inf)
        results |= {
            f"recall@{k}": hits[:, :k].sum(1) / number,
            f"ndcg@{k}": hits[:, :k] @ gains[:k] / best[np.minimum(count, k)],
            f"mrr@{k}": np.where(count > 0, 1 / first, np.nan),
        }
    return results


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the mean difference of two metrics of the same users, and its percentile interval (Efron, 1979).

    Args:
      ours, theirs: [users], such as 'recall@10' of `ranking_per_user`; users of whom either is NaN are left out.
      draws: how often as many users are drawn, with replacement.
      level: of the interval.
      seed: of the draws.

    Returns:
      mean of ours - theirs, low and high end: ours is better if low is above 0.
    """
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    if difference.ndim != 1 or not np.isfinite(difference).any():
        raise UserError(f"paired_bootstrap: differences have shape {difference.shape}, but must be numbers [users].")
    difference = difference[np.isfinite(difference)]
    random = np.random.default_rng(seed)
    means = [difference[random.integers(len(difference), size=len(difference))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


def _blocks(array: np.ndarray) -> list[np.ndarray]:
    return [array[begin : begin + _USERS] for begin in range(0, len(array), _USERS)]


def _gini(counts: np.ndarray) -> float:
    """Returns the Gini coefficient of counts of at least 0; NaN if all are 0."""
    if not counts.sum():
        return float("nan")
    size = len(counts)
    return float(((2 * np.arange(1, size + 1) - size - 1) * np.sort(counts)).sum() / (size * counts.sum()))


def _check(recommended: np.ndarray, relevant: np.ndarray, ks: Sequence[int]) -> None:
    are_rows = all(array.ndim == 2 and np.issubdtype(array.dtype, np.integer) for array in (recommended, relevant))
    if (
        not are_rows
        or len(recommended) != len(relevant)
        or min(recommended.min(initial=0), relevant.min(initial=0)) < 0
    ):
        raise UserError(
            f"ranking: recommended is {recommended.dtype} {recommended.shape} and relevant {relevant.dtype}"
            f" {relevant.shape}, but both are rows of at least 0, integer [users, length]."
        )
    length = recommended.shape[1]
    if not ks or not all(1 <= k <= length for k in ks):
        raise UserError(f"ranking: ks={[*ks]} must be numbers from 1 to {length}, the length of the lists.")
    ordered = np.sort(recommended, 1)
    twice = (np.diff(ordered, axis=1) == 0) & (ordered[:, 1:] > 0)
    if twice.any():
        user, place = np.argwhere(twice)[0]
        raise UserError(f"ranking: user {user} is recommended row {ordered[user, place + 1]} twice.")

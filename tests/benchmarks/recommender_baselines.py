"""Baselines of recommenders on MovieLens-100k: what a two-tower model has to be better than.

    python tests/benchmarks/recommender_baselines.py
    python tests/benchmarks/recommender_baselines.py --data_dir=DIR --name=ml-1m
    python tests/benchmarks/recommender_baselines.py --run=runs/retrieval

Ranking: leave-last-out in time, trained on all ratings but the last of each user; every film is ranked, those that the
user has rated are left out. With --run, a run of experiments/movielens_two_tower.py has a row too, and is compared with
each method by a paired bootstrap over users. Rating: RMSE on the folds u1 to u5, and on a random fifth. The methods are
NumPy in float64, with dense matrices of users and films, for which ml-1m is still small enough.

Sources: item-kNN, Sarwar et al., 2001; EASE, Steck, 2019, "Embarrassingly shallow autoencoders for sparse data"; iALS,
Hu, Koren and Volinsky, 2008, "Collaborative filtering for implicit feedback datasets"; biases and ALS, Koren, Bell and
Volinsky, 2009, "Matrix factorization techniques for recommender systems".
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from framework import metrics
from framework.data.sets.movielens import MovieLens, load_movielens
from framework.data.sets.rating_splits import Split, fold, leave_last_out, random_split

# ---- Who has seen what ----


def seen(user: np.ndarray, item: np.ndarray, users: int, items: int) -> np.ndarray:
    """Returns 1 where a user has rated an item, [users, items]."""
    matrix = np.zeros((users, items))
    matrix[user, item] = 1
    return matrix


def decayed(user: np.ndarray, item: np.ndarray, order: np.ndarray, shape: tuple[int, int], half_life: float):
    """Returns .5 ** (age / half_life) where a user has rated an item; the age of the latest one is 0, [users, items].

    Args:
      user, item: of each rating.
      order: indices that sort the ratings by user, then by time.
      shape: the numbers of users and of items.
      half_life: in films.
    """
    user, item = user[order], item[order]
    ends = np.cumsum(np.bincount(user, minlength=shape[0]))
    matrix = np.zeros(shape)
    matrix[user, item] = 0.5 ** ((ends[user] - 1 - np.arange(len(user))) / half_life)
    return matrix


# ---- Ranking: scores [users, items] ----


def popularity(x: np.ndarray) -> np.ndarray:
    """Returns the number of users of each item, the same for all users."""
    return np.broadcast_to(x.sum(axis=0), x.shape)


def item_knn(x: np.ndarray, neighbours: int = 200, shrink: float = 50.0) -> np.ndarray:
    """Returns the sums of the similarities to the items that a user has seen.

    Similarities are cosines whose denominator is larger by `shrink`; each item keeps its nearest `neighbours`.
    """
    products = x.T @ x
    norms = np.sqrt(np.diag(products))
    similar = products / (np.outer(norms, norms) + shrink)
    np.fill_diagonal(similar, 0)
    if neighbours < len(similar):
        least = np.partition(similar, -neighbours, axis=0)[-neighbours]
        similar = np.where(similar >= least, similar, 0)
    return x @ similar


def ease_weights(x: np.ndarray, regularization: float) -> np.ndarray:
    """Returns the weights [items, items] with a diagonal of 0 that predict x by x, penalised by their squares."""
    inverse = np.linalg.inv(x.T @ x + regularization * np.eye(x.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def ials(x: np.ndarray, size: int, unobserved: float, regularization: float, sweeps: int, seed: int = 0) -> np.ndarray:
    """Returns products of factors of users and items, fitted by alternating least squares.

    The loss is sum((1 - p_u q_i)^2) over what was seen, `unobserved` times sum((p_u q_i)^2) over all pairs, and
    `regularization` times the squares of the factors.
    """
    items = np.random.default_rng(seed).normal(0, 0.1 / np.sqrt(size), (x.shape[1], size))
    for _ in range(sweeps):
        users = _half_sweep(x, items, unobserved, regularization)
        items = _half_sweep(x.T, users, unobserved, regularization)
    return users @ items.T


def _half_sweep(x: np.ndarray, others: np.ndarray, unobserved: float, regularization: float) -> np.ndarray:
    """Returns the best factors of the rows of x, given those of its columns."""
    everywhere = unobserved * others.T @ others + regularization * np.eye(others.shape[1])
    matrices = [others[row > 0].T @ others[row > 0] + everywhere for row in x]
    return np.linalg.solve(np.array(matrices), (x @ others)[..., np.newaxis])[..., 0]


# ---- Ratings ----


def biases(user, item, rating, users: int, items: int, regularization: float = 5.0, sweeps: int = 20):
    """Returns (mean, biases of users, biases of items), each the sum of the rest over (ratings + regularization)."""
    mean = rating.mean()
    of_user, of_item = np.zeros(users), np.zeros(items)
    for _ in range(sweeps):
        of_item = _bias(item, rating - mean - of_user[user], items, regularization)
        of_user = _bias(user, rating - mean - of_item[item], users, regularization)
    return mean, of_user, of_item


def _bias(rows: np.ndarray, rest: np.ndarray, count: int, regularization: float) -> np.ndarray:
    return np.bincount(rows, rest, count) / (np.bincount(rows, minlength=count) + regularization)


def factors(user, item, rest, users: int, items: int, size: int = 10, regularization: float = 12.0, sweeps: int = 15):
    """Returns factors of users and of items, [count, size], whose products fit what biases leave of the ratings."""
    of_item = np.random.default_rng(0).normal(0, 0.1, (items, size))
    of_user = np.zeros((users, size))
    for _ in range(sweeps):
        of_user = _ridge(user, of_item[item], rest, users, regularization)
        of_item = _ridge(item, of_user[user], rest, items, regularization)
    return of_user, of_item


def _ridge(rows: np.ndarray, others: np.ndarray, rest: np.ndarray, count: int, regularization: float) -> np.ndarray:
    """Returns the ridge solution of each row: of the ratings of a user, or of an item."""
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(count + 1))
    solutions = np.zeros((count, others.shape[1]))
    for row, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        known, target = others[order[start:stop]], rest[order[start:stop]]
        solutions[row] = np.linalg.solve(known.T @ known + regularization * np.eye(known.shape[1]), known.T @ target)
    return solutions


# ---- Measures ----


def ranks(scores: np.ndarray, known: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the place, from 1, of each user's target among the unseen items; of equal ones the lower comes first."""
    scores = np.where(known > 0, -np.inf, scores)
    own = np.take_along_axis(scores, targets[:, np.newaxis], axis=1)
    is_before = np.arange(scores.shape[1]) < targets[:, np.newaxis]
    return 1 + ((scores > own) | ((scores == own) & is_before)).sum(axis=1)


def measures(place: np.ndarray, scores: np.ndarray | None = None, known: np.ndarray | None = None) -> dict[str, float]:
    """Returns recall, NDCG and MRR of ranks and, of scores, the share of items that are in anyone's first ten."""
    numbers = {
        "recall@10": np.mean(place <= 10),
        "recall@100": np.mean(place <= 100),
        "NDCG@10": np.mean(ndcg(place)),
        "MRR": np.mean(1 / place),
    }
    if scores is not None:
        first = np.argsort(-np.where(known > 0, -np.inf, scores), axis=1, kind="stable")[:, :10]
        numbers["coverage@10"] = len(np.unique(first)) / scores.shape[1]
    return numbers


def ndcg(place: np.ndarray) -> np.ndarray:
    """Returns the NDCG@10 of each user, of whom one item is held out."""
    return (place <= 10) / np.log2(1 + place)


def rmse(ratings: MovieLens, split: Split, size: int) -> float:
    """Returns the error of the ratings of 'test', clipped to 1..5, by biases and, if size > 0, factors of that size."""
    user, item, rating = (ratings.arrays[name] for name in ("user", "item", "rating"))
    counts = (len(ratings.users["id"]), len(ratings.items["id"]))
    train, test = split.parts["train"], split.parts["test"]
    mean, of_user, of_item = biases(user[train], item[train], rating[train].astype(np.float64), *counts)

    def by_biases(rows: np.ndarray) -> np.ndarray:
        return mean + of_user[user[rows]] + of_item[item[rows]]

    guess = by_biases(test)
    if size:
        users, items = factors(user[train], item[train], rating[train] - by_biases(train), *counts, size)
        guess = guess + (users[user[test]] * items[item[test]]).sum(axis=1)
    return float(np.sqrt(np.mean((guess.clip(1, 5) - rating[test]) ** 2)))


# ---- The tables ----


def ranking_table(ratings: MovieLens, run: str = "") -> None:
    """Prints the measures of each method of ranking, and those of a run beside them."""
    user, item, timestamp = (ratings.arrays[name] for name in ("user", "item", "timestamp"))
    shape = len(ratings.users["id"]), len(ratings.items["id"])
    parts = leave_last_out(ratings).parts
    order = np.lexsort((np.arange(len(user)), timestamp, user))
    order = order[~np.isin(order, parts["test"])]
    x = seen(user[order], item[order], *shape)
    weighted = decayed(user, item, order, shape, half_life=5)
    methods: dict[str, Callable[[], np.ndarray]] = {
        "popularity": lambda: popularity(x),
        "item-kNN, cosine, k=200, shrink 50": lambda: item_knn(x),
        "EASE, lambda 100": lambda: x @ ease_weights(x, 100),
        "EASE, lambda 400, history .5^(age/5)": lambda: weighted @ ease_weights(x, 400),
        "iALS, 64 factors": lambda: ials(x, 64, unobserved=0.3, regularization=3.0, sweeps=8),
    }
    test_user, targets = user[parts["test"]], item[parts["test"]]
    known = x[test_user]
    print(f"{'ranking':40}{'recall@10':>12}{'recall@100':>12}{'NDCG@10':>12}{'MRR':>12}{'coverage@10':>12}{'s':>8}")
    places = {}
    for name, method in methods.items():
        start = time.perf_counter()
        scores = method()[test_user]
        took = time.perf_counter() - start
        places[name] = ranks(scores, known, targets)
        numbers = measures(places[name], scores, known).values()
        print(f"{name:40}" + "".join(f"{number:12.4f}" for number in numbers) + f"{took:8.1f}", flush=True)
    if run:
        compare(run, places_of_run(run), places)


def places_of_run(folder: str) -> np.ndarray:
    """Returns the place of each held-out film by the last checkpoint of a run, in the order of the file."""
    import framework

    run = framework.build("experiments/movielens_two_tower.py", workdir=folder, from_workdir=True)
    return run.evaluators["ranking"].ranked(run)[0]


def compare(run: str, place: np.ndarray, places: dict[str, np.ndarray]) -> None:
    """Prints the measures of a run, and its differences to each method with intervals of 95 %."""
    print(f"{run:40}" + "".join(f"{number:12.4f}" for number in measures(place).values()))
    for name, theirs in places.items():
        recall = metrics.paired_bootstrap(place <= 10, theirs <= 10)
        gain = metrics.paired_bootstrap(ndcg(place), ndcg(theirs))
        texts = [
            f"{what} {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            for what, (mean, low, high) in {"recall@10": recall, "NDCG@10": gain}.items()
        ]
        print(f"  less {name:36} " + ", ".join(texts))


def rating_table(ratings: MovieLens) -> None:
    """Prints the RMSE of each method on each split."""
    splits = {f"u{number}": fold(ratings, number) for number in range(1, 6)}
    splits["random 80/20"] = random_split(ratings, 0.2, seed=0)
    print(f"\n{'RMSE':40}" + "".join(f"{name:>14}" for name in [*splits, "mean of u1-u5"]))
    for name, size in {"biases": 0, "biases + ALS, 10 factors": 10}.items():
        errors = [rmse(ratings, split, size) for split in splits.values()]
        print(f"{name:40}" + "".join(f"{error:14.4f}" for error in [*errors, np.mean(errors[:5])]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="ml-100k")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--run", default="", help="run folder of experiments/movielens_two_tower.py")
    arguments = parser.parse_args()
    ratings = load_movielens(arguments.name, arguments.data_dir)
    ranking_table(ratings, arguments.run)
    rating_table(ratings)


if __name__ == "__main__":
    main()

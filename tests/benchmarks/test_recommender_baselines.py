"""tests/benchmarks/recommender_baselines.py: each method beside its definition, and the table of ml-100k."""

import importlib.metadata

import numpy as np
import pytest

from tests.benchmarks import recommender_baselines as baselines

USERS, ITEMS = 12, 9


@pytest.fixture(scope="module")
def x():
    return (np.random.default_rng(0).random((USERS, ITEMS)) < 0.4).astype(float)


def test_histories_decay_by_the_age_of_each_film():
    user, item, order = np.array([1, 0, 1, 1]), np.array([2, 0, 1, 0]), np.array([1, 3, 0, 2])
    np.testing.assert_allclose(
        baselines.decayed(user, item, order, (3, 3), half_life=2), [[1, 0, 0], [0.5, 1, 2**-0.5], [0, 0, 0]]
    )
    assert baselines.seen(user, item, 3, 3).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_item_knn_sums_similarities_to_the_nearest(x):
    similar = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        cosines = [
            0 if other == item else x[:, item] @ x[:, other] / (x[:, item].sum() ** 0.5 * x[:, other].sum() ** 0.5 + 2)
            for other in range(ITEMS)
        ]
        for other in np.flatnonzero(cosines >= np.sort(cosines)[-3]):  # all of equal ones
            similar[other, item] = cosines[other]
    np.testing.assert_allclose(baselines.item_knn(x, neighbours=3, shrink=2), x @ similar, rtol=1e-12)


def test_ease_is_the_ridge_of_each_item_by_the_others(x):
    weights = baselines.ease_weights(x, 3.0)
    for item in range(ITEMS):
        others = np.arange(ITEMS) != item
        known = x[:, others]
        best = np.linalg.solve(known.T @ known + 3 * np.eye(ITEMS - 1), known.T @ x[:, item])
        np.testing.assert_allclose(weights[others, item], best, rtol=1e-9)
        assert weights[item, item] == 0


def test_each_half_sweep_of_ials_is_a_minimum(x):
    items = np.random.default_rng(1).normal(size=(ITEMS, 3))
    users = baselines._half_sweep(x, items, 0.2, 0.7)
    scores = users @ items.T
    # The derivative of sum(x (1 - s)^2) + .2 sum(s^2) + .7 sum(users^2) by the factors of users.
    slope = (x * (scores - 1) + 0.2 * scores) @ items + 0.7 * users
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    fitted = baselines.ials(x, 3, 0.2, 0.7, 30)
    assert fitted[x > 0].mean() > fitted[x == 0].mean() + 0.3


def test_biases_and_factors_are_minima():
    draws = np.random.default_rng(0)
    user, item = np.nonzero(draws.random((USERS, ITEMS)) < 0.6)
    rating = draws.integers(1, 6, len(user)).astype(float)
    mean, of_user, of_item = baselines.biases(user, item, rating, USERS, ITEMS, 5.0, 200)
    rest = rating - mean - of_user[user] - of_item[item]
    np.testing.assert_allclose(np.bincount(user, rest, USERS), 5 * of_user, atol=1e-9)
    np.testing.assert_allclose(np.bincount(item, rest, ITEMS), 5 * of_item, atol=1e-9)
    users, items = baselines.factors(user, item, rest, USERS, ITEMS, 2, 0.5, 3)
    # The last half sweep was that of items.
    left = rest - (users[user] * items[item]).sum(1)
    slope = np.zeros_like(items)
    np.add.at(slope, item, -left[:, None] * users[user])
    np.testing.assert_allclose(slope + 0.5 * items, 0, atol=1e-9)


def test_measures_are_those_of_a_sorted_list():
    scores = np.array([[3.0, 1, 2, 2], [0, 0, 0, 0], [1, 2, 3, 4]])
    known = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert baselines.ranks(scores, known, np.array([3, 1, 0])).tolist() == [2, 2, 4]
    assert baselines.measures(np.array([2, 2, 4]), scores, known) == pytest.approx(
        {
            "recall@10": 1,
            "recall@100": 1,
            "NDCG@10": (2 / np.log2(3) + 1 / np.log2(5)) / 3,
            "MRR": (1 / 2 + 1 / 2 + 1 / 4) / 3,
            "coverage@10": 1,
        }
    )


def test_a_run_is_compared_with_each_method(capsys):
    place, theirs = np.array([1, 2, 30, 200]), np.array([20, 20, 20, 20])
    baselines.compare("runs/x", place, {"theirs": theirs, "equal": place})
    lines = capsys.readouterr().out.splitlines()
    assert [float(word) for word in lines[0].split()[1:]] == pytest.approx(
        [0.5, 0.75, (1 + 1 / np.log2(3)) / 4, (1 + 1 / 2 + 1 / 30 + 1 / 200) / 4], abs=5e-5
    )
    assert "less theirs" in lines[1] and "recall@10 +0.5000 [+0.0000, +1.0000]" in lines[1]
    assert "recall@10 +0.0000 [+0.0000, +0.0000], NDCG@10 +0.0000 [+0.0000, +0.0000]" in lines[2]


def test_the_numbers_of_ml_100k(capsys, monkeypatch):
    try:
        importlib.metadata.distribution("recbole")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("recbole, which has ml-100k, is not installed: make test EXTRAS=recommend")
    ratings = baselines.load_movielens()
    monkeypatch.setattr(baselines, "ials", lambda x, *args, **kwargs: x)  # takes ten times the time of the others
    baselines.ranking_table(ratings)
    rows = capsys.readouterr().out.splitlines()[1:]
    numbers = [[float(word) for word in row[40:].split()[:3]] for row in rows]  # recall@10, recall@100, NDCG@10
    expected = [[0.0859, 0.3181, 0.0449], [0.1166, 0.4836, 0.0620], [0.1485, 0.5536, 0.0723], [0.1951, 0.6098, 0.1034]]
    np.testing.assert_allclose(numbers[:4], expected, atol=2e-4)
    split = baselines.fold(ratings, 1)
    assert [baselines.rmse(ratings, split, size) for size in (0, 10)] == pytest.approx([0.9547, 0.9297], abs=2e-4)

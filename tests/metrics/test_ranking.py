"""framework/metrics/ranking.py against definitions in plain Python, user by user."""

import math

import numpy as np
import pytest

from framework import metrics
from framework.errors import UserError

ROWS, LENGTH = 30, 8


def given(users=2100, most=4):
    """Lists, some of which end early, and relevant rows, of some users none and of some one twice."""
    random = np.random.default_rng(6)
    recommended = np.array([random.permutation(np.arange(1, ROWS))[:LENGTH] for _ in range(users)])
    recommended[::5, 5:] = 0
    relevant = random.integers(0, ROWS, size=(users, most))
    relevant[3] = 0
    relevant[4] = [7, 7, 0, 7]
    return recommended, relevant


def of_user(recommended, relevant, k):
    relevant = set(relevant.tolist()) - {0}
    if not relevant:
        return [math.nan] * 3
    places = [rank for rank, row in enumerate(recommended[:k], 1) if row in relevant]
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
    gain = sum(1 / math.log2(rank + 1) for rank in places)
    return [len(places) / len(relevant), gain / best, 1 / places[0] if places else 0.0]


@pytest.mark.parametrize("k", [1, 5, LENGTH])
def test_numbers_of_users_are_those_of_the_definitions(k):
    recommended, relevant = given()
    found = metrics.ranking_per_user(recommended, relevant, ks=(2, k))
    expected = np.array([of_user(*user, k) for user in zip(recommended, relevant, strict=True)])
    for place, name in enumerate(("recall", "ndcg", "mrr")):
        np.testing.assert_allclose(found[f"{name}@{k}"], expected[:, place], rtol=1e-13)


def test_one_held_out_item_by_hand():
    recommended = np.array([[4, 2, 9], [4, 2, 9], [1, 2, 0]])
    found = metrics.ranking_per_user(recommended, np.array([[9], [3], [1]]), ks=(2, 3))
    assert found["recall@2"].tolist() == [0, 0, 1] and found["recall@3"].tolist() == [1, 0, 1]
    assert found["ndcg@3"].tolist() == [0.5, 0, 1]
    assert found["mrr@3"].tolist() == [pytest.approx(1 / 3), 0, 1]


def gini(counts):
    """Half of the mean difference of two items, relative to the mean."""
    counts = np.asarray(counts, np.float64)
    return np.abs(counts[:, np.newaxis] - counts).mean() / (2 * counts.mean())


def test_means_are_over_users_with_a_relevant_item_and_lists_together_say_what_is_recommended():
    recommended, relevant = given(40)
    popularity = np.arange(ROWS) ** 2.0
    found = metrics.ranking(recommended, relevant, popularity, ks=(3, 6))
    for k in (3, 6):
        each = np.array([of_user(*user, k) for user in zip(recommended, relevant, strict=True)])
        for place, name in enumerate(("recall", "ndcg", "mrr")):
            assert found[f"{name}@{k}"] == pytest.approx(np.nanmean(each[:, place]), rel=1e-13)
        rows = [row for some in recommended for row in some[:k] if row]
        counts = [rows.count(row) for row in range(1, ROWS)]
        assert found[f"coverage@{k}"] == np.mean([count > 0 for count in counts])
        assert found[f"popularity@{k}"] == pytest.approx(np.mean([row**2 for row in rows]), rel=1e-13)
        assert found[f"gini@{k}"] == pytest.approx(gini(counts), rel=1e-12)


def test_the_same_list_for_all_is_unequal_and_all_items_alike_are_equal():
    same = np.tile([1, 2], (4, 1))
    found = metrics.ranking(same, np.ones([4, 1], int), np.ones(11), ks=(2,))
    assert found["gini@2"] == pytest.approx(0.8) and found["coverage@2"] == 0.2
    found = metrics.ranking(np.array([[1, 2], [3, 4]]), np.ones([2, 1], int), np.ones(5), ks=(2,))
    assert found["gini@2"] == 0 and found["coverage@2"] == 1


def test_an_interval_of_paired_users_has_the_width_of_the_standard_error():
    random = np.random.default_rng(0)
    theirs = random.normal(size=900)
    ours = theirs + 0.1 + random.normal(size=900)
    theirs[5] = ours[7] = np.nan
    kept = np.isfinite(ours - theirs)
    mean, low, high = metrics.paired_bootstrap(ours, theirs, draws=4000)
    difference = (ours - theirs)[kept]
    assert mean == pytest.approx(difference.mean(), rel=1e-12)
    error = difference.std() / math.sqrt(kept.sum())
    assert [low, high] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.15 * error)
    assert metrics.paired_bootstrap(ours, theirs, draws=50) == metrics.paired_bootstrap(ours, theirs, draws=50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": (9,)}, "ranking: ks=[9] must be numbers from 1 to 8, the length of the lists."),
        ({"ks": ()}, "ranking: ks=[] must be numbers from 1 to 8, the length of the lists."),
        (
            {"relevant": np.zeros([3, 1])},
            "ranking: recommended is int64 (4, 8) and relevant float64 (3, 1), but both are rows of at least 0, integer"
            " [users, length].",
        ),
        ({"recommended": np.array([[1, 2, 1, 0, 0, 0, 0, 0]] * 4)}, "ranking: user 0 is recommended row 1 twice."),
        (
            {"popularity": np.ones(9)},
            "ranking: popularity has shape (9,) and the largest recommended row is 29, but popularity is [rows], one"
            " for each row of the items.",
        ),
    ],
)
def test_what_is_no_list_of_all_items_is_refused(change, message):
    recommended, relevant = (array[5:9] for array in given())
    recommended[0] = range(22, 30)
    arguments = {"recommended": recommended, "relevant": relevant, "popularity": np.ones(ROWS), "ks": (2,), **change}
    with pytest.raises(UserError) as error:
        metrics.ranking(**arguments)
    assert str(error.value) == message


def test_differences_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match=r"paired_bootstrap: differences have shape \(2,\), but must be numbers"):
        metrics.paired_bootstrap([np.nan, 1.0], [1.0, np.nan])

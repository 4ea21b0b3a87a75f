"""evaluators/ranking.py against a sort of all scores."""

import types

import numpy as np
import pytest
import tensorflow as tf

from framework import evaluators
from framework.errors import UserError
from framework.evaluators import ranking

USERS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float32)
ITEMS = np.array([[9, 9], [3, 0], [2, 5], [1, 4], [0, 1]], np.float32)  # row 0 is padding
HELD_OUT = np.array([2, 4, 3])
SEEN = np.array([[1, 0], [2, 3], [0, 0]], np.int32)


@pytest.fixture
def run(monkeypatch):
    """A run whose split has three held-out films, in two batches."""
    batches = [({"film": HELD_OUT[:2]}, {"users": USERS[:2]}), ({"film": HELD_OUT[2:]}, {"users": USERS[2:]})]
    monkeypatch.setattr(ranking, "predictions", lambda run: iter(batches))
    return types.SimpleNamespace(model=types.SimpleNamespace(items=lambda: tf.constant(ITEMS)))


def test_the_place_is_that_among_unseen_items(run):
    evaluator = evaluators.Ranking(SEEN, np.array([0, 4, 3, 2, 1]), target="film", ks=(1, 2))
    assert evaluator.modes == {"recall@1": "max", "ndcg@1": "max"}
    places, rows, target = evaluator.ranked(run)
    expected = []
    for user, held_out, seen in zip(USERS, HELD_OUT, SEEN, strict=True):
        scores = ITEMS @ user
        left = [row for row in np.argsort(-scores, kind="stable") if row and row not in seen]
        expected.append(left.index(held_out) + 1)
        assert [row for row in rows[len(expected) - 1] if row] == left
    assert places.tolist() == expected == [1, 1, 2]
    np.testing.assert_array_equal(target, HELD_OUT)
    scalars = evaluator(run).scalars
    assert scalars["recall@1"] == pytest.approx(np.mean(np.array(expected) <= 1))
    assert scalars["mrr"] == pytest.approx(np.mean(1 / np.array(expected)))
    shown = rows[:, 0]
    assert scalars["popularity@1"] == pytest.approx(np.mean(np.array([0, 4, 3, 2, 1])[shown]))


@pytest.mark.parametrize("count", [4, 6])  # without padding; of other items
def test_popularity_is_of_the_rows_of_the_items(run, count):
    evaluator = evaluators.Ranking(SEEN, np.ones(count), target="film", ks=(1,))
    with pytest.raises(UserError, match=rf"popularity has shape \({count},\), but model.items\(\) returns 5 rows"):
        evaluator(run)


def test_fields_that_are_not_there_are_named(run):
    for name, problem in (
        ("target", "the batch has no 'it', only film"),
        ("users", "the loss has no 'it', only users"),
    ):
        with pytest.raises(UserError, match=problem):
            evaluators.Ranking(SEEN, np.ones(5), **{"target": "film", "ks": (1,), name: "it"})(run)


def test_held_out_items_that_are_seen_count_as_not_found_and_a_warning_says_so(run, caplog):
    seen = SEEN.copy()
    seen[1, 1], seen[2, 0] = HELD_OUT[1:]  # 2 of 3
    evaluator = evaluators.Ranking(seen, np.ones(5), target="film", ks=(4,))
    scalars = [evaluator(run).scalars for _ in range(2)]
    assert scalars[0]["recall@4"] == scalars[1]["recall@4"] == pytest.approx(1 / 3)
    assert [record.getMessage()[:61] for record in caplog.records] == [
        "Ranking: 2 of 3 held-out items are among the seen ones of the"
    ]


@pytest.mark.parametrize("ks", [(10, 200), (0, 10), ()])
def test_lists_of_1_to_100_items(ks):
    with pytest.raises(UserError) as error:
        evaluators.Ranking(SEEN, np.ones(5), ks=ks)
    assert str(error.value) == f"Ranking: ks={ks} is out of range: use numbers from 1 to 100."

"""framework/retrieval/approximate.py beside the exact search; without faiss one line says what to install."""

import importlib.util
import sys

import numpy as np
import pytest

from framework import extras, retrieval
from framework.errors import UserError

with_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


def given():
    random = np.random.default_rng(1)
    items, users = (random.normal(size=(n, 16)).astype(np.float32) for n in (400, 30))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    return items, users, random.integers(0, 400, size=(30, 25))


@with_faiss
def test_nearly_all_of_the_best_are_found_and_none_that_was_seen():
    items, users, seen = given()
    index = retrieval.Approximate(items)
    for some in (None, seen):
        scores, rows = index.top_k(users, 10, some)
        best, exact = retrieval.top_k_of_all(users, items, 10, some)
        assert retrieval.overlap(rows, exact) > 0.98
        is_same = rows == exact
        np.testing.assert_allclose(scores[is_same], best[is_same], rtol=1e-5)
        assert scores.dtype == np.float32 and rows.dtype == np.int32 and (rows > 0).all()
        assert some is None or not any(np.isin(one, of_user).any() for one, of_user in zip(rows, some, strict=True))


@with_faiss
def test_a_list_with_too_few_items_ends_with_rows_0():
    items, users, _ = given()
    index = retrieval.Approximate(items[:5])
    scores, rows = index.top_k(users[:1], 6, np.array([[2, 3]]))
    assert sorted(rows[0, :2]) == [1, 4] and not rows[0, 2:].any() and np.isneginf(scores[0, 2:]).all()


@with_faiss
def test_what_has_no_order_is_refused():
    items, users, _ = given()
    with pytest.raises(UserError, match=r"Approximate: items have shape \(1, 16\), but must be finite"):
        retrieval.Approximate(items[:1])
    index = retrieval.Approximate(items)
    with pytest.raises(UserError, match=r"Approximate\.top_k: k=0 must be at least 1\."):
        index.top_k(users, 0)
    users[0, 0] = np.nan
    with pytest.raises(UserError, match=r"Approximate\.top_k: vectors of users are not finite\."):
        index.top_k(users, 1)


def test_without_faiss_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError) as error:
        retrieval.Approximate(np.ones([3, 2], np.float32))
    assert str(error.value) == (
        f"faiss is not installed. Type python -m pip install {' '.join(extras.pins('recommend'))}"
    )


def test_an_overlap_is_the_share_of_the_exact_lists():
    exact = np.array([[1, 2, 3], [4, 5, 0]])
    assert retrieval.overlap(np.array([[3, 9, 1], [0, 0, 0]]), exact) == 0.4
    with pytest.raises(UserError, match="there are 1 lists and 2 exact ones"):
        retrieval.overlap(exact[:1], exact)

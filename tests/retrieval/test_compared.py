"""framework/retrieval/compared.py: the recall of an approximate index by brute force, and one line without faiss."""

import importlib.util
import sys

import numpy as np
import pytest

from framework import extras, retrieval


def given():
    random = np.random.default_rng(3)
    items, users = (random.normal(size=(n, 8)) for n in (60, 20))
    return users, items, random.integers(0, 60, size=(20, 7))


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
@pytest.mark.parametrize("is_seen", [False, True])
def test_the_recall_is_the_share_of_the_lists_of_brute_force(is_seen):
    users, items, seen = given()
    found = retrieval.compared(users, items, 5, seen if is_seen else None)
    scores = users.astype(np.float32) @ items.T.astype(np.float32)
    scores[:, 0] = -np.inf
    if is_seen:
        np.put_along_axis(scores, seen, -np.inf, 1)
    exact = np.argsort(-scores, 1)[:, :5]
    index = retrieval.Approximate(items)
    rows = index.top_k(users, 5, seen if is_seen else None)[1]
    expected = np.mean([len(set(one) & set(other)) / 5 for one, other in zip(rows, exact, strict=True)])
    assert found["recall@5"] == pytest.approx(expected) and expected > 0.9
    assert (found["items"], found["users"]) == (59, 20)
    assert all(0 < found[name] < 1000 for name in ("exact_ms", "approximate_ms")) and found["build_seconds"] > 0


def test_without_faiss_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    users, items, _ = given()
    pins = " ".join(extras.pins("recommend"))
    line = f"faiss is not installed. Type python -m pip install {pins}"
    assert retrieval.compared(users, items, 5) == {"missing": line}

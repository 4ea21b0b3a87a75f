"""Searches of all items against a full sort in NumPy: blocks, ties, seen items, users with few items left."""

import numpy as np
import pytest
import tensorflow as tf

from framework import retrieval
from framework.errors import UserError
from framework.retrieval import of_all
from tests.compile_modes import FAST_COMPILED, MODES

USERS, ROWS, WIDTH = 7, 23, 3
each_mode = pytest.mark.parametrize("compiled", FAST_COMPILED)
BLOCKS = {1: pytest.mark.slow, 5: pytest.mark.slow, 8: (), 23: pytest.mark.slow, 8192: ()}  # how XLA is tested
each_way = pytest.mark.parametrize(
    ("compiled", "item_block"),
    [
        pytest.param(compiled, block, id=f"{mode}-{block}", marks=BLOCKS[block] if mode == "xla" else ())
        for mode, compiled in MODES.items()
        for block in BLOCKS
    ],
)


def given():
    """Vectors of small whole numbers, so that products are exact and many are equal."""
    random = np.random.default_rng(3)
    users, items = (random.integers(-2, 3, size=(n, WIDTH)).astype(np.float32) for n in (USERS, ROWS))
    seen = retrieval.padded([random.permutation(np.arange(1, ROWS))[:n] for n in (0, 1, 5, 3, 19, 22, 2)])
    return users, items, seen


def ordered(users, items, seen=None):
    """The rows of each user by decreasing score, of equal ones the lower first."""
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    lists = []
    for user, of_user in enumerate(scores):
        left = [row for row in range(1, len(items)) if seen is None or row not in seen[user]]
        lists.append(sorted(left, key=lambda row: (-of_user[row], row)))
    return scores, lists


def expected(users, items, seen, k):
    scores, lists = ordered(users, items, seen)
    rows = np.array([[*some[:k], *[0] * (k - len(some))] for some in lists])
    return np.where(rows > 0, np.take_along_axis(scores, rows, 1), -np.inf), rows


@each_way
@pytest.mark.parametrize("has_seen", [False, True])
def test_it_is_the_beginning_of_a_full_sort(compiled, item_block, has_seen):
    users, items, seen = given()
    seen = seen if has_seen else None
    k = 6
    scores, rows = compiled(lambda: retrieval.top_k(tf.constant(users), tf.constant(items), k, seen, item_block))()
    best, right = expected(users, items, seen, k)
    assert rows.dtype == tf.int32 and rows.numpy().tolist() == right.tolist()
    assert scores.numpy().tolist() == best.tolist()


@each_way
@pytest.mark.parametrize("has_seen", [False, True])
def test_ranks_are_places_in_a_full_sort(compiled, item_block, has_seen):
    users, items, seen = given()
    targets = np.array([4, 1, 22, 9, 13, 7, 3], np.int32)
    if has_seen:  # what is held out was not seen
        seen = np.where(seen == targets[:, np.newaxis], 0, seen)
    seen = seen if has_seen else None
    found = compiled(lambda: retrieval.ranks(tf.constant(users), tf.constant(items), targets, seen, item_block))()
    lists = ordered(users, items, seen)[1]
    assert found.numpy().tolist() == [some.index(row) + 1 for some, row in zip(lists, targets, strict=True)]


def test_equal_scores_of_real_numbers_are_ranked_as_they_are_recommended():
    """The score of the target has the bits of the others': items that are copies of each other are in order."""
    random = np.random.default_rng(0)
    items = np.repeat(random.normal(size=(50, 64)).astype(np.float32), 4, 0)
    users = random.normal(size=(9, 64)).astype(np.float32)
    _, rows = retrieval.top_k_of_all(users, items, 199, item_block=32)
    for place in (0, 1, 57, 198):
        found = retrieval.ranks_of_all(users, items, rows[:, place], item_block=32)
        assert found.tolist() == [place + 1] * 9


@each_mode
@pytest.mark.parametrize("item_block", [32, 77, 8192])
def test_equal_scores_of_real_numbers_are_in_the_order_of_their_rows_in_each_mode(compiled, item_block):
    """Copies of an item, far from each other, have scores of the same bits, whatever compiles the product."""
    random = np.random.default_rng(1)
    of_row = random.permutation(np.repeat(np.arange(50), 4))  # which item each row is a copy of
    items = random.normal(size=(50, 64)).astype(np.float32)[of_row]
    users = random.normal(size=(9, 64)).astype(np.float32)
    seen = np.tile(np.arange(1, 30, 3), (9, 1))
    function = compiled(lambda: retrieval.top_k(tf.constant(users), tf.constant(items), 189, seen, item_block))
    scores, rows = (found.numpy() for found in function())
    assert (np.sort(rows) == np.setdiff1d(np.arange(1, 200), seen[0])).all()
    is_copy = of_row[rows[:, 1:]] == of_row[rows[:, :-1]]
    assert is_copy.sum() > 9 * 120  # copies stand side by side: nothing else comes between them
    assert (np.diff(rows)[is_copy] > 0).all() and (np.diff(scores)[is_copy] == 0).all()
    order = np.argsort(-(users.astype(np.float64) @ items.T)[:, 1:], 1, kind="stable") + 1
    left = order[~np.isin(order, seen[0])].reshape(9, 189)
    assert of_row[rows].tolist() == of_row[left].tolist()


@pytest.mark.parametrize("item_block", [8, 8192])
def test_a_row_that_is_seen_twice_or_is_no_row_counts_once_or_not_at_all(item_block):
    users, items, seen = given()
    targets = ordered(users, items, seen)[1]
    kept = [user for user, some in enumerate(targets) if some]
    wanted = np.array([targets[user][-1] for user in kept])
    twice = np.concatenate([seen, seen, np.full_like(seen, 99), np.full_like(seen, -5)], 1)[kept]
    once = retrieval.ranks_of_all(users[kept], items, wanted, seen[kept], 4, item_block)
    assert once.tolist() == [len(targets[user]) for user in kept]
    assert retrieval.ranks_of_all(users[kept], items, wanted, twice, 4, item_block).tolist() == once.tolist()
    right = retrieval.top_k_of_all(users[kept], items, 6, seen[kept], 4, item_block)[1]
    assert retrieval.top_k_of_all(users[kept], items, 6, twice, 4, item_block)[1].tolist() == right.tolist()


@pytest.mark.parametrize("user_block", [1, 3, 7, 100])
def test_users_in_blocks_get_what_they_get_together(user_block):
    users, items, seen = given()
    best, right = expected(users, items, seen, 4)
    scores, rows = retrieval.top_k_of_all(users, items, 4, seen, user_block, 8)
    assert rows.tolist() == right.tolist() and scores.tolist() == best.tolist()
    targets = right[:, 0].copy()
    targets[5] = 9  # user 5 has seen everything
    found = retrieval.ranks_of_all(users, items, targets, seen, user_block, 8)
    assert found.tolist() == [1] * USERS


@pytest.mark.parametrize("kept_bytes", [0, 3 * ROWS, 2**27])
@pytest.mark.parametrize(("user_block", "item_block"), [(3, 8), (3, 23), (100, 8192)])
def test_places_and_lists_come_out_of_one_search_and_what_is_seen_is_prepared_once(
    monkeypatch, kept_bytes, user_block, item_block
):
    monkeypatch.setattr(of_all, "_KEPT_BYTES", kept_bytes)
    users, items, seen = given()
    seen[5] = seen[4]  # user 5 has seen everything but three rows, too
    lists = ordered(users, items, seen)[1]
    targets = np.array([some[len(some) // 2] for some in lists])
    prepared = retrieval.Seen(seen)
    for given_seen in (seen, prepared, prepared):
        places, rows = retrieval.ranked_of_all(users, items, targets, 4, given_seen, user_block, item_block)
        assert places.tolist() == [len(some) // 2 + 1 for some in lists]
        assert rows.tolist() == expected(users, items, seen, 4)[1].tolist()
    size = min(user_block, USERS)
    once, again = ([*prepared.blocks(size, ROWS)] for _ in range(2))
    is_kept = len(once) * size * ROWS <= kept_bytes
    assert [first is second for first, second in zip(once, again, strict=True)] == [is_kept] * len(once)
    shape = [size, ROWS] if size * ROWS <= kept_bytes else [size, seen.shape[1]]  # a mask of all items, or the rows
    assert all(block.shape == shape for block in once)
    seen[:] = 0  # what was prepared does not change with the array
    assert retrieval.ranks_of_all(users, items, targets, prepared).tolist() == places.tolist()


def test_a_score_that_is_nan_is_never_a_recommendation():
    users, items, seen = given()
    users[2, 1] = np.nan
    scores, rows = retrieval.top_k(tf.constant(users), tf.constant(items), 3, seen)
    assert np.isnan(scores[2]).all() and not rows[2].numpy().any()
    assert np.isfinite(scores[3]).all()
    for call in (
        lambda: retrieval.top_k_of_all(users, items, 3, seen),
        lambda: retrieval.ranked_of_all(users, items, np.ones(USERS, int), 3),
        lambda: retrieval.ranks_of_all(users, items, np.ones(USERS, int)),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == (
            "1 users have a score that is NaN, the first is user 2: vectors of users or items are not finite."
        )


def test_an_item_of_the_score_minus_infinity_is_never_recommended():
    users, items, _ = given()
    users, items = np.concatenate([users, np.ones([USERS, 1], np.float32)], 1), np.pad(items, [[0, 0], [0, 1]])
    items[5:, -1] = -np.inf
    _, rows = retrieval.top_k_of_all(users, items, 6)
    assert [sorted(some) for some in rows.tolist()] == [[0, 0, 1, 2, 3, 4]] * USERS


def test_no_more_than_a_block_of_scores_is_in_memory():
    """The graph has no tensor of all users and items."""
    specs = [tf.TensorSpec([64, 4], tf.float32), tf.TensorSpec([1000, 4], tf.float32)]
    function = tf.function(lambda users, items: retrieval.top_k(users, items, 5, item_block=50), autograph=False)
    definition = function.get_concrete_function(*specs).graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(node for one in definition.library.function for node in one.node_def)]
    shapes = [shape for node in nodes for shape in node.attr["_output_shapes"].list.shape]
    sizes = [np.prod([dim.size for dim in shape.dim]) for shape in shapes if not shape.unknown_rank]
    assert 64 * 50 <= max(sizes) < 64 * 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "top_k_of_all: k=0 must be at least 1."),
        (
            {"items": np.zeros([4, 2], np.float32)},
            "users are float32 (7, 3), items float32 (4, 2) and seen (7, 22), but must be [users, width], [rows, width]"
            " of the same dtype with row 0 for padding, and [users, length].",
        ),
        (
            {"seen": np.zeros([3, 2], int)},
            "users are float32 (7, 3), items float32 (23, 3) and seen (3, 2), but must be [users, width], [rows, width]"
            " of the same dtype with row 0 for padding, and [users, length].",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    users, items, seen = given()
    with pytest.raises(UserError) as error:
        retrieval.top_k_of_all(**{"users": users, "items": items, "k": 3, "seen": seen, **change})
    assert str(error.value) == message


@pytest.mark.parametrize("targets", [[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 23], [1, 2]])
def test_a_target_that_is_no_item_is_refused(targets):
    users, items, _ = given()
    with pytest.raises(UserError) as error:
        retrieval.ranks_of_all(users, items, np.array(targets))
    assert str(error.value) == "ranks_of_all: targets are 7 rows from 1 to 22, one for each user."


def test_lists_are_filled_up():
    assert retrieval.padded([[3, 1], [], [2]]).tolist() == [[3, 1], [0, 0], [2, 0]]
    assert retrieval.padded([]).shape == (0, 0)

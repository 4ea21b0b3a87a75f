"""data/sets/rating_splits.py: folds, random splits and splits in time, and what they know of the future."""

import json

import numpy as np
import pytest

from framework.data.sets.rating_splits import NAMES, Leaks, by_name, fold, leave_last_out, random_split, split_at_time
from framework.data.sources import Source
from framework.errors import UserError


def ratings(user, timestamp, item=None):
    arrays = {"user": np.array(user), "timestamp": np.array(timestamp)}
    return Source({**arrays, "item": np.arange(len(user)) if item is None else np.array(item)}, origin="made up")


def random_ratings(count=500, users=20, seconds=40):
    draws = np.random.default_rng(0)
    return ratings(draws.integers(0, users, count), draws.integers(0, seconds, count), draws.integers(0, 30, count))


def lists(split):
    return {name: indices.tolist() for name, indices in split.parts.items()}


def test_a_fold_is_a_block_of_lines():
    source = ratings([0] * 11, range(11))
    assert lists(fold(source, 2)) == {"train": [0, 1, 4, 5, 6, 7, 8, 9, 10], "test": [2, 3]}
    assert np.concatenate([fold(source, number).parts["test"] for number in range(1, 6)]).tolist() == [*range(11)]
    for number in (0, 6):
        with pytest.raises(UserError, match=f"fold {number} of 5 of 11 ratings: a fold is from 1 to 5"):
            fold(source, number)


def test_a_random_split_is_a_function_of_the_seed():
    source = random_ratings()
    split = random_split(source, 0.2, seed=1)
    assert sorted(np.concatenate([*split.parts.values()])) == [*range(500)] and len(split.parts["test"]) == 100
    assert lists(random_split(source, 0.2, seed=1)) == lists(split) != lists(random_split(source, 0.2, seed=2))
    # By the definition of the generator.
    assert set(split.parts["test"]) == set(np.random.default_rng(1).permutation(500)[:100])
    with pytest.raises(UserError, match=r"a share of 0\.001 of 500 ratings leaves a part empty"):
        random_split(source, 0.001, seed=0)


def test_the_last_rating_of_each_user_is_left_out():
    # User 0: lines 0 and 3 have the same second, so line 3 is later. User 1 has too few ratings, user 2 has none.
    source = ratings([0, 1, 0, 0, 1, 3, 3, 3], [7, 1, 2, 7, 2, 9, 8, 7])
    assert lists(leave_last_out(source)) == {"train": [1, 2, 4, 7], "valid": [0, 6], "test": [3, 5]}


def by_definition(source, split, part):
    """Counts leaks by a loop over pairs."""
    user, timestamp, item = (source.arrays[name] for name in ("user", "timestamp", "item"))
    when = list(zip(timestamp.tolist(), range(len(user)), strict=True))
    train, held_out = split.parts["train"], split.parts[part]
    return Leaks(
        sum(any(user[a] == user[b] and when[a] > when[b] for b in held_out) for a in train),
        sum(any(when[a] > when[b] for b in held_out) for a in train),
        sum(any((user[a], item[a]) == (user[b], item[b]) for a in train) for b in held_out),
    )


def test_leaks_are_counted_as_a_loop_counts_them():
    source = random_ratings()
    own_future = {}
    for split in (fold(source, 3), random_split(source, 0.1, 0), leave_last_out(source), split_at_time(source, 0.1)):
        for part in split.parts.keys() - {"train"}:
            leaks = split.leaks(source, part)
            assert leaks == by_definition(source, split, part)
            own_future[split.rule, part] = leaks.own_future
            assert leaks.repeated > 0
    assert [count > 0 for count in own_future.values()] == [True, True, False, False, False]


def test_a_split_in_time_has_no_future_of_anyone():
    source = random_ratings()
    split = split_at_time(source, 0.1)
    times = {name: source.arrays["timestamp"][indices] for name, indices in split.parts.items()}
    assert times["train"].max() < times["test"].min() and 50 <= len(split.parts["test"]) < 75
    assert split.leaks(source).any_future == 0 < leave_last_out(source).leaks(source).any_future
    for share in (0, 1, 0.99):
        with pytest.raises(UserError, match="leaves a part empty"):
            split_at_time(ratings([0, 0], [5, 5]), share)


def test_a_part_is_a_source_whose_fingerprint_has_the_split():
    source = random_ratings()
    split, other = random_split(source, 0.2, 1), random_split(source, 0.2, 2)
    part = split.source("test", source)
    np.testing.assert_array_equal(part.arrays["user"], source.arrays["user"][split.parts["test"]])
    assert part.origin == "made up; test of random 20% of the ratings, seed 1"
    assert part.fingerprint() == split.source("test", source).fingerprint() != Source(part.arrays, "x").fingerprint()
    # One index of another part moves: the hash of the split and the fingerprint of this part are others.
    moved = type(split)(split.rule, {"train": split.parts["train"][:-1], "test": split.parts["test"]})
    assert moved.source("test", source).fingerprint() != part.fingerprint()
    assert len({split.digest(), other.digest(), moved.digest()}) == 3
    saved = json.loads(split.to_json())
    assert saved == {"rule": split.rule, "sizes": {"train": 400, "test": 100}, "sha256": split.digest()}
    with pytest.raises(UserError, match="has no part 'valid', only train, test"):
        split.source("valid", source)
    with pytest.raises(UserError, match=r"has 3 examples, but the split .* goes up to 499"):
        split.source("train", ratings([0, 0, 0], [1, 2, 3]))


def test_a_split_has_a_name():
    source = random_ratings()
    parts = leave_last_out(source).parts
    last, before = by_name(source, "last"), by_name(source, "last", held_out="valid")
    assert lists(last) == {"train": sorted([*parts["train"], *parts["valid"]]), "test": parts["test"].tolist()}
    assert lists(before) == {"train": parts["train"].tolist(), "test": parts["valid"].tolist()}
    assert last.digest() != before.digest()
    others = {"u2": fold(source, 2), "random": random_split(source, 0.2, 7), "time": split_at_time(source, 0.1)}
    assert {name: by_name(source, name, seed=7).digest() for name in others} == {
        name: split.digest() for name, split in others.items()
    }
    assert {*others} < {*NAMES} and all(len(by_name(source, name).parts["test"]) for name in NAMES)
    with pytest.raises(UserError, match=r"^there is no split 'u6' of ratings\. Splits: last, u1, .* random, time\.$"):
        by_name(source, "u6")


@pytest.mark.parametrize("split", [leave_last_out, lambda source: split_at_time(source, 0.3)], ids=["last", "time"])
@pytest.mark.parametrize(
    ("times", "problem"),
    [
        (["9", "10", "11", "100"], "'timestamp' of 'made up' is text"),  # '9' sorts last
        (np.array(["9", "10", "11", "100"], object), "'timestamp' of 'made up' is text"),
        ([1.0, np.nan, 3.0, 4.0], "'timestamp' of 'made up' is float64, and is nan in line 1"),
        ([1.0, 2.0, 3.0, np.inf], "'timestamp' of 'made up' is float64, and is inf in line 3"),
    ],
)
def test_times_without_an_order_are_refused(split, times, problem):
    source = ratings([0] * 4, times)
    with pytest.raises(UserError, match=problem):
        split(source)
    with pytest.raises(UserError, match=problem):
        leave_last_out(ratings([0] * 4, range(4))).leaks(source)


@pytest.mark.parametrize(
    ("user", "problem"),
    [
        (
            ["u1", "u2", "u1"],
            r"'user' of 'made up' is text, not rows of a table: integers from 0. .* return_inverse=True",
        ),
        ([0.0, 1.0, 0.0], "'user' of 'made up' is float64, not rows of a table"),
        ([0, -1, 0], "'user' of 'made up' is int64, and is -1 in line 1. Rows of a table start at 0"),
    ],
)
def test_users_that_are_no_rows_are_refused(user, problem):
    with pytest.raises(UserError, match=problem):
        leave_last_out(ratings(user, range(3)))


def test_ratings_without_times_are_refused():
    with pytest.raises(UserError, match="'made up' has no field 'timestamp', only user"):
        leave_last_out(Source({"user": np.zeros(3, int)}, origin="made up"))

"""data/sets/rating_features.py: histories, features and counts of made-up ratings, by definition."""

import numpy as np
import pytest

from framework import data
from framework.data.sets import rating_features
from framework.data.sets.movielens import MovieLens
from framework.errors import UserError
from tests.made_up_ratings import write_ratings


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    return data.load_movielens("ml-100k", str(write_ratings(tmp_path_factory.mktemp("ratings"))))


def test_a_history_has_the_films_before_a_rating_and_none_after(ratings):
    histories = rating_features.histories(ratings, 5)
    user, time = ratings.arrays["user"], ratings.arrays["timestamp"]
    for number in range(len(ratings.users["id"])):
        lines = sorted(np.flatnonzero(user == number), key=lambda line: (time[line], line))
        films = [ratings.arrays["item"][line] + 1 for line in lines]
        for place, line in enumerate(lines):
            assert histories[line].tolist() == ([0] * 5 + films[:place])[-5:]


def test_features_of_users_and_films(ratings):
    age, occupation = rating_features.of_users(ratings)
    assert age[:3].tolist() == [16, 17, 18] and occupation[:3].tolist() == [2, 3, 1]  # of baker, miner, nurse
    genres, year = rating_features.of_items(ratings)
    assert genres[:4].tolist() == [[0], [2], [0], [1]] and year[1:4].tolist() == [1951, 1952, 1953]  # film 1, 2, 3
    assert np.isnan(year[0]) and genres.dtype == np.int32 and year.dtype == np.float32


def test_a_film_has_all_its_genres_and_users_may_be_unknown():
    flags = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    items = {"id": np.arange(3), "genres": flags, "year": np.array([1999, 0, 2001], np.int32)}
    bare = MovieLens({"user": np.zeros(1)}, "made up", users={"id": np.arange(2)}, items=items)
    genres, year = rating_features.of_items(bare)
    assert genres.tolist() == [[0, 0, 0], [2, 4, 0], [0, 0, 0], [1, 2, 3]]
    assert np.isnan(year[[0, 2]]).all() and year[[1, 3]].tolist() == [1999, 2001]
    age, occupation = rating_features.of_users(bare)
    assert np.isnan(age).all() and occupation.tolist() == [0, 0]
    none = MovieLens(bare.arrays, "made up", users={}, items={**items, "genres": flags[:, :0]})
    assert rating_features.of_items(none)[0].shape == (4, 0)


def test_what_users_rated_and_how_often(ratings):
    chosen = np.arange(3, len(ratings), 2)
    user, film = ratings.arrays["user"][chosen], ratings.arrays["item"][chosen] + 1
    of_user = rating_features.rated_by(ratings, chosen)
    assert [rows.tolist() for rows in of_user] == [film[user == one].tolist() for one in range(12)]
    counts = rating_features.counts(ratings, chosen)
    assert counts["user"].tolist() == [0, *(int((user == one).sum()) for one in range(12))]
    assert counts["item"].tolist() == [0, *(int((film == one).sum()) for one in range(1, 31))]


def own(user, item, **tables):
    arrays = {"user": np.array(user), "item": np.array(item), "timestamp": np.arange(len(user))}
    return (MovieLens if tables else data.Source)(arrays, "own", **tables)


def test_small_integers_do_not_wrap_around():
    items = np.array([255, 1], np.uint8)
    ratings = own([0, 0], items, users={"id": np.arange(1)}, items={"id": np.arange(256)})
    assert rating_features.histories(ratings, 1).tolist() == [[0], [256]]
    assert rating_features.rated_by(ratings, np.arange(2))[0].tolist() == [256, 2]
    assert np.flatnonzero(rating_features.counts(ratings, np.arange(2))["item"]).tolist() == [2, 256]


def test_ratings_need_tables_that_have_their_rows():
    ids = {"users": {"id": np.arange(2)}, "items": {"id": np.arange(2)}}
    with pytest.raises(UserError, match=r"'own' has no table of users.* Write MovieLens\(arrays, origin, users="):
        rating_features.rated_by(own([0], [0]), np.arange(1))
    with pytest.raises(UserError, match="'user' of 'own' is 2 in line 1, but the table has the rows 0 to 1"):
        rating_features.rated_by(own([0, 2], [0, 0], **ids), np.arange(2))
    with pytest.raises(UserError, match="'item' of 'own' is 5 in line 0, but the table has the rows 0 to 1"):
        rating_features.counts(own([0], [5], **ids), np.arange(1))
    with pytest.raises(UserError, match="'timestamp' of 'own' is text"):
        arrays = {"user": np.zeros(2, int), "item": np.zeros(2, int), "timestamp": np.array(["9", "10"])}
        rating_features.histories(data.Source(arrays, "own"), 3)

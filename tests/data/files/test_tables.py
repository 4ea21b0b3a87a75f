"""framework/data/files/tables.py: columns of Parquet and CSV as arrays of numbers and texts."""

import numpy as np
import pytest

from framework import data
from framework.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")

NUMBERS = np.arange(7)


def table(rows):
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.repeat(rows, 2).astype(np.float32)), 2)
    return pyarrow.table(
        {
            "fare": rows * 0.5,
            "count": rows.astype(np.int16),
            "city": [f"city {row}" for row in rows],
            "kind": pyarrow.array(["a" if row % 2 else "b" for row in rows]).dictionary_encode(),
            "pair": lists,
            "is_late": rows > 3,
        }
    )


@pytest.fixture
def trips(tmp_path):
    from pyarrow import parquet

    parquet.write_table(table(NUMBERS[:4]), tmp_path / "trips-0.parquet", row_group_size=3)
    parquet.write_table(table(NUMBERS[4:]), tmp_path / "trips-1.parquet")
    return tmp_path


def line_of(fn, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        fn(*args, **kwargs)
    return str(caught.value)


def test_columns_of_all_files_are_arrays(trips):
    arrays = data.columns(f"{trips}/trips-*.parquet").arrays
    assert {name: (array.dtype.kind, array.shape) for name, array in arrays.items()} == {
        "fare": ("f", (7,)),
        "count": ("i", (7,)),
        "city": ("O", (7,)),
        "kind": ("O", (7,)),
        "pair": ("f", (7, 2)),
        "is_late": ("b", (7,)),
    }
    np.testing.assert_array_equal(arrays["fare"], NUMBERS * 0.5)
    assert arrays["count"].dtype == np.int16 and arrays["city"][5] == "city 5" and arrays["kind"][3] == "a"
    np.testing.assert_array_equal(arrays["pair"], np.stack([NUMBERS, NUMBERS], 1))
    np.testing.assert_array_equal(arrays["is_late"], NUMBERS > 3)


def test_mapped_columns_are_copied_once(trips, tmp_path, monkeypatch):
    names = ["count", "pair"]
    first = data.columns(f"{trips}/trips-*.parquet", names, is_mapped=True)
    assert all(isinstance(array, np.memmap) for array in first.arrays.values())
    monkeypatch.setattr("framework.data.files.tables._table", lambda *_: pytest.fail("the file was read again"))
    second = data.columns(f"{trips}/trips-*.parquet", names, is_mapped=True)
    for source in (first, second):
        taken = source.take(np.array([6, 0]))
        np.testing.assert_array_equal(taken["pair"], [[6, 6], [0, 0]])
        np.testing.assert_array_equal(taken["count"], np.array([6, 0], np.int16))
    assert first.fingerprint() == second.fingerprint()


def test_csv_columns(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,x y\n2,z\n")
    arrays = data.columns(tmp_path / "x.csv", ["b", "a"]).arrays
    assert list(arrays) == ["b", "a"] and arrays["b"].tolist() == ["x y", "z"] and arrays["a"].tolist() == [1, 2]


def test_what_cannot_be_a_field_is_named_by_file_and_column(trips):
    from pyarrow import parquet

    path = trips / "trips-1.parquet"
    assert line_of(data.columns, path, ["fares"]) == (
        f"{path} has no column 'fares', only fare, count, city, kind, pair, is_late. Did you mean 'fare'?"
    )
    assert line_of(data.columns, path, ["city"], is_mapped=True) == (
        f"{path}: the column 'city' holds texts, which cannot be mapped. Leave is_mapped out."
    )
    parquet.write_table(pyarrow.table({"fare": [1.0, None, None]}), path)
    assert line_of(data.columns, path) == (
        f"{path}: the column 'fare' is null in row 1 and 1 more. Fill it, or drop the rows."
    )
    parquet.write_table(pyarrow.table({"fare": [np.datetime64("2026-01-01", "s")]}), path)
    assert line_of(data.columns, path).startswith(f"{path}: the column 'fare' is of type timestamp[")
    parquet.write_table(pyarrow.table({"fare": [1]}), path)
    assert line_of(data.columns, [trips / "trips-0.parquet", path], ["fare"]) == (
        f"{path}: the column 'fare' is int64 [rows], but in {trips}/trips-0.parquet it is float64 [rows]."
    )
    path.write_bytes(b"PAR1 no parquet")
    assert line_of(data.columns, path).startswith(f"{path} cannot be read (")


@pytest.mark.parametrize("number", [2**53 + 1, 2**64 - 1])
def test_integers_that_float64_does_not_tell_apart_are_refused(tmp_path, number):
    path = tmp_path / "hashes.csv"
    path.write_text(f"hash\n{2**64 - 1}\n{number}\n")  # beyond int64, so that the reader takes float64
    assert line_of(data.columns, path) == (
        f"{path}: the column 'hash' has integers up to 1.84467e+19 as float64, which tells integers apart only below"
        " 2**53. Write them as texts, or as uint64 in a Parquet file."
    )
    path.write_text(f"hash,mass\n{number % 2**62},1e30\n7,2.5\n")
    assert data.columns(path).arrays["hash"].tolist() == [number % 2**62, 7]


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("x,y,x\n1,2,3\n")
    assert line_of(data.columns, path) == f"{path} has two columns of the name 'x'. Rename one of them."
    assert line_of(data.columns, path, ["x"]) == f"{path} has two columns of the name 'x'. Rename one of them."


def test_a_page_of_a_wrong_checksum_is_refused(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "checked.parquet"
    values = np.random.default_rng(0).normal(size=100)
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    parquet.write_table(pyarrow.table({"x": values}), path, **options)
    np.testing.assert_array_equal(data.columns(path).arrays["x"], values)
    content = bytearray(path.read_bytes())
    content[content.index(values[50].tobytes())] ^= 1
    path.write_bytes(content)
    assert line_of(data.columns, path).startswith(f"{path} cannot be read (could not verify page integrity")


def test_a_file_that_is_given_twice_is_refused(trips):
    path = trips / "trips-0.parquet"
    assert line_of(data.columns, [path, trips / "trips-1.parquet", str(path)]) == (
        f"{path} is given twice, so its examples would count twice. If that is meant, give shares of a mixture:"
        " make_batches([(source, 2), (other, 1)], cfg, …)."
    )

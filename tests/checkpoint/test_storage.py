"""A folder of arrays: every dtype and shape comes back bit for bit, and no changed byte goes unnoticed."""

import json
import threading

import numpy as np
import pytest
import tensorflow as tf

from framework.checkpoint import storage
from framework.checkpoint.storage import Cancelled, CorruptError, read_arrays, read_manifest, write_arrays

RNG = np.random.default_rng(0)
ARRAYS = {
    "weights/a": RNG.normal(size=(3, 5)).astype(np.float32),
    "double": RNG.normal(size=(2, 1, 3)),
    "half": RNG.normal(size=7).astype(np.float16),
    "brain": RNG.normal(size=7).astype(tf.bfloat16.as_numpy_dtype),
    "eight bits": RNG.normal(size=5).astype(tf.dtypes.experimental.float8_e4m3fn.as_numpy_dtype),
    "flags": np.array([True, False, True]),
    "step": np.array(2**62 + 1, np.int64),
    "word": np.array([2**32 - 1], np.uint32),
    "byte": np.array([-128, 127], np.int8),
    "complex": np.array([1 + 2j, np.nan], np.complex64),
    "none": np.zeros((0, 3), np.float64),
    "special": np.array([np.nan, np.inf, -0.0, 5e-324]),
    "many parts": np.arange(200, dtype=np.uint8),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(storage, "_CHUNK_BYTES", 64)


def write(folder, **facts):
    folder.mkdir()
    write_arrays(folder, ARRAYS, {"note": {"at": 3}, **facts})
    return folder


def test_every_dtype_and_shape_comes_back(tmp_path):
    arrays = read_arrays(write(tmp_path / "a"))
    assert list(arrays) == list(ARRAYS)
    for path, array in ARRAYS.items():
        assert (arrays[path].dtype, arrays[path].shape) == (array.dtype, array.shape), path
        assert arrays[path].tobytes() == array.tobytes(), path


def test_a_folder_may_be_named_by_a_text(tmp_path):
    assert read_arrays(str(write(tmp_path / "a"))).keys() == ARRAYS.keys()


def test_the_file_is_the_bytes_of_the_arrays(tmp_path):
    folder = write(tmp_path / "a")
    assert (folder / "arrays.bin").read_bytes() == b"".join(array.tobytes() for array in ARRAYS.values())
    manifest = read_manifest(folder)
    entry = manifest["variables"]["double"]
    assert entry == {"dtype": "float64", "shape": [2, 1, 3], "offset": 3 * 5 * 4}
    mapped = np.memmap(folder / "arrays.bin", entry["dtype"], "r", entry["offset"], tuple(entry["shape"]))
    np.testing.assert_array_equal(mapped, ARRAYS["double"])
    assert manifest["note"] == {"at": 3}
    assert manifest["bytes"] == sum(array.nbytes for array in ARRAYS.values())


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """In either file; a manifest may read the same in other words, such as another kind of blank."""
    folder = write(tmp_path / "a", value=float("nan"))
    intact = json.dumps(read_manifest(folder))
    for name in ("arrays.bin", "manifest.json"):
        content = (folder / name).read_bytes()
        for place in range(0, len(content), max(1, len(content) // 300)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            (folder / name).write_bytes(flipped)
            try:
                arrays = read_arrays(folder)
            except CorruptError:
                continue
            assert name == "manifest.json" and json.dumps(read_manifest(folder)) == intact, place
            assert all(arrays[path].tobytes() == array.tobytes() for path, array in ARRAYS.items())
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", ["arrays.bin", "manifest.json"])
def test_no_length_but_the_whole_is_taken(tmp_path, name):
    folder = write(tmp_path / "a")
    content = (folder / name).read_bytes()
    size = len(content.rstrip())
    for length in (0, 1, size // 2, size - 1):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(CorruptError):
            read_arrays(folder)
    (folder / name).write_bytes(content + b"x")
    with pytest.raises(CorruptError):
        read_arrays(folder)


@pytest.mark.parametrize("content", ["null", "[]", "3", '"text"', "{}", '{"manifest_sha256": ""}'])
def test_json_that_is_no_manifest(tmp_path, content):
    folder = write(tmp_path / "a")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CorruptError, match=r"^manifest\.json"):
        read_manifest(folder)


def test_nobody_waits(tmp_path):
    abandoned = threading.Event()
    abandoned.set()
    with pytest.raises(Cancelled):
        write_arrays(tmp_path, ARRAYS, {}, abandoned)
    assert not (tmp_path / "manifest.json").exists()


def test_write_json_never_shows_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    storage.write_json(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(storage.json, "dump", lambda value, file, indent: file.write("{") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            storage.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("shape", [2**40, 2**20], "begins at byte"),
        ("shape", [-1, 2], "has shape"),
        ("shape", [1.0], "has shape"),
        ("shape", [True], "has shape"),
        ("shape", 5, "TypeError"),
        ("shape", [0] * 70, "begins at byte"),
        ("dtype", "float33", "TypeError"),
        ("dtype", "string", "is of dtype string"),
        ("dtype", "resource", "is of dtype resource"),
        ("dtype", None, "TypeError"),
        ("offset", 4, "begins at byte"),
        ("offset", -60, "begins at byte"),
        ("offset", "0", "TypeError"),
        ("offset", 10**400, "begins at byte"),
        ("offset", float("nan"), "begins at byte"),
    ],
)
def test_a_manifest_that_no_array_can_have(tmp_path, key, value, says):
    """With a hash that is right: by another version, or on purpose."""
    folder = write(tmp_path / "a")
    manifest = read_manifest(folder)
    manifest["variables"]["weights/a"][key] = value
    storage.write_manifest(folder, manifest)
    with pytest.raises(CorruptError, match=says):
        read_arrays(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 10**18},
        {"bytes": "7"},
        {"sha256": ""},
        {"sha256": None},
        {"variables": []},
        {"variables": {"a": 5}},
        {"variables": {"a": {"dtype": "float32", "shape": [0, 2**70], "offset": 0}}, "bytes": 0},
    ],
)
def test_a_manifest_of_other_things(tmp_path, change):
    folder = write(tmp_path / "a")
    storage.write_manifest(folder, {**read_manifest(folder), **change})
    with pytest.raises(CorruptError):
        read_arrays(folder)


@pytest.mark.parametrize("content", ["[" * 10**6, '{"a": ' * 10**5, "9" * 10**5, "\ufeff{}", "NaN"])
def test_json_that_breaks_a_reader(tmp_path, content):
    folder = write(tmp_path / "a")
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CorruptError):
        read_manifest(folder)

"""data/sets/cifar.py: the binary files, the archive and records; wherever they lie, and when they are damaged."""

import hashlib
import io
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from framework.data import fetch
from framework.data.sets import cifar
from framework.data.sets.cifar import load_cifar10
from framework.errors import UserError
from tests.made_up import write_set

FILES = [*(f"data_batch_{number}.bin" for number in (1, 2, 3, 4, 5)), "test_batch.bin"]
ROWS = 4  # of a file; the original has 10,000
IMAGES = np.random.default_rng(0).integers(0, 256, (len(FILES) * ROWS, 32, 32, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, len(IMAGES))
SPLITS = {"train": slice(0, 5 * ROWS), "test": slice(5 * ROWS, None)}


def batch_file(rows):
    """The format as its page puts it: a byte for the label; then red, green and blue, each row by row."""
    raw = b""
    for image, label in zip(IMAGES[rows], LABELS[rows], strict=True):
        raw += bytes([label]) + b"".join(bytes(image[:, :, channel].ravel().tolist()) for channel in range(3))
    return raw


RAW = {file: batch_file(slice(place * ROWS, (place + 1) * ROWS)) for place, file in enumerate(FILES)}


def archive():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, raw in {**RAW, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return stream.getvalue()


ARCHIVE = archive()


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder without data, on a machine without a cache and without a network."""
    monkeypatch.setattr(cifar, "_SHA256", {file: sha256(raw) for file, raw in RAW.items()})
    monkeypatch.setattr(cifar, "_ARCHIVE_SHA256", sha256(ARCHIVE))
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(cifar.urllib.request, "urlretrieve", no_network)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def no_network(url, path):
    raise URLError("no such host")


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


def assert_is(source, split, origin):
    np.testing.assert_array_equal(source.arrays["image"], IMAGES[SPLITS[split]])
    np.testing.assert_array_equal(source.arrays["label"], LABELS[SPLITS[split]])
    assert (source.arrays["image"].dtype, source.arrays["label"].dtype) == (np.uint8, np.int32)
    assert (source.origin, source.is_subset) == (origin, False)


def message(*arguments):
    with pytest.raises(UserError) as caught:
        load_cifar10(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("sub", ["", "cifar10", "cifar-10-batches-bin"])
@pytest.mark.parametrize("files", [RAW, {"cifar-10-binary.tar.gz": ARCHIVE}], ids=["files", "archive"])
def test_binaries_of_a_folder(folder, monkeypatch, sub, files):
    write(folder / sub, files)
    for split in SPLITS:
        assert_is(load_cifar10(split, str(folder)), split, f"data_dir={folder}")
    monkeypatch.setenv("DATA_DIR", str(folder))
    assert_is(load_cifar10("test"), "test", f"$DATA_DIR={folder}")


def test_records_of_a_folder(folder, monkeypatch):
    grey = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None] * 40, [6, 32, 32, 3])
    write_set(folder / "cifar10", "train", grey, np.arange(6), shards=2)
    source = load_cifar10("train", str(folder))
    np.testing.assert_array_equal(source.arrays["image"], grey)
    np.testing.assert_array_equal(source.arrays["label"], np.arange(6))
    assert source.origin == f"data_dir={folder} (JPEG: a re-encoded copy, not the original pixels)"
    assert source.is_subset  # of 50,000
    monkeypatch.setattr(cifar, "_COUNTS", {"train": 6})
    assert not load_cifar10("train", str(folder)).is_subset
    with pytest.raises(UserError, match="it has neither"):
        load_cifar10("test", str(folder))
    path = folder / "cifar10" / "train-00001-of-00002.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    Path(f"{path}.index").unlink()
    line = message("train", str(folder))
    assert line.startswith(f"data_dir={folder}: {path.parent} cannot be read: {path}, record 2: it is cut off after ")
    assert line.endswith(" bytes. Correct --data_dir, or leave it out to fetch cifar10.")


def test_the_hashes_are_those_of_the_original():
    """Each SHA-256 stands in the code as the archive's publishers' users list it, one for each file."""
    assert list(cifar._SHA256) == FILES and len(set(cifar._SHA256.values())) == len(FILES)
    assert all(len(digest) == 64 for digest in [*cifar._SHA256.values(), cifar._ARCHIVE_SHA256])


def test_damaged_and_missing_files(folder):
    hint = "Correct --data_dir, or leave it out to fetch cifar10."
    assert message("val") == "cifar10 has no split 'val', only train and test. Use --config.eval.splits=\"('test',)\"."
    assert message("test", str(folder / "no")) == f"data_dir={folder / 'no'}: there is no such folder. {hint}"
    assert message("test", str(folder)).startswith(f"data_dir={folder}: it has neither data_batch_1.bin, data_batch_2")

    changed = bytes([RAW["test_batch.bin"][0] ^ 1]) + RAW["test_batch.bin"][1:]
    write(folder, {**RAW, "test_batch.bin": changed})
    assert message("test", str(folder)) == (
        f"data_dir={folder}: {folder / 'test_batch.bin'} has SHA-256 {sha256(changed)}, not"
        f" {sha256(RAW['test_batch.bin'])} as in cifar10. {hint}"
    )
    (folder / "data_batch_3.bin").unlink()
    assert message("test", str(folder)) == f"data_dir={folder}: {folder} lacks data_batch_3.bin. {hint}"

    other = folder.parent / "other"
    write(other, {"cifar-10-binary.tar.gz": ARCHIVE[:-1]})
    assert message("test", str(other)) == (
        f"data_dir={other}: {other / 'cifar-10-binary.tar.gz'} has SHA-256 {sha256(ARCHIVE[:-1])}, not"
        f" {sha256(ARCHIVE)}. {hint}"
    )


def test_download_is_verified_and_kept(folder, monkeypatch):
    served = []

    def serve(url, path):
        served.append(url)
        path.write_bytes(ARCHIVE)
        return str(path), None

    monkeypatch.setattr(cifar.urllib.request, "urlretrieve", serve)
    cache = folder.parent / "cache" / "cifar10"
    assert_is(load_cifar10("train"), "train", served[0])
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == RAW
    assert_is(load_cifar10("test"), "test", f"cache {cache}")
    (cache / "test_batch.bin").write_bytes(b"")
    assert_is(load_cifar10("test"), "test", served[0])
    assert (cache / "test_batch.bin").read_bytes() == RAW["test_batch.bin"]
    assert served == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"] * 2


def test_download_of_something_else_is_refused(folder, monkeypatch):
    def serve(url, path):
        path.write_bytes(b"<html>sign in</html>")
        return str(path), None

    monkeypatch.setattr(cifar.urllib.request, "urlretrieve", serve)
    assert f"cifar-10-binary.tar.gz has SHA-256 {sha256(b'<html>sign in</html>')}, not" in message("train")
    assert not (folder.parent / "cache").exists()


def test_no_place_has_it(folder):
    text = message("train")
    cache = folder.parent / "cache" / "cifar10"
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert text.startswith(
        f"no source has cifar10. Tried $DATA_DIR: not set; cache: {cache} does not have it; {url}:"
        " <urlopen error no such host>."
    )
    assert text.endswith(", or run with network access.")


def test_a_slow_download_gets_its_own_time(monkeypatch):
    monkeypatch.setattr(fetch, "DOWNLOAD_SECONDS", 0.0)
    given = []
    monkeypatch.setattr(cifar.fetch, "download", lambda load, seconds: given.append(seconds) or dict(RAW))
    monkeypatch.setattr(cifar.fetch, "keep", lambda name, files: None)
    cifar._from_url("test")
    assert given == [900.0]

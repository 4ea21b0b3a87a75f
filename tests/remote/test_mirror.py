"""framework/remote/mirror.py: copies of data and of runs that are looked at."""

import collections
import shutil

import pytest

from framework.errors import UserError
from framework.remote import mirror
from framework.remote.address import Place, Unreachable, folder_of


def contents(folder):
    """{name: content} of all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def gets(monkeypatch):
    """The names that were copied from an address, in order."""
    names, get = [], Place.get

    def spied(self, name, target):
        names.append(name)
        get(self, name, target)

    monkeypatch.setattr(Place, "get", spied)
    return names


def test_data_are_copied_once_and_again_where_they_changed(memory, gets):
    memory.pipe({"/box/train/a": b"one", "/box/train/b": b"two", "/box/test": b"three"})
    folder = mirror.local_copy("memory://box", "--data_dir")
    assert contents(folder) == {"train/a": b"one", "train/b": b"two", "test": b"three"}
    assert sorted(gets) == ["test", "train/a", "train/b"]
    gets.clear()
    assert mirror.local_copy("memory://box", "--data_dir") == folder and gets == []
    memory.pipe({"/box/train/b": b"TWO"})  # of the same size
    memory.rm("/box/train/a")
    (folder / "index of a reader").write_bytes(b"own")
    mirror.local_copy("memory://box", "--data_dir")
    assert gets == ["train/b"]
    assert contents(folder) == {"train/b": b"TWO", "test": b"three", "index of a reader": b"own"}


def test_a_copy_that_was_cut_short_or_deleted_is_made_again(memory, gets):
    memory.pipe({"/box/a": b"one", "/box/b": b"two"})
    folder = mirror.local_copy("memory://box", "--data_dir")
    (folder / "a").write_bytes(b"o")
    (folder / "b").unlink()
    gets.clear()
    mirror.local_copy("memory://box", "--data_dir")
    assert sorted(gets) == ["a", "b"] and contents(folder) == {"a": b"one", "b": b"two"}
    shutil.rmtree(folder)
    mirror.local_copy("memory://box", "--data_dir")
    assert contents(folder) == {"a": b"one", "b": b"two"}


def test_a_file_that_goes_meanwhile_is_left_out(memory, monkeypatch):
    memory.pipe({"/box/checkpoints/other/arrays.bin": b"1", "/box/z": b"one"})
    get, tries = Place.get, []

    def vanishing(self, name, target):
        tries.append(name)
        if len(tries) == 1:
            memory.rm("/box/checkpoints/other/arrays.bin")
        get(self, name, target)

    monkeypatch.setattr(Place, "get", vanishing)
    folder = folder_of("memory://box", "read")
    mirror.mirror(Place("memory://box"), folder, lambda name: True, rank=lambda name: -len(name))
    assert contents(folder) == {"z": b"one"}


def test_files_that_go_on_changing_are_unreachable(memory, monkeypatch, tmp_path):
    memory.pipe({"/box/a": b"1"})

    def gone(self, name, target):
        raise FileNotFoundError(name)

    monkeypatch.setattr(Place, "get", gone)
    with pytest.raises(Unreachable, match=r"^its files change while they are read \(a\)$"):
        mirror.mirror(Place("memory://box"), tmp_path / "copy", lambda name: True)


def test_an_interrupted_copy_goes_on_where_it_was(memory, monkeypatch, tmp_path):
    memory.pipe({"/box/a": b"1", "/box/b": b"2"})
    get, names = Place.get, []

    def breaking(self, name, target):
        names.append(name)
        if names == ["a", "b"]:
            raise Unreachable("cut")
        get(self, name, target)

    monkeypatch.setattr(Place, "get", breaking)
    with pytest.raises(Unreachable):
        mirror.mirror(Place("memory://box"), tmp_path / "copy", lambda name: True)
    assert mirror.mirror(Place("memory://box"), tmp_path / "copy", lambda name: True) == 1
    assert names == ["a", "b", "b"] and contents(tmp_path / "copy") == {"a": b"1", "b": b"2"}


def test_the_folder_of_a_checkpoint_that_is_gone_goes_too(memory, tmp_path):
    old, new = (f"/box/checkpoints/step-0000000{step}/manifest.json" for step in (1, 2))
    memory.pipe({old: b"1", new: b"2"})
    mirror.mirror(Place("memory://box"), tmp_path / "copy", lambda name: True)
    memory.rm(old)
    mirror.mirror(Place("memory://box"), tmp_path / "copy", lambda name: True)
    assert [path.name for path in (tmp_path / "copy/checkpoints").iterdir()] == ["step-00000002"]


def test_a_view_leaves_out_the_arrays(memory):
    checkpoint = "a/checkpoints/step-00000001"
    memory.pipe({f"/runs/{checkpoint}/arrays.bin": b"1", f"/runs/{checkpoint}/manifest.json": b"2"})
    memory.pipe({"/runs/a/metrics.jsonl": b"3", "/runs/a/exports/saved_model/1/variables.bin": b"4"})
    folder = mirror.looked_at("memory://runs")
    expected = {f"{checkpoint}/manifest.json": b"2", "a/metrics.jsonl": b"3"}
    assert contents(folder) == expected | {"a/exports/saved_model/1/variables.bin": b"4"}
    assert mirror.looked_at("runs/a").as_posix() == "runs/a"


def test_a_checkpoint_without_its_manifest_is_left_out(memory, tmp_path):
    names = [f"checkpoints/step-0000000{step}/{name}" for step, name in ((1, "arrays.bin"), (2, "arrays.bin"))]
    names += ["checkpoints/step-00000002/manifest.json", "checkpoints/last.json", "step-00000003/picture.png"]
    memory.pipe({f"/box/{name}": b"1" for name in names})
    mirror.mirror(Place("memory://box"), tmp_path / "copy", lambda name: True)
    assert {*contents(tmp_path / "copy")} == {*names[1:]}


def test_what_cannot_be_copied_is_one_line(memory, monkeypatch):
    with pytest.raises(UserError, match=r"^--data_dir=memory://none has no files. Type another address.$"):
        mirror.local_copy("memory://none", "--data_dir")
    memory.pipe({"/box/a": b"x" * 2_000_000, "/other/a": b"1"})
    copy = mirror.local_copy("memory://other", "--data_dir")
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1_000_000))
    full = (
        r"^memory://box has 0.002 GB to copy, and the disk of .* has 0.001 GB free. Set FRAMEWORK_CACHE to a folder on"
    )
    with pytest.raises(UserError, match=full):
        mirror.local_copy("memory://box", "--data_dir")
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: 1 / 0)
    for address, hint in (
        ("memory://third", "Type another address."),
        ("memory://other", f"Type --data_dir={copy}, the copy that was made before."),
    ):
        with pytest.raises(UserError) as error:
            mirror.local_copy(address, "--data_dir")
        assert str(error.value) == f"--data_dir={address} cannot be read: division by zero. {hint}"

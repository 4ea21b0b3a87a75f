"""framework/data/files/folder.py: a folder for each class, and nothing outside of the folder."""

import logging
import os
import sys

import numpy as np
import pytest

from framework import data, testing
from framework.config import base_config
from framework.data.files.pictures import strict_decoder
from framework.data.sources import common_classes
from framework.errors import DataError, UserError
from tests.data.files import made


@pytest.fixture
def pets(tmp_path):
    """Pictures 0, 1 (cat) and 2 (dog); the class 'ant' has picture 3 in a folder of its own."""
    folder = tmp_path / "pets"
    for number, name in enumerate(["cat/1.png", "cat/2.PNG", "dog/1.png", "ant/red/1.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(made.encoded(made.pixels(number)))
    return folder


IMAGE = data.Image((made.SIDE, made.SIDE))


def line_of(kind, fn, *args, **kwargs):
    with pytest.raises(kind) as caught:
        fn(*args, **kwargs)
    return str(caught.value)


def test_classes_are_sorted_and_label_the_pictures(pets):
    source = data.image_folder(pets, IMAGE)
    assert source.classes == ("ant", "cat", "dog") and len(source) == 4
    batch = source.take(np.arange(4))
    np.testing.assert_array_equal(batch["image"], [made.pixels(number) for number in (3, 0, 1, 2)])
    np.testing.assert_array_equal(batch["label"], [0, 1, 1, 2])
    assert source.origin == str(pets)


def test_links_that_leave_the_folder_are_refused(pets, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(made.encoded(made.pixels(9)))
    (pets / "dog" / "2.png").symlink_to(secret)
    rule = f"Links to folders, and links that leave {pets}, are not followed: copy the pictures into the folder."
    assert line_of(UserError, data.image_folder, pets, IMAGE) == f"{pets}/dog/2.png is a link to {secret}. {rule}"
    (pets / "dog" / "2.png").unlink()
    (pets / "dog" / "2.png").symlink_to("../../secret.png")
    assert line_of(UserError, data.image_folder, pets, IMAGE).endswith(rule)
    (pets / "dog" / "2.png").unlink()
    (pets / "dog" / "more").symlink_to(tmp_path)
    assert line_of(UserError, data.image_folder, pets, IMAGE).endswith(rule)
    (pets / "dog" / "more").unlink()
    (pets / "emu").symlink_to(tmp_path)
    assert line_of(UserError, data.image_folder, pets, IMAGE).endswith(rule)
    (pets / "emu").unlink()
    (pets / "dog" / "2.png").symlink_to("../cat/1.png")  # stays inside
    np.testing.assert_array_equal(data.image_folder(pets, IMAGE).take(np.array([4]))["image"][0], made.pixels(0))


def test_a_picture_that_becomes_a_link_or_is_gone_is_named(pets, tmp_path):
    source = data.image_folder(pets, IMAGE)
    (pets / "dog" / "1.png").rename(tmp_path / "moved.png")
    assert line_of(DataError, source.take, np.arange(4)).startswith(f"{pets}/dog/1.png: the file is missing.")
    (pets / "dog" / "1.png").symlink_to(tmp_path / "moved.png")
    assert line_of(DataError, source.take, np.arange(4)).startswith(
        f"{pets}/dog/1.png: it has become a link to {tmp_path}/moved.png, outside of {pets}."
    )


def test_damaged_pictures_are_named_or_skipped(pets):
    (pets / "cat" / "2.PNG").write_bytes(made.encoded(made.pixels(1))[:-30])
    line = line_of(DataError, data.image_folder(pets, IMAGE).take, np.arange(4))
    assert line.startswith(f"{pets}/cat/2.PNG: the PNG is damaged or cut off.")
    source = data.image_folder(pets, IMAGE, damaged="skip")
    np.testing.assert_array_equal(source.take(np.arange(3))["label"], [0, 1, 2])
    assert source.skipped == {"records": 1, "first": [f"{pets}/cat/2.PNG: the PNG is damaged or cut off"]}
    # Later damage is found when the picture is read, and by the next start.
    path = pets / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    line = (
        f"{path}: the PNG is damaged or cut off. The record was whole when all records were checked. Type the command"
    )
    assert line_of(DataError, source.take, np.arange(3)).startswith(line)
    assert data.image_folder(pets, IMAGE, damaged="skip").skipped["records"] == 2


def test_a_jpeg_that_is_overwritten_is_found_when_simplejpeg_is_installed_later(pets, monkeypatch):
    pytest.importorskip("simplejpeg", reason="needs the extra 'data'")
    content = made.encoded(made.pixels(0), "JPEG")
    (pets / "cat" / "3.jpg").write_bytes(content[:-40] + bytes(38) + content[-2:])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "simplejpeg", None)
        strict_decoder.cache_clear()
        assert data.image_folder(pets, IMAGE, damaged="skip").skipped["records"] == 0
    strict_decoder.cache_clear()
    assert data.image_folder(pets, IMAGE, damaged="skip").skipped["first"] == [
        f"{pets}/cat/3.jpg: the JPEG is damaged or cut off (Corrupt JPEG data: premature end of data segment)"
    ]


def test_what_is_no_picture_is_said(pets, caplog):
    (pets / "dog" / "notes.txt").touch()
    (pets / "dog" / ".DS_Store").touch()
    with caplog.at_level(logging.WARNING):
        assert len(data.image_folder(pets, IMAGE)) == 4
    assert f"{pets}/dog: 1 files are not pictures and left out, such as {pets}/dog/notes.txt" in caplog.text
    caplog.clear()
    (pets / "dog" / "gone.png").symlink_to(pets / "dog" / "lost.png")
    os.mkfifo(pets / "dog" / "pipe.png")
    (pets / "loose.jpg").touch()
    with caplog.at_level(logging.WARNING):
        assert len(data.image_folder(pets, IMAGE)) == 4
    assert f"{pets}/dog: 3 files are not pictures and left out, such as {pets}/dog/gone.png" in caplog.text
    assert f"{pets}: 1 pictures of no class are left out, such as {pets}/loose.jpg" in caplog.text


def test_folders_without_pictures_are_refused(pets, tmp_path):
    (pets / "emu").mkdir()
    assert line_of(UserError, data.image_folder, pets, IMAGE) == (
        f"{pets}/emu has no picture (.jpg, .jpeg, .png). Remove the folder, or fill it."
    )
    assert line_of(UserError, data.image_folder, tmp_path / "none", IMAGE).startswith(
        f"{tmp_path}/none is not a folder."
    )
    assert line_of(UserError, data.image_folder, pets / "cat", IMAGE).startswith(f"{pets}/cat has no folder in it.")


def test_the_fingerprint_follows_names_and_content(pets):
    first = data.image_folder(pets, IMAGE).fingerprint()
    assert data.image_folder(pets, IMAGE).fingerprint() == first
    one, other = (pets / "cat" / name for name in ("1.png", "2.PNG"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert data.image_folder(pets, IMAGE).fingerprint() != first
    one.write_bytes(other.read_bytes())
    other.write_bytes(made.encoded(made.pixels(1)))
    assert data.image_folder(pets, IMAGE).fingerprint() == first
    os.rename(pets / "cat" / "1.png", pets / "cat" / "3.png")
    assert data.image_folder(pets, IMAGE).fingerprint() != first


@pytest.fixture
def wild(tmp_path):
    """Another folder, without ants: there label 0 is a cat, in `pets` an ant."""
    folder = tmp_path / "wild"
    for number, name in enumerate(["cat/1.png", "dog/1.png", "emu/1.png"]):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(made.encoded(made.pixels(number)))
    return folder


OTHERWISE = (
    "Labels are places among the sorted names of classes: give both a folder for each class, under the same names."
)


def test_a_label_stands_for_one_class_in_a_mixture(pets, wild):
    pairs = [(data.image_folder(pets, IMAGE), 1), (data.image_folder(wild, IMAGE), 1)]
    assert line_of(UserError, data.make_batches, pairs, base_config(), training=True) == (
        f"label 0 stands for 'ant' in '{pets}', but for 'cat' in '{wild}'. {OTHERWISE}"
    )


def test_a_label_stands_for_one_class_in_all_splits(pets, wild, tmp_path):
    def make_data(cfg, split):
        folder = pets if split == "train" else wild
        return data.make_batches(data.image_folder(folder, IMAGE), cfg, training=split == "train")

    functions = {"make_data": make_data, "make_model": None, "make_loss": None}
    assert line_of(UserError, testing.build, functions, {"data.batch_size": 2}, tmp_path / "run") == (
        f"label 0 stands for 'ant' in the split 'train', but for 'cat' in the split 'test'. {OTHERWISE}"
    )


def test_a_split_without_the_last_classes_is_no_other():
    assert common_classes({"a": ("ant", "cat"), "b": (), "c": ("ant", "cat", "dog")}) == ("ant", "cat", "dog")
    assert common_classes({"a": ()}) == common_classes({}) == ()

"""A folder of pictures, with a folder for each class, read as records.

    pets/cat/1.jpg  pets/cat/2.png  pets/dog/1.jpg            # classes in the order of their names: cat is 0, dog is 1

    records = FolderRecords(Path("pets"))
    records.classes                                           # ('cat', 'dog')

A record is a tf.train.Example with the features `image/encoded`, `label` and `filename`, as `framework.data.prepare`
writes it. Nothing outside the folder is read: a link that leaves the folder is refused.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from framework.data.files import notes
from framework.data.files.records import RecordError
from framework.errors import UserError

IMAGE = "image/encoded"
SUFFIXES = (".jpg", ".jpeg", ".png")


class FolderRecords:
    """Reads the pictures of a folder; implements `Records`.

    Attributes:
      classes: the names of the classes, sorted; the label of a picture is the place of its class.

    Raises:
      UserError: there is no such folder, it has no class, a class has no picture, or a link leaves the folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder. Give the folder that has a folder of pictures for each class.")
        self._root = root.resolve()
        folders = sorted(entry for entry in self._root.iterdir() if not entry.name.startswith(".") and entry.is_dir())
        self.classes: tuple[str, ...] = tuple(folder.name for folder in folders)
        loose = sorted(path for path in self._root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if folders and loose:
            logging.warning("%s: %d pictures of no class are left out, such as %s", root, len(loose), loose[0])
        if not folders:
            raise UserError(
                f"{root} has no folder in it. Pictures belong into a folder for each class: {root}/cat/1.jpg"
            )
        self._files: list[Path] = []
        self._labels: list[int] = []
        for label, folder in enumerate(folders):
            pictures = list(self._pictures(folder))
            if not pictures:
                raise UserError(f"{folder} has no picture ({', '.join(SUFFIXES)}). Remove the folder, or fill it.")
            self._files += pictures
            self._labels += [label] * len(pictures)
        self.nbytes = sum(file.stat().st_size for file in self._files)
        hashes = notes.content_hashes(self._root, self._files)
        listing = [f"{self._relative(file)} {digest}" for file, digest in zip(self._files, hashes, strict=True)]
        self.digest = hashlib.sha256("\n".join(listing).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def name(self, row: int) -> str:
        return str(self._files[row])

    def close(self) -> None:
        """Does nothing: no file stays open."""

    def read(self, rows: np.ndarray) -> list[bytes]:
        return [self._read(place, int(row)) for place, row in enumerate(rows)]

    def _read(self, place: int, row: int) -> bytes:
        file = self._files[row]
        try:
            if not file.resolve().is_relative_to(self._root):
                raise RecordError(place, f"it has become a link to {file.resolve()}, outside of {self._root}")
            content = file.read_bytes()
        except FileNotFoundError as error:
            raise RecordError(place, "the file is missing") from error
        return _example(content, self._labels[row], self._relative(file))

    def _relative(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()

    def _pictures(self, folder: Path) -> Iterator[Path]:
        """Yields the pictures of a class, in the order of their names; names what is no picture in one warning."""
        others = []
        self._check_inside(folder)
        for path in sorted(folder.rglob("*")):
            self._check_inside(path)
            if path.is_dir() or path.name.startswith("."):
                continue
            if path.suffix.lower() in SUFFIXES and path.is_file():  # no pipe, and no link to a file that is gone
                yield path
            else:
                others.append(path)
        if others:
            logging.warning("%s: %d files are not pictures and left out, such as %s", folder, len(others), others[0])

    def _check_inside(self, path: Path) -> None:
        if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(self._root)):
            raise UserError(
                f"{path} is a link to {os.readlink(path)}. Links to folders, and links that leave {self._root}, are not"
                " followed: copy the pictures into the folder."
            )


def _example(content: bytes, label: int, filename: str) -> bytes:
    """Returns a serialized tf.train.Example."""
    feature = {
        IMAGE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[filename.encode()])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

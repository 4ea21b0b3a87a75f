"""Sources of files, by one call each.

examples = Examples({"image": Image((32, 32)), "label": Label(classes=10)})
source = tf_records("cifar10/train-*.tfrecord", examples)
source = array_records("prepared/train", examples, damaged="skip")
source = image_folder("pets", Image((64, 64), fit="crop"))
"""

import os
from pathlib import Path

from framework.data.files import manifest
from framework.data.files.examples import Examples, Label
from framework.data.files.folder import FolderRecords
from framework.data.files.pictures import Image
from framework.data.files.records import ArrayRecords, TfRecords
from framework.data.files.shards import Paths, find, origin_of
from framework.data.files.source import Decode, Policy, RecordSource
from framework.remote.address import is_address, refuse


def tf_records(paths: Paths, decode: Decode, *, damaged: Policy = "stop") -> RecordSource:
    """Returns the source of TFRecord shards; the first call makes an index beside each shard, or in the cache.

    Args:
      paths: a file, a folder of *.tfrecord, a pattern, or a list of files; not compressed.
      decode: `Examples`, or a function that returns {field: array or number} of one record's bytes; a ValueError of it
        says that the record is damaged, any other exception is a mistake in it.
      damaged: 'stop' ends the run at the first damaged record that is read, and names it; 'skip' finds all of them
        before the first batch and leaves them out, counted in result.json.

    Raises:
      UserError: a shard is missing, compressed, or has changed since its index was made.
    """
    shards = find(paths, ".tfrecord")
    return RecordSource(TfRecords(shards), decode, origin_of(shards), damaged)


def array_records(paths: Paths, decode: Decode, *, damaged: Policy = "stop") -> RecordSource:
    """Returns the source of ArrayRecord shards, such as those of `python -m framework.data.prepare`.

    Args:
      paths: a folder of *.array_record, a file, a pattern, or a list of files. A manifest beside them is checked.
      decode: as of `tf_records`.
      damaged: as of `tf_records`.

    Raises:
      UserError: array_record is not installed, or a shard is missing, cut off, or not the one of the manifest.
    """
    if isinstance(paths, str | os.PathLike) and not is_address(paths):
        place = Path(paths).expanduser()
        manifest.read(place if place.is_dir() else place.parent)  # refuses shards that are not complete yet
    shards = find(paths, ".array_record")
    return RecordSource(ArrayRecords(shards), decode, origin_of(shards), damaged)


def image_folder(path: str | os.PathLike[str], image: Image, *, damaged: Policy = "stop") -> RecordSource:
    """Returns the source of a folder that has a folder of JPEG or PNG pictures for each class.

    Args:
      path: the folder; the names of its folders, sorted, are the classes.
      image: how pictures are decoded: `Image((64, 64), fit="crop")`.
      damaged: as of `tf_records`.

    Returns:
      A source of 'image' uint8 [n, height, width, channels] and 'label' int32 [n]; `classes` has the names.

    Raises:
      UserError: there is no folder or no picture, or a link leaves the folder.
    """
    refuse(path, "image_folder")
    reader = FolderRecords(Path(path).expanduser())
    return RecordSource(reader, Examples({"image": image, "label": Label(len(reader.classes))}), str(path), damaged)

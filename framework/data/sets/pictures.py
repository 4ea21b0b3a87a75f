"""TFRecord shards of JPEG pictures with a label, decoded once into arrays.

    arrays = read_pictures(shards(folder, "train"), (32, 32, 3), classes=10)
    arrays["image"], arrays["label"]                   # uint8 [n, 32, 32, 3], int32 [n], in the order of the files

Each record is a `tf.train.Example` with the features `image/encoded` (bytes of a JPEG) and `label` (int64). All
pictures have one shape, and together they fit memory.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from framework.data.fetch import DamagedError, UnavailableError

_FEATURES = {"image/encoded": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
_DECODED_AT_ONCE = 1000


def shards(folder: Path, split: str) -> list[Path]:
    """Returns the shards '<split>-00000-of-00004.tfrecord' … of a split in their order; [] if there is none.

    Raises:
      UnavailableError: a shard is missing.
    """
    there = sorted(folder.glob(f"{split}-*-of-*.tfrecord"))
    if not there:
        return []
    count = int(re.sub(r".*-of-(\d+)\.tfrecord", r"\1", there[0].name))
    wanted = [folder / f"{split}-{shard:05d}-of-{count:05d}.tfrecord" for shard in range(count)]
    if missing := [path.name for path in wanted if path not in there]:
        raise UnavailableError(f"{folder} lacks {', '.join(missing)}")
    return wanted


def read_pictures(paths: Sequence[Path], shape: tuple[int, int, int], classes: int) -> dict[str, np.ndarray]:
    """Returns the pictures and labels of TFRecord shards, in their order.

    Args:
      paths: the shards.
      shape: height, width and channels of every picture.
      classes: labels are from 0 to `classes - 1`.

    Returns:
      {'image': uint8 [n, *shape], 'label': int32 [n]}.

    Raises:
      DamagedError: a record has a wrong checksum, is no such example, has a picture of another shape or another label;
        the message names the file and the number of the record.
    """

    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _decode(record, shape, classes)

    chunks = []
    with tf.device("CPU:0"):
        for path in paths:
            records = tf.data.TFRecordDataset(str(path))
            decoded = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            try:
                chunks += list(decoded.batch(_DECODED_AT_ONCE).as_numpy_iterator())
            except tf.errors.OpError as error:
                raise DamagedError(path, _first_problem(path, shape, classes)) from error
    if not chunks:
        raise DamagedError(paths[0], "has no record")
    image, label = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    return {"image": image, "label": label}


def _decode(record: tf.Tensor, shape: tuple[int, int, int], classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the picture and the label of one record; compares its header with `shape` before it decodes pixels."""
    example = tf.io.parse_single_example(record, _FEATURES)
    encoded, label = example["image/encoded"], example["label"]
    is_right_shape = tf.reduce_all(tf.io.extract_jpeg_shape(encoded) == shape)
    with tf.control_dependencies([tf.Assert(is_right_shape & (label >= 0) & (label < classes), [label])]):
        # The default of dct_method may be a faster transform, which gives other pixels.
        image = tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, shape), tf.cast(label, tf.int32)


def _first_problem(path: Path, shape: tuple[int, int, int], classes: int) -> str:
    """Returns what is wrong with a shard, found by reading one record after the other."""
    records = iter(tf.data.TFRecordDataset(str(path)))
    for number in itertools.count():
        try:
            record = next(records)
        except StopIteration:
            return f"could not be read at first, but its {number} records can now: is the disk failing?"
        except tf.errors.OpError:
            return f"is truncated, or has a wrong checksum, in record {number}"
        if problem := _problem(record, shape, classes):
            return f"record {number} {problem}"
    raise AssertionError  # not reached: the loop has no end


def _problem(record: tf.Tensor, shape: tuple[int, int, int], classes: int) -> str:
    """Returns what is wrong with a record; '' if nothing is."""
    try:
        example = tf.io.parse_single_example(record, _FEATURES)
    except tf.errors.OpError:
        return "is no tf.train.Example with the features image/encoded (bytes) and label (int64)"
    label = int(example["label"])
    if not 0 <= label < classes:
        return f"has the label {label}, not one from 0 to {classes - 1}"
    try:
        has = tuple(tf.io.extract_jpeg_shape(example["image/encoded"]).numpy().tolist())
        if has != shape:
            return f"has a picture of {_by(has)}, not of {_by(shape)}"
        tf.io.decode_jpeg(example["image/encoded"])
    except tf.errors.OpError:
        return "has a damaged JPEG"
    return ""


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

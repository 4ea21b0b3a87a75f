"""Small pictures and shards for tests, made by other code than that under test: Pillow, and TensorFlow's own writer."""

import io
import struct

import numpy as np
import tensorflow as tf
from PIL import Image

SIDE = 6


def pixels(number, side=SIDE, channels=3):
    """A picture of its own for each number, uint8 [side, side, channels]."""
    array = np.random.default_rng(number).integers(0, 256, [side, side, channels], np.uint8)
    return array


def encoded(array, kind="PNG", **options):
    """The bytes of a JPEG or PNG file; one channel is grey."""
    content = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(content, kind, **options)
    return content.getvalue()


def by_pillow(content, mode="RGB"):
    """The pixels that Pillow decodes; the grey ones of a colour JPEG are its luminance."""
    image = Image.open(io.BytesIO(content))
    image.draft(mode, image.size)
    array = np.asarray(image.convert(mode))
    return array if array.ndim == 3 else array[..., np.newaxis]


def example(content, label):
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def pictures(count, first=0, classes=3):
    """Records with the pictures `first` … first + count - 1; the label of a picture is its number modulo `classes`."""
    return [example(encoded(pixels(number)), number % classes) for number in range(first, first + count)]


def write_tf_records(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def write_shards(folder, counts, name="train"):
    """TFRecord shards of pictures, numbered through."""
    first, paths = 0, []
    for shard, count in enumerate(counts):
        path = folder / f"{name}-{shard:05d}-of-{len(counts):05d}.tfrecord"
        paths.append(write_tf_records(path, pictures(count, first)))
        first += count
    return paths


def frames(path):
    """(first byte, record) of each record of a TFRecord file, by its definition and without its CRCs."""
    content, place, found = path.read_bytes(), 0, []
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        found.append((place, content[place + 12 : place + 12 + length]))
        place += 12 + length + 4
    return found


def flip(path, place):
    """Inverts one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(bytes(content))

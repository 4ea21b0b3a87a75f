"""data/sets/pictures.py: shards of JPEG records become arrays, and what is damaged is named by file and record."""

import struct

import numpy as np
import pytest

from framework.data.fetch import DamagedError, UnavailableError
from framework.data.sets import pictures
from tests.made_up import example, jpeg, write_records, write_set

SHAPE = (16, 24, 3)


def mosaic(rng, count):
    """Grey 8 x 8 squares, which a JPEG of quality 100 keeps to the bit: each is one coefficient, divided by 1."""
    squares = rng.integers(0, 256, (count, 2, 3), np.uint8)
    return np.repeat(np.kron(squares, np.ones([8, 8], np.uint8))[..., np.newaxis], 3, axis=-1)


def problem(path, shape=SHAPE):
    with pytest.raises(DamagedError) as caught:
        pictures.read_pictures([path], shape, classes=10)
    return str(caught.value).removeprefix(f"{path} ")


def test_pictures_come_in_the_order_of_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_DECODED_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    image, label = mosaic(rng, 11), rng.integers(0, 10, 11)
    write_set(tmp_path, "train", image, label, shards=3)
    arrays = pictures.read_pictures(pictures.shards(tmp_path, "train"), SHAPE, classes=10)
    np.testing.assert_array_equal(arrays["image"], image)
    np.testing.assert_array_equal(arrays["label"], label)
    assert (arrays["image"].dtype, arrays["label"].dtype) == (np.uint8, np.int32)
    assert pictures.shards(tmp_path, "test") == []


def test_missing_shard(tmp_path):
    write_set(tmp_path, "train", *[np.zeros([4, *SHAPE], np.uint8), np.zeros(4)], shards=4)
    (tmp_path / "train-00002-of-00004.tfrecord").unlink()
    with pytest.raises(UnavailableError, match=r"lacks train-00002-of-00004\.tfrecord$"):
        pictures.shards(tmp_path, "train")


def test_records_that_are_no_such_picture(tmp_path):
    path = tmp_path / "test-00000-of-00001.tfrecord"
    good = example(jpeg(np.zeros(SHAPE, np.uint8)), 9)
    wrong = {
        b"neither": "is no tf.train.Example with the features image/encoded (bytes) and label (int64)",
        example(jpeg(np.zeros(SHAPE, np.uint8)), 10): "has the label 10, not one from 0 to 9",
        example(jpeg(np.zeros(SHAPE, np.uint8)), -1): "has the label -1, not one from 0 to 9",
        example(jpeg(np.zeros([16, 24, 1], np.uint8)), 0): "has a picture of 16 x 24 x 1, not of 16 x 24 x 3",
        example(jpeg(np.zeros([16, 25, 3], np.uint8)), 0): "has a picture of 16 x 25 x 3, not of 16 x 24 x 3",
        example(b"no picture", 0): "has a damaged JPEG",
        example(jpeg(mosaic(np.random.default_rng(0), 1)[0])[:200], 0): "has a damaged JPEG",
    }
    for record, text in wrong.items():
        write_records(path, [good, good, record, good])
        assert problem(path) == f"record 2 {text}"
    write_records(path, [])
    assert problem(path) == "has no record"


def test_huge_picture_is_refused_by_its_header(tmp_path):
    """A header of 65,500 x 65,500 pixels, 13 GB, must not be decoded."""
    encoded = bytearray(jpeg(np.zeros(SHAPE, np.uint8)))
    frame = encoded.index(b"\xff\xc0")  # marker, length, bits, height, width
    encoded[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    path = tmp_path / "test-00000-of-00001.tfrecord"
    write_records(path, [example(bytes(encoded), 0)])
    assert problem(path) == "record 0 has a picture of 65500 x 65500 x 3, not of 16 x 24 x 3"


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut"])
def test_damaged_shard(tmp_path, damage):
    path = tmp_path / "test-00000-of-00001.tfrecord"
    records = [example(jpeg(np.full(SHAPE, value, np.uint8)), value) for value in range(3)]
    write_records(path, records)
    raw = bytearray(path.read_bytes())
    second = 16 + len(records[0]) + 20  # each record: length, its checksum, the bytes, their checksum
    if damage == "a cut":
        raw = raw[:second]
    else:
        raw[second] ^= 1
    path.write_bytes(raw)
    assert problem(path) == "is truncated, or has a wrong checksum, in record 1"

"""data/sets/pictures.py: shards of JPEG records become arrays, and what is damaged is named by file and record."""

import struct

import numpy as np
import pytest

from framework.data.fetch import DamagedError
from framework.data.sets import pictures
from tests.made_up import example, jpeg, write_records, write_set

SHAPE = (16, 24, 3)


def mosaic(rng, count):
    """Grey 8 x 8 squares, which a JPEG of quality 100 keeps to the bit: each is one coefficient, divided by 1."""
    squares = rng.integers(0, 256, (count, 2, 3), np.uint8)
    return np.repeat(np.kron(squares, np.ones([8, 8], np.uint8))[..., np.newaxis], 3, axis=-1)


def read(folder, split="train"):
    return pictures.read_pictures(folder, split, SHAPE, classes=10)


def problem(folder):
    with pytest.raises(DamagedError) as caught:
        read(folder)
    return str(caught.value).removeprefix(f"{folder} cannot be read: ")


def test_pictures_come_in_the_order_of_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_DECODED_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    image, label = mosaic(rng, 11), rng.integers(0, 10, 11)
    write_set(tmp_path, "train", image, label, shards=3)
    arrays = read(tmp_path)
    np.testing.assert_array_equal(arrays["image"], image)
    np.testing.assert_array_equal(arrays["label"], label)
    assert (arrays["image"].dtype, arrays["label"].dtype) == (np.uint8, np.int32)
    assert read(tmp_path, "test") is None


def test_a_shard_that_is_missing_or_has_changed(tmp_path):
    write_set(tmp_path, "train", *[np.zeros([4, *SHAPE], np.uint8), np.zeros(4)], shards=4)
    read(tmp_path)
    shard = tmp_path / "train-00002-of-00004.tfrecord"
    write_records(shard, [example(jpeg(np.ones(SHAPE, np.uint8)), 9)])
    assert problem(tmp_path).startswith(f"{shard} has changed since {shard.name}.index was made")
    shard.unlink()
    assert problem(tmp_path) == (
        f"the shard {shard} is missing: train-00000-of-00004.tfrecord is one of 4. Put the file back"
    )


def huge():
    """Returns a JPEG whose header says 65,500 x 65,500 pixels, 13 GB."""
    encoded = bytearray(jpeg(np.zeros(SHAPE, np.uint8)))
    frame = encoded.index(b"\xff\xc0")  # marker, length, bits, height, width
    encoded[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(encoded)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (lambda: b"neither", "Could not parse example input"),
        (lambda: example(jpeg(np.zeros(SHAPE, np.uint8)), 10), "its label is 10, not one of 0 … 9"),
        (lambda: example(jpeg(np.zeros(SHAPE, np.uint8)), -1), "its label is -1, not one of 0 … 9"),
        (lambda: example(jpeg(np.zeros([16, 24, 1], np.uint8)), 0), "it has 1 channel(s), not 3"),
        (lambda: example(jpeg(np.zeros([16, 25, 3], np.uint8)), 0), "it is 16 x 25 pixels, not 16 x 24"),
        (lambda: example(b"no picture", 0), "it is no JPEG or PNG"),
        (lambda: example(jpeg(mosaic(np.random.default_rng(0), 1)[0])[:200], 0), "the JPEG is damaged or cut off"),
        (lambda: example(huge(), 0), "it is 65500 x 65500 = 4290250000 pixels, more than max_pixels="),
    ],
)
def test_records_that_are_no_such_picture(tmp_path, record, text):
    good = example(jpeg(np.zeros(SHAPE, np.uint8)), 9)
    path = tmp_path / "train-00000-of-00001.tfrecord"
    write_records(path, [good, good, record(), good])
    assert problem(tmp_path).startswith(f"{path}, record 2: {text}")


@pytest.mark.parametrize("damage", ["a flipped bit", "a cut"])
def test_damaged_shard(tmp_path, damage):
    path = tmp_path / "train-00000-of-00001.tfrecord"
    records = [example(jpeg(np.full(SHAPE, value, np.uint8)), value) for value in range(3)]
    write_records(path, records)
    raw = bytearray(path.read_bytes())
    second = 16 + len(records[0]) + 20  # each record: length, its checksum, the bytes, their checksum
    if damage == "a cut":
        raw = raw[:second]
    else:
        raw[second] ^= 1
    path.write_bytes(raw)
    why = "it is cut off after 20 bytes" if damage == "a cut" else "its CRC is wrong"
    assert problem(tmp_path) == f"{path}, record 1: {why}"

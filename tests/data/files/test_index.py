"""framework/data/files/index.py: a TFRecord shard is read once, its damage is listed, and a later change is refused."""

import gzip
import hashlib
import logging
import zlib

import numpy as np
import pytest

from framework.data.files import crc32c, notes
from framework.data.files.index import index_of
from framework.errors import UserError
from tests.data.files import made


@pytest.fixture
def shard(tmp_path):
    (tmp_path / "data").mkdir()
    return made.write_tf_records(tmp_path / "data" / "x.tfrecord", [b"a" * 40, b"", b"c" * 7, b"d" * 3000])


def test_the_index_has_the_place_and_checksum_of_each_record(shard):
    index = index_of(shard)
    frames = made.frames(shard)
    assert index.offsets.tolist() == [place for place, _ in frames] + [shard.stat().st_size]
    assert index.checksums.tolist() == [zlib.crc32(record) for _, record in frames]
    assert index.count == 4 and index.damaged == {}


def test_the_crc_is_that_of_the_format(shard):
    # The check value of CRC-32C, e.g. in RFC 3720, rotated by 15 bits and offset as TFRecord does.
    crc = 0xE3069283
    assert crc32c.masked(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    content = shard.read_bytes()
    assert crc32c.masked(content[:8]) == int.from_bytes(content[8:12], "little")
    assert crc32c.masked(b"a" * 40) == int.from_bytes(content[52:56], "little")


def test_the_index_stands_beside_the_shard_and_is_read_again(shard, monkeypatch):
    made_first = index_of(shard)
    assert sorted(path.name for path in shard.parent.iterdir()) == ["x.tfrecord", "x.tfrecord.index"]
    monkeypatch.setattr("framework.data.files.index._made", lambda *_: pytest.fail("the shard was read again"))
    again = index_of(shard)
    assert again.sha256 == made_first.sha256
    np.testing.assert_array_equal(again.offsets, made_first.offsets)
    np.testing.assert_array_equal(again.checksums, made_first.checksums)


def test_a_read_only_folder_has_its_index_in_the_cache(shard, tmp_path):
    shard.parent.chmod(0o555)
    try:
        index_of(shard)
        assert [path.name for path in shard.parent.iterdir()] == ["x.tfrecord"]
        place = notes.place_of(shard, ".index")
        assert place.parent == tmp_path / "cache" / "files" and place.is_file()
    finally:
        shard.parent.chmod(0o755)


def test_an_unchanged_file_is_hashed_once(shard, monkeypatch):
    digest = notes.content_hash(shard)
    monkeypatch.setattr(notes.hashlib, "file_digest", lambda *_: pytest.fail("the file was read again"))
    assert notes.content_hash(shard) == digest


def test_unchanged_files_of_a_folder_are_hashed_once(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("b", "sub/a", "c")]
    (tmp_path / "sub").mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 9)
    wanted = [hashlib.sha256(bytes([number]) * 9).hexdigest() for number in range(3)]
    assert notes.content_hashes(tmp_path, paths) == wanted
    read, by_name = [], notes._digest
    monkeypatch.setattr(notes, "_digest", lambda path: read.append(path.name) or by_name(path))
    paths[1].write_bytes(b"x" * 9)
    assert notes.content_hashes(tmp_path, paths[::-1]) == [wanted[2], hashlib.sha256(b"x" * 9).hexdigest(), wanted[0]]
    assert notes.content_hashes(tmp_path, paths[:1]) == wanted[:1] and read == ["a"]
    with pytest.raises(UserError, match=f"{tmp_path}/d cannot be read"):
        notes.content_hashes(tmp_path, [tmp_path / "d"])


DAMAGE = {
    "its CRC is wrong": (lambda path: made.flip(path, 56 + 16 + 12 + 3), {2: "its CRC is wrong"}, 4),
    "length": (
        lambda path: made.flip(path, 56 + 2),
        {1: "the CRC of its length is wrong, so the last 3055 bytes cannot be read"},
        2,
    ),
    "cut off in a record": (
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        {3: "it is cut off after 3011 bytes"},
        4,
    ),
    "cut off in a length": (
        lambda path: path.write_bytes(path.read_bytes()[: 56 + 16 + 23 + 6]),
        {3: "it is cut off after 6 bytes"},
        4,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_records_are_listed_and_the_others_are_indexed(shard, name):
    damage, listed, count = DAMAGE[name]
    frames = made.frames(shard)
    damage(shard)
    index = index_of(shard)
    assert index.damaged == listed and index.count == count
    for number in set(range(count)) - set(listed):
        assert index.offsets[number] == frames[number][0]
        assert index.checksums[number] == zlib.crc32(frames[number][1])
    assert index_of(shard).damaged == listed  # as read from the file


def test_a_shard_that_changed_is_refused_by_name(shard):
    old = index_of(shard)
    made.write_tf_records(shard, [b"a" * 40, b"", b"C" * 7, b"d" * 3000])  # the same size, and right CRCs
    with pytest.raises(UserError) as caught:
        index_of(shard)
    new = notes.content_hash(shard)
    assert str(caught.value) == (
        f"{shard} has changed since x.tfrecord.index was made: 3111 bytes, SHA-256 {old.sha256[:12]}… then; 3111 bytes,"
        f" {new[:12]}… now. Put the shard back; if the change is meant, remove {shard}.index."
    )
    (shard.parent / "x.tfrecord.index").unlink()
    assert index_of(shard).checksums[2] == zlib.crc32(b"C" * 7)


def test_a_damaged_index_is_made_again(shard, caplog):
    first = index_of(shard)
    (shard.parent / "x.tfrecord.index").write_bytes(b"PK\x03\x04 not an index")
    with caplog.at_level(logging.WARNING):
        assert index_of(shard).offsets.tolist() == first.offsets.tolist()
    assert "x.tfrecord.index is damaged" in caplog.text and "and is made again" in caplog.text


def test_a_compressed_shard_is_refused(shard):
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(
        UserError, match=r"x\.tfrecord is compressed, so its records have no places\. Unpack it: gunzip"
    ):
        index_of(shard)

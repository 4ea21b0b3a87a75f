"""framework/data/files/records.py, shards.py: any record of any shard by its number; each has a name."""

import numpy as np
import pytest

from framework.data.files import manifest, notes
from framework.data.files.records import ArrayRecords, RecordError, TfRecords
from framework.data.files.shards import Places, find
from framework.errors import UserError
from framework.files import write_json
from tests.data.files import made

RECORDS = [bytes([number]) * (number + 1) for number in range(11)]
COUNTS = [4, 1, 6]


def write_array_records(path, records):
    module = pytest.importorskip("array_record.python.array_record_module", reason="needs the extra 'data'")
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


KINDS = {"tfrecord": (made.write_tf_records, TfRecords), "array_record": (write_array_records, ArrayRecords)}


@pytest.fixture(params=KINDS)
def data(request, tmp_path):
    """The shards of RECORDS and the class that reads them."""
    write, reader = KINDS[request.param]
    (tmp_path / "data").mkdir()
    first = 0
    for shard, count in enumerate(COUNTS):
        path = tmp_path / "data" / f"x-{shard:05d}-of-00003.{request.param}"
        write(path, RECORDS[first : first + count])
        first += count
    return find(tmp_path / "data", f".{request.param}"), reader


def line_of(fn, *args, kind=UserError):
    with pytest.raises(kind) as caught:
        fn(*args)
    return str(caught.value)


def test_records_are_read_in_any_order(data):
    shards, reader = data
    records = reader(shards)
    assert len(records) == 11
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(11), 2))
    assert records.read(order) == [RECORDS[row] for row in order]
    assert records.read(np.array([], np.int64)) == []
    assert records.name(4) == f"{shards[1]}, record 0" and records.name(10) == f"{shards[2]}, record 5"
    with pytest.raises(IndexError, match=r"rows 3 … 11 of 11 records"):
        records.read(np.array([3, 11]))


def test_the_digest_is_that_of_the_content(data, tmp_path):
    shards, reader = data
    digest = reader(shards).digest
    moved = []
    for shard in shards:
        moved.append(tmp_path / f"other-{shard.name}")
        moved[-1].write_bytes(shard.read_bytes())
    assert reader(moved).digest == digest
    assert reader(moved[::-1]).digest != digest


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_shard_is_named(data, missing):
    shards, _ = data
    shards[missing].unlink()
    other = shards[0 if missing else 1]
    assert line_of(find, other.parent, other.suffix) == (
        f"the shard {shards[missing]} is missing: {other.name} is one of 3. Put the file back."
    )


def test_files_are_found_by_folder_pattern_and_list(data):
    shards, _ = data
    folder, suffix = shards[0].parent, shards[0].suffix
    (folder / ".hidden.tfrecord").touch()
    (folder / "notes.txt").touch()
    assert find(str(folder), suffix) == find(f"{folder}/x-*{suffix}", suffix) == find(shards, suffix) == shards
    assert line_of(find, folder / "y.tfrecord", suffix) == (
        f"{folder}/y.tfrecord does not exist, or is not a file. Put the shard back, or correct the path."
    )
    assert line_of(find, f"{folder}/y*", suffix) == (
        f"no file matches {folder}/y*. Give a file, a folder of *{suffix}, or a pattern."
    )


def damage_inside(data):
    """Inverts a byte of record 7, which is the third of the last shard."""
    shards, _ = data
    made.flip(shards[2], shards[2].read_bytes().index(RECORDS[7]) + 2)


def test_a_damaged_record_is_named_and_others_are_read(data):
    damage_inside(data)
    records = data[1](data[0])
    for rows, place in (([7], 0), ([1, 10, 7, 7], 2), ([6, 7], 1)):
        with pytest.raises(RecordError) as caught:
            records.read(np.array(rows))
        assert caught.value.place == place
        assert caught.value.why == "its CRC is wrong" or "chunk data hash mismatch" in caught.value.why
    assert records.read(np.array([6, 8, 10])) == [RECORDS[6], RECORDS[8], RECORDS[10]]


def test_a_record_that_changes_while_it_is_used_is_named(data):
    records = data[1](data[0])
    damage_inside(data)
    with pytest.raises(RecordError) as caught:
        records.read(np.array([0, 7]))
    assert caught.value.place == 1
    assert "has changed since" in caught.value.why or "hash mismatch" in caught.value.why


def test_closed_records_are_opened_again_unless_they_changed(data):
    shards, reader = data
    records = reader(shards)
    for _ in range(2):
        assert records.read(np.array([10, 0])) == [RECORDS[10], RECORDS[0]]
        records.close()
    damage_inside(data)
    with pytest.raises(RecordError, match="has changed since"):
        records.read(np.array([7]))


def test_an_array_record_that_is_cut_off_or_no_array_record_is_refused(tmp_path):
    path = tmp_path / "x.array_record"
    write_array_records(path, [bytes(1000)] * 50)
    for content in (path.read_bytes()[:-700], b"hello", b""):
        path.write_bytes(content)
        assert line_of(ArrayRecords, [path]) == f"{path} is not an ArrayRecord file, or is cut off, or has no record."


def test_a_shard_that_is_not_the_one_of_the_manifest_is_named(data):
    shards, reader = data
    if reader is TfRecords:
        return
    listed = [
        {"name": path.name, "records": count, "bytes": path.stat().st_size, "sha256": notes.content_hash(path)}
        for path, count in zip(shards, COUNTS, strict=True)
    ]
    facts = {"version": 1, "records": 11, "shards": listed, "classes": ["cat", "dog"]}
    place = shards[0].parent / manifest.NAME
    write_json(place, facts)
    assert reader(shards).classes == ("cat", "dog")
    write_json(place, facts | {"records": 5, "shards": listed[:2]})
    assert line_of(reader, shards) == f"{place} does not list {shards[2]}. Move the file to another folder."
    write_json(place, facts | {"classes": 2})
    assert line_of(reader, shards).startswith(f"{place} is damaged (")
    write_json(place, facts | {"records": 12})
    assert line_of(reader, shards) == f"{place} says 12 records, but its shards have 11. Prepare the data again."
    write_json(place, facts | {"records": 12, "shards": [*listed[:2], listed[2] | {"records": 7}]})
    assert line_of(reader, shards) == f"{shards[2]} has 6 records, but {place} says 7. Prepare the data again."
    write_json(place, facts)
    then = listed[1]["sha256"]
    write_array_records(shards[1], [b"other"])
    assert line_of(reader, shards).startswith(
        f"{shards[1]} is not the shard that {shards[0].parent}/manifest.json lists: {listed[1]['bytes']} bytes, SHA-256"
        f" {then[:12]}… there; "
    )
    shards[1].unlink()
    assert line_of(reader, [shards[0]]) == (
        f"the shard {shards[1]} is missing, which {shards[0].parent}/manifest.json lists. Put the file back."
    )


def test_places_are_those_of_a_plain_search():
    counts = [3, 0, 5, 1]
    pairs = [(shard, number) for shard, count in enumerate(counts) for number in range(count)]
    shard, number = Places(counts).of(np.arange(9))
    assert list(zip(shard.tolist(), number.tolist(), strict=True)) == pairs


def test_a_label_that_stands_for_another_class_in_another_folder_is_refused(tmp_path):
    shards = []
    for name, classes in (("pets", ["cat", "dog"]), ("wild", ["cat", "emu"])):
        shards.append(tmp_path / name / "shard")
        shards[-1].parent.mkdir()
        shards[-1].write_bytes(b"")
        listed = [{"name": "shard", "records": 1, "bytes": 0, "sha256": "x"}]
        facts = {"version": 1, "records": 1, "shards": listed, "classes": classes}
        write_json(tmp_path / name / "manifest.json", facts)
    assert manifest.check(shards[:1], ["x"], lambda shard: 1) == ("cat", "dog")
    with pytest.raises(UserError, match=r"label 1 stands for 'dog' in '.*pets', but for 'emu' in '.*wild'\."):
        manifest.check(shards, ["x", "x"], lambda shard: 1)

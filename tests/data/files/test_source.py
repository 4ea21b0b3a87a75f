"""framework/data/files/source.py, examples.py: records become fields, and damaged ones are named or left out."""

import numpy as np
import pytest
import tensorflow as tf

from experiments import mnist_mlp
from framework import config, data
from framework.config.overrides import override
from framework.data.files.examples import Examples
from framework.data.mixture import origin_of
from framework.errors import DataError, UserError
from tests.data.files import made

FIELDS = {"image": data.Image((made.SIDE, made.SIDE)), "label": data.Label(classes=3)}


@pytest.fixture
def folder(tmp_path):
    """Two shards of 5 and 7 pictures."""
    made.write_shards(tmp_path, [5, 7])
    return tmp_path


def source_of(folder, fields=FIELDS, **options):
    return data.tf_records(folder / "train-*.tfrecord", data.Examples(fields), **options)


def line_of(kind, fn, *args, **kwargs):
    with pytest.raises(kind) as caught:
        fn(*args, **kwargs)
    return str(caught.value)


def test_fields_are_those_that_were_written(folder):
    source = source_of(folder)
    rows = np.array([11, 0, 5, 5])
    batch = source.take(rows)
    assert {name: array.dtype for name, array in batch.items()} == {"image": np.uint8, "label": np.int32}
    np.testing.assert_array_equal(batch["image"], [made.pixels(row) for row in rows])
    np.testing.assert_array_equal(batch["label"], rows % 3)
    assert len(source) == 12 and source.nbytes == 12 * (made.SIDE**2 * 3 + 4)
    assert source.origin == f"{folder}/train-00000-of-00002.tfrecord and 1 more"
    assert source.element_spec == {
        "image": tf.TensorSpec([made.SIDE, made.SIDE, 3], tf.uint8),
        "label": tf.TensorSpec([], tf.int32),
    }


def test_features_of_tensorflow_are_fields(folder):
    fields = {"image/encoded": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([1], tf.int64)}
    batch = source_of(folder, fields).take(np.array([3, 4]))
    assert list(batch["image/encoded"]) == [made.encoded(made.pixels(row)) for row in (3, 4)]
    np.testing.assert_array_equal(batch["label"], [[0], [1]])
    assert batch["label"].dtype == np.int64


def test_a_function_of_bytes_decodes_records_of_any_kind(tmp_path):
    made.write_tf_records(tmp_path / "x.tfrecord", [np.arange(3, dtype=np.float32).tobytes(), b"\0" * 12])
    source = data.tf_records(tmp_path, lambda record: {"x": np.frombuffer(record, np.float32), "raw": record})
    batch = source.take(np.array([1, 0]))
    np.testing.assert_array_equal(batch["x"], [[0, 0, 0], [0, 1, 2]])
    assert list(batch["raw"]) == [b"\0" * 12, np.arange(3, dtype=np.float32).tobytes()]
    assert source.element_spec == {"x": tf.TensorSpec([3], tf.float32), "raw": tf.TensorSpec([], tf.string)}


def damaged(folder):
    """Writes the second shard again with one damage of each kind; returns {record of the data set: what is wrong}."""
    records = made.pictures(7, 5)
    cut = made.encoded(made.pixels(6))[:-20]
    records[1] = made.example(cut, 0)
    records[2] = made.example(made.encoded(made.pixels(7, channels=1)), 1)
    records[3] = made.example(made.encoded(made.pixels(8)), 3)
    records[5] = tf.train.Example().SerializeToString()
    path = made.write_tf_records(folder / "train-00001-of-00002.tfrecord", records)
    made.flip(path, made.frames(path)[6][0] + 20)
    return {
        6: "the PNG is damaged or cut off",
        7: "it has 1 channel(s), not 3; Image(convert=True) converts the picture",
        8: "its label is 3, not one of 0 … 2",
        10: "it has no feature 'image/encoded', but none at all; Image and Label take key='…'",
        11: "its CRC is wrong",
    }


def test_a_damaged_record_stops_and_is_named_by_file_and_record(folder):
    damage = damaged(folder)
    source = source_of(folder)
    np.testing.assert_array_equal(source.take(np.array([0, 5, 9]))["label"], [0, 2, 0])
    for row, why in damage.items():
        line = line_of(DataError, source.take, np.array([0, row, 5]))
        assert line.startswith(f"{folder}/train-00001-of-00002.tfrecord, record {row - 5}: {why[:20]}")
        assert line.endswith("Mend the file, or leave such records out by damaged='skip'.")


def test_a_feature_of_another_name_is_told_which_there_are(folder):
    fields = {"image": data.Image((made.SIDE, made.SIDE), key="picture"), "label": data.Label(3)}
    assert line_of(DataError, source_of(folder, fields).take, np.arange(2)) == (
        f"{folder}/train-00000-of-00002.tfrecord, record 0: it has no feature 'picture', but image/encoded, label;"
        " Image and Label take key='…'. Mend the file, or leave such records out by damaged='skip'."
    )


def test_damaged_records_are_skipped_and_counted(folder, monkeypatch):
    damage = damaged(folder)
    source = source_of(folder, damaged="skip")
    left = [row for row in range(12) if row not in damage]
    assert len(source) == 7
    np.testing.assert_array_equal(source.take(np.arange(7))["image"], [made.pixels(row) for row in left])
    assert source.skipped["records"] == 5
    assert source.skipped["first"][4] == f"{folder}/train-00001-of-00002.tfrecord, record 6: its CRC is wrong"
    assert origin_of([source], "stream", "")["skipped"] == {source.origin: source.skipped}
    assert "skipped" not in origin_of([source_of(folder)], "stream", "")
    # The pass is not repeated for the same files and fields.
    again = Examples.__call__
    monkeypatch.setattr(Examples, "__call__", lambda *_: pytest.fail("all records were decoded again"))
    assert source_of(folder, damaged="skip").skipped == source.skipped
    monkeypatch.setattr(Examples, "__call__", again)
    grey = {"image": data.Image((made.SIDE, made.SIDE), convert=True)}
    assert source_of(folder, grey, damaged="skip").skipped["records"] == 3


def test_a_function_of_bytes_says_damage_by_a_value_error(tmp_path):
    def decode(record):
        if record == b"bad":
            raise ValueError("it is bad")
        return {"size": np.int64(len(record)), "first": 1 / len(record)}

    path = made.write_tf_records(tmp_path / "x.tfrecord", [b"a", b"bad", b"ccc"])
    assert line_of(DataError, data.tf_records(path, decode).take, np.arange(3)).startswith(
        f"{path}, record 1: it is bad"
    )
    source = data.tf_records(path, decode, damaged="skip")
    np.testing.assert_array_equal(source.take(np.arange(2))["size"], [1, 3])
    made.write_tf_records(tmp_path / "y.tfrecord", [b""])
    with pytest.raises(ZeroDivisionError):  # a mistake is not damage
        data.tf_records(tmp_path / "y.tfrecord", decode, damaged="skip")


def test_nothing_but_damage_is_refused(tmp_path):
    path = made.write_tf_records(tmp_path / "x.tfrecord", [b"nonsense", b"more"])
    line = line_of(UserError, data.tf_records, path, data.Examples(FIELDS), damaged="skip")
    assert line.startswith(f"{path}: all 2 records are damaged; the first is {path}, record 0: ")


def test_the_fingerprint_follows_content_fields_and_what_is_left_out(folder):
    prints = [source_of(folder).fingerprint(), source_of(folder).fingerprint()]
    assert prints[0] == prints[1]
    prints.append(source_of(folder, {"label": data.Label(3)}).fingerprint())
    damaged(folder)
    (folder / "train-00001-of-00002.tfrecord.index").unlink()
    prints += [source_of(folder).fingerprint(), source_of(folder, damaged="skip").fingerprint()]
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda folder: source_of(folder, damaged="drop"), "damaged='drop' is not 'stop' or 'skip'."),
        (lambda folder: source_of(folder, {}), "Examples was given no field, e.g. {'label': data.Label(classes=10)}."),
        (
            lambda folder: source_of(folder, {"x": tf.int64}),
            "Examples: 'x' is of type DType, not data.Image(size), data.Label(classes) or tf.io.FixedLenFeature(shape,"
            " dtype).",
        ),
        (
            lambda folder: data.tf_records(folder, {"x": 1}),
            "decode is of type dict, not data.Examples({…}) or a function of a record's bytes.",
        ),
    ],
)
def test_bad_arguments_are_refused(folder, call, line):
    assert line_of(UserError, call, folder) == line


# ---- In batches ----


def batches_of(source, **values):
    settings = {"data.batch_size": 4, "eval.batch_size": 4, "data.parallel_calls": 3, "data.prefetch_batches": 4}
    final = config.finalize(override(mnist_mlp.get_config(""), settings | values))
    return data.make_batches(source, final, training=True)


def test_batches_are_those_of_arrays_whatever_the_threads(folder):
    source = source_of(folder)
    arrays = data.Source({"image": np.stack([made.pixels(row) for row in range(12)]), "row": np.arange(12)}, "arrays")
    of_arrays = batches_of(arrays, **{"data.placement": "resident"})
    for placement, calls in (("stream", 1), ("stream", 5), ("resident", 1)):
        batches = batches_of(source, **{"data.placement": placement, "data.parallel_calls": calls})
        plan = batches.plan(3, 6, 6)
        for step in range(6):
            batch, expected = batches.take(plan, tf.constant(step)), of_arrays.at(3 + step)
            np.testing.assert_array_equal(batch["image"], expected["image"])
            np.testing.assert_array_equal(batch["label"], expected["row"].numpy() % 3)


def test_replicas_see_the_pictures_of_one_device(folder):
    whole = batches_of(source_of(folder))
    shards = [whole.shard(0, 2), whole.shard(2, 2)]
    plans = [batches.plan(7, 2, 2) for batches in (whole, *shards)]
    for step in range(2):
        expected, *parts = (b.take(p, tf.constant(step)) for b, p in zip((whole, *shards), plans, strict=True))
        np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts]), expected["image"])


def test_a_damaged_record_ends_a_stream_with_its_name(folder):
    damaged(folder)
    batches = batches_of(source_of(folder))
    line = line_of(DataError, batches.plan, 0, 3, 3)
    assert line.startswith(f"{folder}/train-00001-of-00002.tfrecord, record ")


def test_the_counts_of_skipped_records_are_in_the_origin_of_batches(folder):
    damaged(folder)
    source = source_of(folder, damaged="skip")
    assert batches_of(source).origin["skipped"][source.origin]["records"] == 5

"""Event files: the numbers that TensorBoard itself reads out of them, and its own histograms."""

import json
import math
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from framework.config import RunError
from framework.writers import AsyncWriter, Jsonl, MultiWriter, tensorboard
from framework.writers.tensorboard import TensorBoard, buckets, image_grid


def load(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) by step: files are named by the second, so those of one second are read in any order."""
    return sorted((event.step, float(tf.make_ndarray(event.tensor_proto))) for event in load(folder).Tensors(tag))


def test_tensorboard_overlays_train_and_eval_curves(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.scalars(100, {"loss": 0.5, "learning_rate": 0.25})
    writer.scalars(200, {"loss": math.nan})
    writer.scalars(200, {"eval/test/loss": 0.75, "eval/test/top/5": 0.875})
    writer.scalars(200, {"eval/valid/loss": 1.5, "eval/odd": 3.0})
    writer.close()
    assert sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*tfevents*")) == [
        "eval/test",
        "eval/valid",
        "train",
    ]
    (first, second) = curve(tmp_path / "train", "loss")
    assert first == (100, 0.5)
    assert second[0] == 200
    assert math.isnan(second[1])
    assert curve(tmp_path / "train", "learning_rate") == [(100, 0.25)]
    assert curve(tmp_path / "train", "eval/odd") == [(200, 3.0)]
    assert curve(tmp_path / "eval" / "test", "loss") == [(200, 0.75)]
    assert curve(tmp_path / "eval" / "test", "top/5") == [(200, 0.875)]
    assert curve(tmp_path / "eval" / "valid", "loss") == [(200, 1.5)]


def test_tensorboard_has_the_numbers_of_the_rows(tmp_path: Path) -> None:
    """Against the other writer: every tag, step and value, with the time at which it was written."""
    random = np.random.default_rng(0)
    names = ["loss", "learning_rate", "accuracy", "eval/test/loss", "skipped"]
    before = time.time()
    with MultiWriter([Jsonl(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path / "tensorboard")]) as writer:
        for step in range(1, 8):
            writer.scalars(100 * step, dict(zip(names, [*random.normal(size=4), step % 2], strict=True)))
    after = time.time()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train, test = load(tmp_path / "tensorboard" / "train"), load(tmp_path / "tensorboard" / "eval" / "test")
    assert sorted(train.Tags()["tensors"]) == ["accuracy", "learning_rate", "loss", "skipped"]
    assert test.Tags()["tensors"] == ["loss"]
    times = []
    for name in names:
        read = test.Tensors("loss") if name == "eval/test/loss" else train.Tensors(name)
        assert [event.step for event in read] == [row["step"] for row in rows]
        values = [tf.make_ndarray(event.tensor_proto) for event in read]
        assert {value.dtype for value in values} == {np.dtype(np.float32)}
        assert values == [np.float32(row[name]) for row in rows]
        if name != "eval/test/loss":
            times.append([event.wall_time for event in read])
    assert times == [times[0]] * 4
    assert times[0] == sorted(times[0]) and before - 1 <= times[0][0] and times[0][-1] <= after + 1


def test_tensorboard_writes_a_row_as_one_event_of_scalars(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.scalars(3, {"loss": 0.5, "accuracy": 0.25, "eval/test/loss": 1.5, "skipped": 0})
    writer.histograms(3, {"weights/a": np.arange(3.0), "weights/b": np.ones(2)})
    writer.close()
    (path,) = (tmp_path / "train").iterdir()
    version, scalars, histograms = (
        tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))
    )
    assert version.file_version
    assert [value.tag for value in scalars.summary.value] == ["loss", "accuracy", "skipped"]
    assert [value.tag for value in histograms.summary.value] == ["weights/a", "weights/b"]
    expected = scalar_pb("accuracy", 0.25).SerializeToString()
    assert tf.compat.v1.Summary(value=scalars.summary.value[1:2]).SerializeToString() == expected
    for event, plugin in ((scalars, "scalars"), (histograms, "histograms")):
        assert {value.metadata.plugin_data.plugin_name for value in event.summary.value} == {plugin}


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=100_003),  # several chunks
        np.random.default_rng(1).normal(size=40_000).astype(np.float32) ** 9,
        np.linspace(-1, 1, 31, dtype=np.float32),  # every value on an edge
        np.array([7, 7, 7], np.float32),
        np.array([-2.0], np.float32),
        np.array([-3e38, 1, 3e38], np.float32),
        np.array([0.0, 1e-45], np.float32),
        np.where(np.arange(100_003) % 5, 0.0, np.random.default_rng(2).normal(size=100_003)),  # most are zero
        np.array([0, -0.0, 0, -7, -1], np.float32),  # and the greatest
        np.array([0, 0, -0.0, 7, 1], np.float32),  # and the least
    ],
)
def test_buckets_are_those_of_tensorboard(values: np.ndarray) -> None:
    (value,) = histogram_pb("x", values).value
    np.testing.assert_array_equal(buckets(values), tf.make_ndarray(value.tensor))


def test_tensorboard_takes_numbers_beyond_float32(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.scalars(1, {"a": 1e300, "b": -math.inf, "c": np.float64(-1e300), "d": np.int64(2**40)})
    writer.close()
    read = [curve(tmp_path / "train", tag) for tag in "abcd"]
    assert read == [[(1, math.inf)], [(1, -math.inf)], [(1, -math.inf)], [(1, 2.0**40)]]


def test_tensorboard_histograms_count_finite_values(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    values = np.array([[0.0, 1.0, 1.0], [2.0, math.nan, math.inf]], np.float32)
    writer.histograms(7, {"weights/dense/kernel": values, "gradients/none": np.full(3, math.nan), "empty": np.zeros(0)})
    writer.close()
    events = load(tmp_path / "train")
    assert events.Tags()["tensors"] == ["weights/dense/kernel"]
    (event,) = events.Tensors("weights/dense/kernel")
    buckets = tf.make_ndarray(event.tensor_proto)  # [buckets, (left, right, count)]
    assert event.step == 7
    assert (buckets[0, 0], buckets[-1, 1]) == (0.0, 2.0)
    assert buckets[:, 2].sum() == 4
    assert buckets[0, 2] == 1
    assert buckets[-1, 2] == 1


@pytest.mark.parametrize(
    "values",
    [[1.0, np.nextafter(1.0, 2.0)], [-1e308, 1e308, 0.0], [-3e38, 3e38], [0.0, 1e-45], [5.0, 5.0], [1, 2]],
)
def test_tensorboard_histograms_take_any_range(tmp_path: Path, values: list) -> None:
    writer = TensorBoard(tmp_path)
    writer.histograms(1, {"x": np.array(values)})
    writer.close()
    (event,) = load(tmp_path / "train").Tensors("x")
    kept = [value for value in values if abs(value) < 3.4e38]
    assert tf.make_ndarray(event.tensor_proto)[:, 2].sum() == len(kept)


@pytest.mark.parametrize(("dtype", "white"), [(np.float32, 1), (np.float64, 1), (np.uint8, 255)])
def test_tensorboard_shows_images_as_one_picture(tmp_path: Path, dtype: type, white: int) -> None:
    shades = np.array([0, 1, 1, 0, 1], dtype) * np.asarray(white, dtype)
    images = np.broadcast_to(shades[:, None, None], [5, 2, 3])
    writer = TensorBoard(tmp_path)
    writer.images(0, {"inputs/image": images})
    writer.images(0, {"inputs/none": images[:0]})
    writer.close()
    events = load(tmp_path / "train")
    assert events.Tags()["tensors"] == ["inputs/image"]
    width, height, png = tf.make_ndarray(events.Tensors("inputs/image")[0].tensor_proto)
    assert (int(width), int(height)) == (9, 4)
    block = np.array([[0, 255, 255], [0, 255, 0]], np.uint8).repeat(2, 0).repeat(3, 1)
    np.testing.assert_array_equal(tf.io.decode_png(png).numpy()[..., 0], block)


def test_histograms_are_counted_beside_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for them but who needs them on disk, and then all are."""
    begun, may_end, buckets = threading.Event(), threading.Event(), tensorboard.buckets

    def slow(values: np.ndarray) -> np.ndarray:
        begun.set()
        assert may_end.wait(10)
        return buckets(values)

    monkeypatch.setattr(tensorboard, "buckets", slow)
    writer = AsyncWriter(TensorBoard(tmp_path))
    writer.histograms(1, {"w": np.arange(3.0)})
    assert begun.wait(10)
    writer.scalars(2, {"loss": 1.0})
    threading.Timer(0.2, may_end.set).start()
    writer.flush()
    assert may_end.is_set()
    assert sorted(load(tmp_path / "train").Tags()["tensors"]) == ["loss", "w"]
    writer.close()


@pytest.mark.parametrize("waits", ["flush", "close"])
def test_what_fails_in_the_thread_is_raised_where_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    def full(values: np.ndarray) -> np.ndarray:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard, "buckets", full)
    both = MultiWriter([AsyncWriter(TensorBoard(tmp_path))])
    both.histograms(1, {"w": np.arange(3.0)})
    with pytest.raises(RunError, match=r"^TensorBoard cannot write: \[Errno 28\] No space left on device\."):
        getattr(both, waits)()
    both.close()  # once is enough


def test_tensorboard_takes_images_with_nan(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.images(0, {"bad": np.full([1, 2, 2, 3], math.nan, np.float32)})
    writer.close()
    assert load(tmp_path / "train").Tags()["tensors"] == ["bad"]


def test_tensorboard_shows_graph_and_text(tmp_path: Path) -> None:
    @tf.function
    def double(x):
        return tf.multiply(x, 2.0, name="doubled")

    writer = TensorBoard(tmp_path)
    writer.graph(double.get_concrete_function(tf.TensorSpec([])).graph)
    writer.texts(3, {"config": "**seed** 0"})
    writer.flush()
    events = load(tmp_path / "train")
    writer.close()
    assert "doubled" in {
        node.name for node in tf.compat.v1.GraphDef.FromString(events.Graph().SerializeToString()).node
    }
    (event,) = events.Tensors("config")
    assert (event.step, tf.make_ndarray(event.tensor_proto).item()) == (3, b"**seed** 0")


def test_tensorboard_writes_what_tf_summary_writes(tmp_path: Path) -> None:
    """All but the times, and of a graph the step, which tf.summary takes from what was written before it."""
    picture = np.random.default_rng(0).random([1, 5, 4, 3]).astype(np.float32)
    graph = tf.function(lambda x: 2 * x).get_concrete_function(tf.TensorSpec([])).graph
    ours = TensorBoard(tmp_path)
    ours.images(7, {"inputs/image": picture})
    ours.texts(7, {"config": "**seed** 0"})
    ours.graph(graph)
    ours.scalars(7, {"loss": 0.5})
    ours.close()
    with tf.summary.create_file_writer(str(tmp_path / "reference")).as_default(7):
        tf.summary.image("inputs/image", picture)
        tf.summary.text("config", "**seed** 0")
        tf.summary.graph(graph)
        tf.summary.scalar("loss", 0.5)
    events: list[list[tf.compat.v1.Event]] = []
    for folder in ("train", "reference"):
        (path,) = (tmp_path / folder).iterdir()
        records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        events.append([tf.compat.v1.Event.FromString(record) for record in records])
    assert [len(found) for found in events] == [5, 5]
    for event, expected in zip(*events, strict=True):
        assert event.file_version == expected.file_version
        graphs = [tf.compat.v1.GraphDef.FromString(of.graph_def) for of in (event, expected)]
        assert graphs[0] == graphs[1]
        assert event.graph_def or event.step == expected.step
        for value, of in zip(event.summary.value, expected.summary.value, strict=True):
            assert (value.tag, value.metadata.plugin_data) == (of.tag, of.metadata.plugin_data)
            np.testing.assert_array_equal(tf.make_ndarray(value.tensor), tf.make_ndarray(of.tensor))


def test_who_looks_on_sees_the_row_that_was_written_last(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.scalars(1, {"loss": 0.5})
    writer.scalars(2, {"loss": 0.25})
    assert curve(tmp_path / "train", "loss") == [(1, 0.5), (2, 0.25)]
    writer.close()


def test_tensorboard_resumes_without_the_events_beyond_the_step(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, 0)
    writer.texts(0, {"config": "text"})
    for step in range(10, 60, 10):
        writer.scalars(step, {"loss": step / 10})
        writer.scalars(step, {"eval/test/loss": step / 5})
    writer.close()
    resumed = TensorBoard(tmp_path, 30)
    resumed.scalars(45, {"loss": 8.0})
    resumed.close()
    assert curve(tmp_path / "train", "loss") == [(10, 1.0), (20, 2.0), (30, 3.0), (45, 8.0)]
    assert curve(tmp_path / "eval" / "test", "loss") == [(10, 2.0), (20, 4.0), (30, 6.0)]
    assert [event.step for event in load(tmp_path / "train").Tensors("config")] == [0]


def test_tensorboard_starts_over_at_step_0_and_keeps_all_without_a_step(tmp_path: Path) -> None:
    for resume_step, kept in ((None, [1]), (None, [1, 2]), (0, [3])):
        writer = TensorBoard(tmp_path, resume_step)
        writer.scalars(kept[-1], {"loss": 1.0})
        writer.close()
        assert [step for step, _ in curve(tmp_path / "train", "loss")] == kept


@pytest.mark.parametrize("cut_bytes", [1, 5, 30])
def test_tensorboard_resumes_past_a_torn_event(tmp_path: Path, cut_bytes: int) -> None:
    writer = TensorBoard(tmp_path)
    for step in (10, 20, 30):
        writer.scalars(step, {"loss": float(step)})
    writer.close()
    (path,) = (tmp_path / "train").iterdir()
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    resumed = TensorBoard(tmp_path, 30)
    resumed.scalars(40, {"loss": 40.0})
    resumed.close()
    assert curve(tmp_path / "train", "loss") == [(10, 10.0), (20, 20.0), (40, 40.0)]


def test_tensorboard_leaves_complete_files_untouched(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.scalars(10, {"loss": 1.0})
    writer.close()
    (path,) = (tmp_path / "train").iterdir()
    before = path.stat().st_ino
    TensorBoard(tmp_path, 10).close()
    assert path.stat().st_ino == before


def test_an_error_of_tensorboard_is_one_of_the_disk(tmp_path: Path) -> None:
    """Its folder is gone, and a file is in the place."""
    writer = MultiWriter([TensorBoard(tmp_path / "tb")])
    (tmp_path / "tb").write_text("")
    with pytest.raises(RunError, match=r"^TensorBoard cannot write: .* Mend that and type the same command again\.$"):
        writer.scalars(1, {"loss": 1.0})


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (16, 4, 4)])
def test_image_grid_places_pictures_row_by_row(n: int, rows: int, columns: int) -> None:
    images = np.random.default_rng(n).integers(1, 255, [n, 2, 3, 4], np.uint8)
    grid = image_grid(images)
    assert grid.shape == (1, rows * 2, columns * 3, 4)
    assert grid.dtype == np.uint8
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        cell = grid[0, row * 2 : row * 2 + 2, column * 3 : column * 3 + 3]
        np.testing.assert_array_equal(cell, images[place] if place < n else np.zeros([2, 3, 4]))


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_a_flipped_bit_costs_the_event_that_it_is_in_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is: in a length, its checksum, an event or its checksum."""
    writer = TensorBoard(tmp_path)
    for step in (10, 20, 30, 40):
        writer.scalars(step, {"loss": float(step)})
    writer.close()
    (path,) = (tmp_path / "train").iterdir()
    intact = path.read_bytes()
    ends = np.cumsum([len(record) for record, _ in tensorboard._records(intact, True)])  # the version, then four events
    assert ends[-1] == len(intact)
    for place in range(0, len(intact), 13):
        path.write_bytes(flipped(intact, place, place % 8))
        caplog.clear()
        TensorBoard(tmp_path, 30).close()
        hit = int(np.searchsorted(ends, place, side="right"))
        assert [step for step, _ in curve(tmp_path / "train", "loss")] == [
            step for number, step in enumerate((10, 20, 30), 1) if number != hit
        ], place
        # The last length, if it is what is damaged, leads to no next record: all of the rest is one damaged event.
        ours = [record.message for record in caplog.records if record.name == "absl"]
        assert ours == [f"{path}: 1 damaged events are dropped"], place


def test_event_files_that_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "train"
    (folder / "a.tfevents.folder").mkdir(parents=True)
    os.mkfifo(folder / "b.tfevents.pipe")
    (folder / "c.tfevents.text").write_bytes(b"this is no event file, but a long line of text")
    TensorBoard(tmp_path, 30).close()
    assert [message.partition(" ")[2] for message in caplog.messages] == [
        "cannot be read (it is not a file): it is left alone",
        "cannot be read (it is not a file): it is left alone",
        "1 damaged events are dropped",
    ]

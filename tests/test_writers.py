"""Where numbers go: exact rows, exact lines, and what TensorBoard itself reads back."""

import io
import json
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from framework import writers
from framework.config import RunError
from framework.writers import Behind, Console, Jsonl, TensorBoard, Writers, buckets, image_grid


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorder:
    """A writer that keeps the calls it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *arguments: self.calls.append((name, *arguments))


def write_rows(path: Path, steps: range) -> None:
    writer = Jsonl(path)
    for step in steps:
        writer.scalars(step, {"loss": step / 10})
    writer.close()


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def load(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) by step: files are named by the second, so those of one second are read in any order."""
    return sorted((event.step, float(tf.make_ndarray(event.tensor_proto))) for event in load(folder).Tensors(tag))


# Jsonl


def test_jsonl_writes_one_object_a_row_in_the_order_of_the_values(tmp_path: Path) -> None:
    writer = Jsonl(tmp_path / "metrics.jsonl")
    writer.scalars(100, {"loss": 0.25, "learning_rate": np.float32(0.5), "skipped": 0})
    writer.scalars(np.int64(200), {"eval/test/loss": 2.0})
    expected = (
        '{"step": 100, "loss": 0.25, "learning_rate": 0.5, "skipped": 0.0}\n{"step": 200, "eval/test/loss": 2.0}\n'
    )
    assert (tmp_path / "metrics.jsonl").read_text() == expected  # before close: a reader sees whole rows at once
    writer.close()
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_jsonl_stays_valid_json_with_nan_and_infinity(tmp_path: Path) -> None:
    writer = Jsonl(tmp_path / "m.jsonl")
    writer.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32("nan"), "e": 1.0})
    writer.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1, "a": null, "b": null, "c": null, "d": null, "e": 1.0}\n'


def test_jsonl_ignores_what_is_no_row(tmp_path: Path) -> None:
    writer = Jsonl(tmp_path / "m.jsonl")
    writer.histograms(1, {"w": np.zeros(3)})
    writer.images(1, "x", np.zeros([1, 2, 2]))
    writer.graph(tf.Graph())
    writer.text(1, "config", "text")
    writer.close()
    assert (tmp_path / "m.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("resume_step", "kept"),
    [(None, [10, 20, 30, 40]), (0, []), (5, []), (20, [10, 20]), (25, [10, 20]), (40, [10, 20, 30, 40])],
)
def test_jsonl_resumes_without_the_rows_beyond_the_step(tmp_path: Path, resume_step: int | None, kept: list) -> None:
    path = tmp_path / "m.jsonl"
    write_rows(path, range(10, 50, 10))
    before = path.read_bytes().splitlines(keepends=True)
    writer = Jsonl(path, resume_step)
    assert path.read_bytes() == b"".join(before[: len(kept)])
    writer.scalars(50, {"loss": 1.0})
    writer.close()
    assert steps_of(path) == [*kept, 50]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]


def test_jsonl_keeps_all_rows_of_the_resume_step(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    writer = Jsonl(path)
    for step, name in ((10, "loss"), (20, "loss"), (20, "eval/test/loss"), (30, "loss")):
        writer.scalars(step, {name: 1.0})
    writer.close()
    Jsonl(path, 20).close()
    assert steps_of(path) == [10, 20, 20]


@pytest.mark.parametrize("torn", [b'{"step": 20, "lo', b'{"step": 20, "loss": 2.0}', b"\xff\xfe", b"\0\0\0\n", b"7\n"])
@pytest.mark.parametrize("resume_step", [None, 20])
def test_jsonl_drops_a_torn_last_line(tmp_path: Path, torn: bytes, resume_step: int | None) -> None:
    path = tmp_path / "m.jsonl"
    write_rows(path, range(10, 20, 10))
    complete = path.read_bytes()
    path.write_bytes(complete + torn)
    Jsonl(path, resume_step).close()
    assert path.read_bytes() == complete


def test_jsonl_truncates_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    write_rows(path, range(10, 50, 10))
    before = path.read_bytes()

    def crash(source: Path, target: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("framework.writers.os.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        Jsonl(path, 20)
    assert path.read_bytes() == before


def test_jsonl_flush_syncs_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("framework.writers.os.fsync", synced.append)
    writer = Jsonl(tmp_path / "m.jsonl")
    writer.scalars(1, {"loss": 1.0})
    assert synced == []
    writer.flush()
    assert len(synced) == 1
    writer.close()


# TensorBoard


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
    with Writers([Jsonl(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path / "tensorboard")]) as writer:
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
    writer.images(0, "inputs/image", images)
    writer.images(0, "inputs/none", images[:0])
    writer.close()
    events = load(tmp_path / "train")
    assert events.Tags()["tensors"] == ["inputs/image"]
    width, height, png = tf.make_ndarray(events.Tensors("inputs/image")[0].tensor_proto)
    assert (int(width), int(height)) == (9, 4)
    block = np.array([[0, 255, 255], [0, 255, 0]], np.uint8).repeat(2, 0).repeat(3, 1)
    np.testing.assert_array_equal(tf.io.decode_png(png).numpy()[..., 0], block)


def test_histograms_are_counted_beside_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for them but who needs them on disk, and then all are."""
    begun, may_end, buckets = threading.Event(), threading.Event(), writers.buckets

    def slow(values: np.ndarray) -> np.ndarray:
        begun.set()
        assert may_end.wait(10)
        return buckets(values)

    monkeypatch.setattr(writers, "buckets", slow)
    writer = Behind(TensorBoard(tmp_path))
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

    monkeypatch.setattr(writers, "buckets", full)
    both = Writers([Behind(TensorBoard(tmp_path))])
    both.histograms(1, {"w": np.arange(3.0)})
    with pytest.raises(RunError, match=r"^TensorBoard cannot write: \[Errno 28\] No space left on device\."):
        getattr(both, waits)()
    both.close()  # once is enough


def test_tensorboard_takes_images_with_nan(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path)
    writer.images(0, "bad", np.full([1, 2, 2, 3], math.nan, np.float32))
    writer.close()
    assert load(tmp_path / "train").Tags()["tensors"] == ["bad"]


def test_tensorboard_shows_graph_and_text(tmp_path: Path) -> None:
    @tf.function
    def double(x):
        return tf.multiply(x, 2.0, name="doubled")

    writer = TensorBoard(tmp_path)
    writer.graph(double.get_concrete_function(tf.TensorSpec([])).graph)
    writer.text(3, "config", "**seed** 0")
    writer.flush()
    events = load(tmp_path / "train")
    writer.close()
    assert "doubled" in {
        node.name for node in tf.compat.v1.GraphDef.FromString(events.Graph().SerializeToString()).node
    }
    (event,) = events.Tensors("config")
    assert (event.step, tf.make_ndarray(event.tensor_proto).item()) == (3, b"**seed** 0")


def test_tensorboard_resumes_without_the_events_beyond_the_step(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, 0)
    writer.text(0, "config", "text")
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


# Console


def test_console_prints_exact_lines_where_there_is_no_terminal() -> None:
    stream, clock = io.StringIO(), Clock()
    writer = Console(2344, 0, stream, clock)
    values = {"loss": 0.21341, "accuracy": 0.934, "learning_rate": 1e-3, "examples_per_second": 12345.4}
    writer.scalars(200, values)
    clock.now += 2.0  # 100 steps a second
    writer.scalars(400, values)
    writer.scalars(469, {"eval/test/loss": 0.1, "eval/test/accuracy": 0.97})
    clock.now += 3598.0  # 1,000 steps in 3,600 seconds
    writer.scalars(1200, {"loss": math.nan, "other": math.inf, "examples_per_second": math.nan})
    writer.close()
    row = "loss 0.2134  accuracy 0.934  learning_rate 1.00e-03  12,345 examples/s"
    assert stream.getvalue().splitlines() == [
        f"step 200/2344  {row}",
        f"step 400/2344  {row}  eta 0:00:19",
        "step 469/2344  eval/test/loss 0.1  eval/test/accuracy 0.97",
        "step 1200/2344  loss nan  other inf  nan examples/s  eta 1:08:38",
    ]


def test_console_has_no_time_left_at_the_end_of_a_resumed_run() -> None:
    stream, clock = io.StringIO(), Clock()
    writer = Console(500, 300, stream, clock)
    writer.scalars(400, {"loss": 1.0})
    clock.now += 5.0
    writer.scalars(500, {"loss": 0.5})
    writer.scalars(500, {"loss": 0.5})
    assert stream.getvalue().splitlines() == [
        "step 400/500  loss 1",
        "step 500/500  loss 0.5  eta 0:00:00",
        "step 500/500  loss 0.5  eta 0:00:00",
    ]


def test_console_shows_a_bar_in_a_terminal() -> None:
    stream = Terminal()
    writer = Console(400, 100, stream)
    writer.scalars(200, {"loss": 0.5, "learning_rate": 1e-3})
    writer.scalars(200, {"eval/test/loss": 0.25})
    writer.scalars(400, {"loss": math.nan})
    writer.close()
    drawn = stream.getvalue().replace("\n", "\r").split("\r")
    assert any(" 100/400 [" in text for text in drawn)
    assert any(
        " 200/400 [" in text and text.rstrip(" ]").endswith("loss 0.5  learning_rate 1.00e-03") for text in drawn
    )
    assert "step 200/400  eval/test/loss 0.25" in drawn
    assert any("100%|" in text and " 400/400 [" in text and "loss nan" in text for text in drawn)


# Fan-out and grid


def test_writers_hand_every_call_to_each_and_close_at_the_end() -> None:
    first, second = Recorder(), Recorder()
    graph, arrays, images = tf.Graph(), {"w": np.zeros(2)}, np.zeros([1, 2, 2])
    with Writers([first, second]) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.histograms(2, arrays)
        writer.images(3, "x", images)
        writer.graph(graph)
        writer.text(4, "config", "text")
        writer.flush()
    assert first.calls == second.calls
    assert first.calls == [
        ("scalars", 1, {"loss": 1.0}),
        ("histograms", 2, arrays),
        ("images", 3, "x", images),
        ("graph", graph),
        ("text", 4, "config", "text"),
        ("flush",),
        ("close",),
    ]


def test_writers_close_when_training_fails(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError), Writers([Jsonl(tmp_path / "m.jsonl")]) as writer:
        writer.scalars(1, {"loss": math.nan})
        raise ArithmeticError
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1, "loss": null}\n'


class Full(Jsonl):
    """Its rows go to the device that is always full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file.close()
        self._file = Path("/dev/full").open("a", buffering=1)  # noqa: SIM115


def test_a_full_disk_stops_or_is_said_and_the_other_writers_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    with (
        pytest.raises(RunError) as caught,
        Writers([Full(tmp_path / "m.jsonl"), recorder]) as writer,
    ):
        writer.scalars(1, {"loss": 1.0})
    assert str(caught.value) == (
        "Full cannot write: [Errno 28] No space left on device. Mend that and type the same command again."
    )
    caplog.clear()
    with Writers([Full(tmp_path / "m.jsonl"), recorder], "continue") as writer:
        writer.scalars(1, {"loss": 1.0})
    assert recorder.calls == [("close",), ("scalars", 1, {"loss": 1.0}), ("close",)]
    said = ["Full cannot write: [Errno 28] No space left on device."] * 2  # the row, and what is left of it at the end
    assert [record.getMessage() for record in caplog.records] == said


def test_an_error_of_tensorboard_is_one_of_the_disk(tmp_path: Path) -> None:
    """Its folder is gone, and a file is in the place."""
    writer = Writers([TensorBoard(tmp_path / "tb")])
    (tmp_path / "tb").write_text("")
    with pytest.raises(RunError, match=r"^TensorBoard cannot write: .* Mend that and type the same command again\.$"):
        writer.scalars(1, {"loss": 1.0})


# Behind


class Slow(Recorder):
    """Takes calls when told, and fails at a step."""

    name = "Slow"

    def __init__(self, failing: int = -1) -> None:
        super().__init__()
        self.gate, self.failing, self.threads = threading.Event(), failing, set()

    def scalars(self, step: int, values: dict) -> None:
        assert self.gate.wait(30)
        self.threads.add(threading.current_thread())
        if step == self.failing:
            raise OSError(f"no room at {step}")
        self.calls.append(("scalars", step, values))


def test_calls_come_in_order_in_another_thread_and_flush_waits_for_them() -> None:
    slow = Slow()
    writer = Behind(slow)
    writer.scalars(1, {"a": 1.0})
    writer.histograms(1, {})
    writer.text(2, "x", "y")
    assert slow.calls == []
    slow.gate.set()
    writer.flush()
    assert slow.calls == [("scalars", 1, {"a": 1.0}), ("histograms", 1, {}), ("text", 2, "x", "y"), ("flush",)]
    writer.scalars(3, {})
    writer.close()
    assert slow.calls[4:] == [("scalars", 3, {}), ("close",)]
    assert threading.current_thread() not in slow.threads and not any(t.is_alive() for t in slow.threads)
    writer.flush()
    writer.close()


def test_who_is_far_behind_is_waited_for() -> None:
    slow, taken = Slow(), []
    writer = Behind(slow)

    def hand_over() -> None:
        for step in range(100):
            writer.scalars(step, {})
            taken.append(step)

    thread = threading.Thread(target=hand_over)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and len(taken) < 20
    slow.gate.set()
    thread.join(30)
    writer.close()
    assert [call[1] for call in slow.calls[:-1]] == list(range(100))


@pytest.mark.parametrize("at", ["scalars", "flush", "close"])
def test_an_error_is_raised_by_what_comes_next(at: str) -> None:
    slow = Slow(failing=1)
    slow.gate.set()
    behind = Behind(slow)
    writer = Writers([behind])
    writer.scalars(1, {})
    behind._calls.join()  # until it has failed
    with pytest.raises(RunError, match=r"^Slow cannot write: no room at 1"):
        writer.scalars(2, {}) if at == "scalars" else getattr(writer, at)()
    writer.scalars(3, {})  # what is raised is raised once
    writer.close()
    assert slow.calls[-2:] == [("scalars", 3, {}), ("close",)]


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


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_rows_of_a_file_that_is_gone_are_not_lost_in_silence(tmp_path, how):
    path = tmp_path / "metrics.jsonl"
    writer = Jsonl(path)
    writer.scalars(1, {"loss": 1.0})
    writer.flush()
    path.unlink()
    if how == "replaced":
        path.write_text("")
    with pytest.raises(OSError) as error:
        writer.flush()
    assert str(error.value) == f"[Errno 5] deleted or replaced while the run was writing it: '{path}'"
    with pytest.raises(OSError):
        writer.close()

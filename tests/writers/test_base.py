"""Where numbers go: exact rows, exact lines, and all of them to every writer."""

import io
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from framework.config import RunError
from framework.writers import AsyncWriter, Console, Jsonl, MultiWriter


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
    writer.images(1, {"x": np.zeros([1, 2, 2])})
    writer.graph(tf.Graph())
    writer.texts(1, {"config": "text"})
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

    monkeypatch.setattr("framework.writers.jsonl.os.replace", crash)
    with pytest.raises(OSError, match="power cut"):
        Jsonl(path, 20)
    assert path.read_bytes() == before


def test_jsonl_flush_syncs_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("framework.writers.jsonl.os.fsync", synced.append)
    writer = Jsonl(tmp_path / "m.jsonl")
    writer.scalars(1, {"loss": 1.0})
    assert synced == []
    writer.flush()
    assert len(synced) == 1
    writer.close()


# Console


ROW = {"loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 0.8, "skipped": 0.0, "empty_terms": 0.0, "accuracy": 0.9}
ROW |= {"parameter_norm": 3.0, "mean/loss": 0.21341, "mean/accuracy": 0.934, "examples_per_second": 12345.4}


def test_console_prints_exact_lines_where_there_is_no_terminal() -> None:
    """Means instead of the step's own numbers; counts that are not zero alone; what there is room for."""
    stream, clock = io.StringIO(), Clock()
    writer = Console(2344, 0, stream, clock, steps_per_epoch=468.75)
    writer.scalars(200, ROW)
    clock.now += 2.0  # 100 steps a second
    writer.scalars(400, ROW)
    writer.scalars(469, {"eval/test/loss": 0.1, "eval/test/accuracy": 0.97})
    clock.now += 3598.0  # 1,000 steps in 3,600 seconds
    bad = {"mean/loss": math.nan, "mean/other": math.inf, "examples_per_second": math.nan, "skipped": 2.0}
    writer.scalars(1200, {**bad, "learning_rate": 1e-3})
    clock.now += 10 * 86400
    writer.scalars(1201, {"loss": 2.0, "accuracy": 0.5})
    writer.close()
    assert stream.getvalue().splitlines() == [
        "step 200/2344  epoch 0.43  loss 0.2134  accuracy 0.934  12,345 examples/s",
        "step 400/2344  epoch 0.85  loss 0.2134  accuracy 0.934  eta 0:00:19",
        "step 469/2344  eval/test/loss 0.1  eval/test/accuracy 0.97",
        "step 1200/2344  epoch 2.56  loss nan  other inf  skipped 2  eta 1:08:38",
        "step 1201/2344  epoch 2.56  loss 2  accuracy 0.5  eta 11d 11:11",
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


def test_names_that_are_too_long_are_cut_and_the_last_metrics_counted() -> None:
    stream, clock = io.StringIO(), Clock()
    writer = Console(23440, 0, stream, clock, steps_per_epoch=469)
    writer.scalars(200, ROW)
    clock.now += 2.0
    names = [f"mean/a_very_long_metric_name_{number}" for number in range(5)]
    writer.scalars(400, {"mean/loss": 0.25, **dict.fromkeys(names[:1], -1.2345e-5)})
    writer.scalars(400, {"mean/loss": 0.25, **dict.fromkeys(names[:2], 0.5)})
    writer.scalars(400, {"mean/loss": 0.25, **dict.fromkeys(names, 0.5), "skipped": 12.0})
    writer.scalars(400, {"eval/test/" + "x" * 90: 0.5, "eval/test/accuracy": 0.97, "eval/test/other": 0.25})
    assert stream.getvalue().splitlines()[1:] == [
        "step 400/23440  epoch 0.85  loss 0.25  a_very_long_metr… -1.234e-05  eta 0:03:50",
        "step 400/23440  epoch 0.85  loss 0.25  a_very_l… 0.5  a_very_l… 0.5  eta 0:03:50",
        "step 400/23440  epoch 0.85  loss 0.25  a_very_… 0.5  +4  skipped 12  eta 0:03:50",
        f"step 400/23440  eval/test/{'x' * 47}… 0.5",
        "step 400/23440  eval/test/accuracy 0.97  eval/test/other 0.25",
    ]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_no_line_has_more_than_80_columns(kind: type) -> None:
    """Loss and time left are always there; numbers, names and counts of any size."""
    draw, stream, clock = np.random.default_rng(0), kind(), Clock()
    writer = Console(10**9, 0, stream, clock, steps_per_epoch=123.4)
    writer.scalars(1, {"mean/loss": 1.0})
    for step in range(2, 200):
        clock.now += float(draw.uniform(0, 10))
        counts = draw.integers(0, 40, 20)
        values = {f"mean/{'n' * count}{place}": float(draw.normal() * 10.0 ** draw.integers(-20, 20))
                  for place, count in enumerate(counts[: draw.integers(0, 20)])}  # fmt: skip
        values |= {"mean/loss": float(draw.normal()), "skipped": float(draw.integers(0, 2)), "mean/loss/ce": 1.0}
        writer.scalars(step * 10**6, {**values, "learning_rate": 1e-3, "examples_per_second": 1e5})
        writer.scalars(step * 10**6, {f"eval/test/{name[5:]}": value for name, value in values.items()})
    writer.close()
    lines = [line for line in stream.getvalue().replace("\r", "\n").split("\n") if line.strip()]
    assert max(map(len, lines)) <= 80
    shown = [line for line in lines if "epoch" in line and " eta " in line]
    assert len(shown) >= 198 and all(" loss " in line for line in shown)
    assert not any(" skipped 0" in line for line in lines)


def test_console_shows_a_bar_in_a_terminal() -> None:
    stream, clock = Terminal(), Clock()
    writer = Console(400, 100, stream, clock, steps_per_epoch=100)
    writer.scalars(200, ROW)
    writer.scalars(200, {"eval/test/loss": 0.25})
    clock.now += 10.0
    writer.scalars(300, {"loss": math.nan})
    writer.close()
    drawn = [text.rstrip() for text in stream.getvalue().replace("\n", "\r").split("\r")]
    assert any(text.startswith(" 25%|") for text in drawn)
    assert any(text.startswith(" 50%|") and text.endswith("| step 200/400  epoch 2.00  loss 0.2134  accuracy 0.934")
               for text in drawn)  # fmt: skip
    assert "step 200/400  eval/test/loss 0.25" in drawn
    assert any(text.startswith(" 75%|") and text.endswith("| step 300/400  epoch 3.00  loss nan  eta 0:00:10")
               for text in drawn)  # fmt: skip


# Fan-out


def test_writers_hand_every_call_to_each_and_close_at_the_end() -> None:
    first, second = Recorder(), Recorder()
    graph, arrays, images = tf.Graph(), {"w": np.zeros(2)}, np.zeros([1, 2, 2])
    with MultiWriter([first, second]) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.histograms(2, arrays)
        writer.images(3, {"x": images})
        writer.graph(graph)
        writer.texts(4, {"config": "text"})
        writer.flush()
    assert first.calls == second.calls
    assert first.calls == [
        ("scalars", 1, {"loss": 1.0}),
        ("histograms", 2, arrays),
        ("images", 3, {"x": images}),
        ("graph", graph),
        ("texts", 4, {"config": "text"}),
        ("flush",),
        ("close",),
    ]


def test_writers_close_when_training_fails(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError), MultiWriter([Jsonl(tmp_path / "m.jsonl")]) as writer:
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
        MultiWriter([Full(tmp_path / "m.jsonl"), recorder]) as writer,
    ):
        writer.scalars(1, {"loss": 1.0})
    assert str(caught.value) == (
        "Full cannot write: [Errno 28] No space left on device. Mend that and type the same command again."
    )
    caplog.clear()
    with MultiWriter([Full(tmp_path / "m.jsonl"), recorder], "continue") as writer:
        writer.scalars(1, {"loss": 1.0})
    assert recorder.calls == [("close",), ("scalars", 1, {"loss": 1.0}), ("close",)]
    said = ["Full cannot write: [Errno 28] No space left on device."] * 2  # the row, and what is left of it at the end
    assert [record.getMessage() for record in caplog.records] == said


# AsyncWriter


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
    writer = AsyncWriter(slow)
    writer.scalars(1, {"a": 1.0})
    writer.histograms(1, {})
    writer.texts(2, {"x": "y"})
    assert slow.calls == []
    slow.gate.set()
    writer.flush()
    assert slow.calls == [("scalars", 1, {"a": 1.0}), ("histograms", 1, {}), ("texts", 2, {"x": "y"}), ("flush",)]
    writer.scalars(3, {})
    writer.close()
    assert slow.calls[4:] == [("scalars", 3, {}), ("close",)]
    assert threading.current_thread() not in slow.threads and not any(t.is_alive() for t in slow.threads)
    writer.flush()
    writer.close()


def test_who_is_far_behind_is_waited_for() -> None:
    slow, taken = Slow(), []
    writer = AsyncWriter(slow)

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
    behind = AsyncWriter(slow)
    writer = MultiWriter([behind])
    writer.scalars(1, {})
    behind._calls.join()  # until it has failed
    with pytest.raises(RunError, match=r"^Slow cannot write: no room at 1"):
        writer.scalars(2, {}) if at == "scalars" else getattr(writer, at)()
    writer.scalars(3, {})  # what is raised is raised once
    writer.close()
    assert slow.calls[-2:] == [("scalars", 3, {}), ("close",)]


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


def test_damaged_rows_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is whole stays, byte for byte; a link to the file stays a link."""
    rows = [f'{{"step": {step}, "loss": 0.5}}\n' for step in (1, 2, 3, 4)]
    path, other = tmp_path / "m.jsonl", tmp_path / "disk.jsonl"
    path.symlink_to(other)
    other.write_bytes((rows[0] + '{"step": 2, "lo\xff\n' + rows[2] + rows[3].replace("4", "3,")).encode("latin-1"))
    Jsonl(path, 3).close()
    assert other.read_text() == rows[0] + rows[2] and path.is_symlink()
    assert caplog.messages == [f"{path}: 2 of 4 lines are damaged and left out"]


def test_rows_that_cannot_be_read_are_not_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n')

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(RunError, match=r"m\.jsonl cannot be read: Permission denied\. Mend that"):
            Jsonl(path, 0)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'

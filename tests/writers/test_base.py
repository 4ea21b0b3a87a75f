"""framework/writers/base.py: all numbers reach every writer, in order and in another thread."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from framework.errors import MachineError
from framework.writers import AsyncWriter, Jsonl, MultiWriter
from tests.writers.recorded import Recorder


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
        pytest.raises(MachineError) as caught,
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
    with pytest.raises(MachineError, match=r"^Slow cannot write: no room at 1"):
        writer.scalars(2, {}) if at == "scalars" else getattr(writer, at)()
    writer.scalars(3, {})  # what is raised is raised once
    writer.close()
    assert slow.calls[-2:] == [("scalars", 3, {}), ("close",)]

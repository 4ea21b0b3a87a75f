"""Which batches are resident and which are streamed, and how far ahead those are read."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from framework.data import batches as module
from framework.data.batches import Resident, Streamed, make_batches
from framework.data.sources import Source
from tests.data.numbered import make_config, make_order, make_source, order_at


def test_a_memory_mapped_source_is_streamed_without_being_read(tmp_path):
    statm = Path("/proc/self/statm")

    def resident_bytes():
        return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0  # not to be seen: the rest still holds

    size, width = 2200, 2**20
    pictures = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(size, width))  # sparse: 2.2 GB that take no space
    batches = make_batches(Source({"x": pictures, "label": np.arange(size)}, "map"), make_config(), training=True)
    assert isinstance(batches, Streamed)  # more than data.resident_limit_mb
    _, (wanted,), _ = order_at(make_order((size,), 4, seed=5), [11])
    pictures[wanted, 0] = [1, 2, 3, 4]
    before = resident_bytes()
    batch = batches.at(11)
    assert batch["label"].numpy().tolist() == wanted.tolist()
    assert batch["x"].numpy()[:, 0].tolist() == [1, 2, 3, 4]
    assert batch["x"].shape == (4, width)
    assert resident_bytes() - before < 200 * 2**20


@pytest.mark.parametrize(
    ("placement", "limit_mb", "kind"),
    [("auto", 1, Resident), ("auto", 0, Streamed), ("resident", 0, Resident), ("stream", 1, Streamed)],
)
def test_placement_auto_goes_by_size(placement, limit_mb, kind):
    config = make_config(data__placement=placement, data__resident_limit_mb=limit_mb)
    assert type(make_batches(make_source(), config, training=True)) is kind


def test_placement_auto_counts_all_sources_and_the_limit_is_inclusive():
    half = Source({"x": np.zeros(2**19, np.uint8)}, "half")
    config = make_config(data__resident_limit_mb=1)
    assert type(make_batches([(half, 1), (half, 1)], config, training=True)) is Resident
    over = Source({"x": np.zeros(2**19 + 1, np.uint8)}, "over")
    assert type(make_batches([(half, 1), (over, 1)], config, training=True)) is Streamed


@pytest.mark.parametrize(
    ("memory", "limit_mb", "why"),
    [
        (4 * 2**20, 1, "resident"),
        (4 * 2**20 - 1, 1, "streamed: more than a quarter of the 4 MB of memory"),
        (None, 1, "resident"),  # nothing tells
        (2**40, 0, "streamed: more than data.resident_limit_mb=0"),
    ],
)
def test_placement_auto_leaves_memory_for_a_copy_and_says_why(memory, limit_mb, why, monkeypatch, caplog):
    monkeypatch.setattr(module, "host_memory", lambda: memory)
    caplog.set_level("INFO")
    config = make_config(data__resident_limit_mb=limit_mb)
    batches = make_batches(Source({"x": np.zeros(2**20, np.uint8)}, "made up"), config, training=True)
    assert type(batches) is (Resident if why == "resident" else Streamed)
    assert caplog.messages == [f"data.placement=auto: made up, 1 MB, {why}"]


def test_what_is_asked_for_is_not_weighed(monkeypatch, caplog):
    monkeypatch.setattr(module, "host_memory", lambda: 0)
    caplog.set_level("INFO")
    assert type(make_batches(make_source(), make_config(data__placement="resident"), training=True)) is Resident
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("megabytes", "block_steps", "prefetch", "ahead"),
    [(1, 100, 8, 64), (1, 20, 8, 20), (1, 20, 32, 32), (16, 100, 8, 8), (0.0625, 100, 8, 100)],
)
def test_of_small_batches_those_of_a_block_are_read_ahead(megabytes, block_steps, prefetch, ahead):
    """64 MB of them; else as many as `data.prefetch_batches` says."""
    pictures = np.broadcast_to(np.uint8(0), (40, int(megabytes * 2**18)))  # no memory; four of them are a batch
    config = make_config(data__placement="stream", data__prefetch_batches=prefetch, train__block_steps=block_steps)
    batches = make_batches(Source({"x": pictures}, "made up"), config, training=True)
    assert batches.ahead == ahead


def test_streamed_batches_are_read_while_those_before_are_trained(monkeypatch):
    """Once a plan is there, all batches of the next one are read without anybody asking."""
    read, wanted = set(), set(range(6, 12))

    class Recorded(module.RetryingReader):
        def read(self, source, index, step):
            read.add(step)
            return super().read(source, index, step)

    monkeypatch.setattr(module, "RetryingReader", Recorded)
    monkeypatch.setattr(module, "_READ_AHEAD_BYTES", 0)
    config = make_config(data__placement="stream", data__prefetch_batches=6)
    batches = make_batches(make_source(), config, training=True)
    assert batches.ahead == 6
    batches.plan(0, 6, 6)
    deadline = time.monotonic() + 60
    while not wanted <= read and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wanted <= read
    batches._close()


def test_streamed_batches_are_read_side_by_side_under_determinism():
    """tf.data runs a stateful map one by one under op determinism; both readers must be inside at once."""
    both = threading.Barrier(2, timeout=20)

    class Meeting(Source):
        def take(self, indices):
            if len(indices) > 1:  # not the look at one example when the batches are made
                both.wait()
            return super().take(indices)

    tf.config.experimental.enable_op_determinism()
    source = Meeting({"x": np.arange(64)}, "meeting")
    settings = {"data__placement": "stream", "data__parallel_calls": 2, "data__batch_size": 8}
    made = make_batches(source, make_config(**settings), training=True)
    assert made.plan(0, 4, 4)["x"].shape == (4, 8)

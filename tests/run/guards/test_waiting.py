"""framework/run/guards/waiting.py: the time that training waits for streamed batches, measured, shown, warned of."""

import json
import logging
import time

import pytest

from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.run import loop
from framework.run.guards import waiting
from framework.run.progress import Progress, Spent
from tests import small

SECONDS = 0.05  # of a read
CLOSED: list[str] = []


class Slow(Source):
    def take(self, indices):
        time.sleep(SECONDS * (len(indices) > 1))
        return super().take(indices)

    def close(self):
        CLOSED.append(self.origin)


def make_data(kind):
    def make(cfg, split):
        source = small.examples({}, cfg.seed)
        source = kind(source.arrays, "points") if split == "train" else source
        return make_batches(source, cfg, training=split == "train")

    return {"make_data": make}


# One batch is read at a time, and one ahead.
SETTINGS = {
    "data.placement": "stream",
    "data.parallel_calls": 1,
    "data.prefetch_batches": 1,
    "train.block_steps": 4,
    "train.compile": "graph",
    "train.duration": "12 steps",
    "log.every": "4 steps",
}


def rows(run):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_a_block_waits_as_long_as_its_batches_take(tmp_path):
    run = small.build(tmp_path / "slow", functions=make_data(Slow), **SETTINGS)
    assert run.train_block(4).waited >= 4 * SECONDS  # opening the stream comes on top
    assert run.train_block(4).waited <= 6 * SECONDS  # some of its batches were read before


def test_a_run_reports_the_share_and_warns_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(waiting, "_SECONDS", 0.1)
    run = small.build(tmp_path / "slow", functions=make_data(Slow), **SETTINGS)
    CLOSED.clear()
    with caplog.at_level(logging.WARNING, "absl"):
        result = loop.train(run)
    assert CLOSED == ["points"]
    seconds = 11 * run.data.batch_size / result["examples_per_second"]  # the first step compiles and does not count
    # At most 4 + 1 batches were read while the first step was compiled.
    assert seconds >= 6 * SECONDS
    assert 0.3 < result["data_wait"] <= 1
    assert [row["step"] for row in rows(run)] == [4, 8, 12]
    shares = [row["data_wait"] for row in rows(run)]
    speeds = [row["examples_per_second"] for row in rows(run)]
    lengths = [steps * run.data.batch_size / speed for steps, speed in zip((3, 4, 4), speeds, strict=True)]
    waited = sum(share * length for share, length in zip(shares, lengths, strict=True))
    assert waited == pytest.approx(result["data_wait"] * seconds, rel=1e-6)
    told = [message for message in caplog.messages if message.startswith("training waited for data")]
    assert len(told) == 1
    assert told[0].endswith(
        " % of its time. Prepare more batches at a time (--config.data.parallel_calls=2), keep the examples on the"
        " device if they fit (--config.data.placement=resident), or do less in `take` and `transform`: decode once, and"
        " store the result."
    )


@pytest.mark.parametrize(
    ("spent", "line"),
    [
        (Spent(100, 10.0, 0.51), "training waited for data 5 % of its time. Make `plan` of the batches faster."),
        (Spent(100, 10.0, 3.4), "training waited for data 34 % of its time. Make `plan` of the batches faster."),
        (Spent(100, 10.0, 0.5), ""),
        (Spent(100, 1.9, 1.9), ""),  # too early to tell
        (Spent(), ""),
    ],
)
def test_the_warning_comes_above_five_percent_after_two_seconds(spent, line, monkeypatch):
    class Run:
        data = None

    progress = Progress(batch_size=4, started=0.0, note={}, modes={})
    monkeypatch.setattr(Progress, "total", spent)
    assert waiting.Waiting(Run, progress).look(None) == line

"""A source that fails: tried again, given up on with what was said, and nothing lost."""

import dataclasses
import json
import logging
import threading
import time

import numpy as np
import pytest

import launch
from framework.config import DataError, base_config
from framework.data.batches import make_batches
from framework.data.reading import RetryingReader
from framework.data.sources import Source
from framework.run import loop
from framework.run.progress import TIMES
from tests import small


@dataclasses.dataclass(frozen=True, eq=False)
class Failing(Source):
    """Raises what `errors` still holds for a set of examples that has `example` in it; the look at one is let pass."""

    errors: list = dataclasses.field(default_factory=list)
    example: int = 0

    def take(self, indices):
        if len(indices) > 1 and self.example in indices and self.errors:
            raise self.errors.pop(0)
        return super().take(indices)


def failing(*errors, example=0, size=40):
    return Failing({"x": np.arange(size, dtype=np.int64)}, "north", errors=list(errors), example=example)


def streamed(source, **settings):
    config = base_config()
    config.data.update({"placement": "stream", "batch_size": 4, "shuffle": False, "retry_seconds": 0.0, **settings})
    return make_batches(source, config, training=True)


def test_waits_double_and_each_retry_is_logged(caplog):
    waits = []
    source = failing(OSError("a"), TimeoutError("b"), ConnectionError("c"))
    with caplog.at_level(logging.WARNING, "absl"):
        rows = RetryingReader(3, 0.5, waits.append).read(source, np.array([0, 7]), 12)
    assert rows["x"].tolist() == [0, 7]
    assert waits == [0.5, 1.0, 2.0]
    assert [record.getMessage() for record in caplog.records] == [
        "batch 12 of 'north' could not be read: a; retry 1 of 3 in 0.5 s",
        "batch 12 of 'north' could not be read: b; retry 2 of 3 in 1 s",
        "batch 12 of 'north' could not be read: c; retry 3 of 3 in 2 s",
    ]


@pytest.mark.parametrize("retries", [0, 2])
def test_gives_up_after_the_last_retry(retries):
    waits, error = [], OSError(5, "Input/output error")
    reader = RetryingReader(retries, 1.0, waits.append)
    with pytest.raises(DataError) as caught:
        reader.read(failing(*[error] * 9), np.array([0, 7]), 12)
    said = f"batch 12 of 'north' could not be read in {retries + 1} tries: OSError: [Errno 5] Input/output error."
    assert str(caught.value) == said
    assert caught.value.__cause__ is error
    assert len(waits) == retries
    assert reader.failure() is caught.value


def test_a_mistake_is_not_tried_again():
    waits, mistake = [], KeyError("x")
    with pytest.raises(KeyError) as caught:
        RetryingReader(3, 1.0, waits.append).read(failing(mistake), np.array([0, 7]), 12)
    assert caught.value is mistake
    assert waits == []


def test_stop_ends_a_wait_at_once():
    reader = RetryingReader(3, 60.0)
    threading.Timer(0.1, reader.stop).start()
    start = time.monotonic()
    with pytest.raises(DataError, match="in 2 tries"):
        reader.read(failing(*[OSError("gone")] * 9), np.array([0, 7]), 1)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("calls", [1, 3])
def test_streamed_batches_read_through_a_passing_failure(calls):
    source = failing(*[OSError("busy")] * 3, example=9)
    found = streamed(source, parallel_calls=calls).plan(0, 5, 5)["x"].numpy()
    assert found.tolist() == np.arange(20).reshape(5, 4).tolist()
    assert source.errors == []


@pytest.mark.parametrize("calls", [1, 3])
def test_the_block_with_the_failing_batch_raises_and_the_one_before_does_not(calls):
    """Batches are read ahead: the failure of a later one must not spoil what comes before it."""
    error = OSError(5, "Input/output error")
    batches = streamed(failing(*[error] * 2, example=9), parallel_calls=calls, retries=1)
    assert batches.plan(0, 2, 2)["x"].numpy().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError) as caught:
        batches.plan(2, 2, 2)
    assert str(caught.value) == (
        "batch 2 of 'north' could not be read in 2 tries: OSError: [Errno 5] Input/output error."
    )
    # The source works again: the same object goes on.
    assert batches.plan(2, 2, 2)["x"].numpy().tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_of_several_that_fail_the_first_is_named():
    class Gone(Source):
        def take(self, indices):
            if len(indices) > 1 and indices[0] >= 8:
                time.sleep(0.3 if indices[0] == 8 else 0.0)  # those after it have failed long before
                raise OSError("gone")
            return super().take(indices)

    batches = streamed(Gone({"x": np.arange(40)}, "north"), parallel_calls=4, retries=0)
    with pytest.raises(DataError, match=r"^batch 2 of 'north' could not be read in 1 tries: OSError: gone.$"):
        batches.plan(0, 5, 5)


def test_a_mistake_in_a_source_is_raised_as_it_is():
    mistake = ZeroDivisionError("of mine")
    batches = streamed(failing(mistake))
    with pytest.raises(ZeroDivisionError) as caught:
        batches.plan(0, 1, 1)
    assert caught.value is mistake


def test_at_says_the_same():
    with pytest.raises(DataError, match=r"^batch 2 of 'north' could not be read in 1 tries: OSError: gone.$"):
        streamed(failing(OSError("gone"), example=9), retries=0).at(2)


def test_of_a_mixture_the_failing_source_is_named():
    parts = [(failing(), 1), (failing(OSError("gone"), example=1), 3)]
    config = base_config()
    config.data.update({"placement": "stream", "batch_size": 40, "retries": 0})
    batches = make_batches(
        [(parts[0][0], 1), (dataclasses.replace(parts[1][0], origin="south"), 1)], config, training=True
    )
    with pytest.raises(DataError, match=r"of 'south' could not be read in 1 tries: OSError: gone."):
        batches.plan(0, 3, 3)


# --- in a run ---------------------------------------------------------------------------------------------------------


def functions(errors, where=None):
    """make_data of the small experiment, streamed, whose reads of `where`'s examples raise."""

    def make_data(cfg, split):
        source = small.examples({}, cfg.seed)
        if split == "train":
            source = Failing(source.arrays, "north", errors=errors, example=where)
        return make_batches(source, cfg, training=split == "train")

    return {"make_data": make_data}


SETTINGS = {
    "data.placement": "stream",
    "data.retries": 1,
    "data.retry_seconds": 0.0,
    "train.block_steps": 4,
    "log.every": "2 steps",
    "eval.every": "5 steps",
    "checkpoint.every": "5 steps",
}


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run none of whose reads fails."""
    run = small.build(tmp_path_factory.mktemp("whole") / "run", functions=functions([]), **SETTINGS)
    loop.train(run)
    return run


def test_a_run_whose_source_fails_stops_with_a_checkpoint_and_goes_on_to_the_same_bits(tmp_path, whole):
    errors = [OSError(5, "Input/output error")] * 2
    where = small.place_of(7, 3)
    broken = small.build(tmp_path / "run", functions=functions(errors, where), **SETTINGS)
    with pytest.raises(DataError) as caught:
        loop.train(broken)
    assert str(caught.value) == (
        "batch 7 of 'north' could not be read in 2 tries: OSError: [Errno 5] Input/output error."
        " Step 6 is saved; the same command goes on from there."
    )
    assert broken.checkpoints.steps()[-1] == int(broken.state.step) == 6
    again = small.build(tmp_path / "run", functions=functions(errors, where), **SETTINGS)
    loop.train(again)
    assert small.snapshot(again) == small.snapshot(whole)
    assert rows(tmp_path / "run") == rows(whole.workdir)


def test_a_failing_evaluation_is_made_again(tmp_path, whole):
    """No checkpoint may say that step 5 is done before its evaluation is."""
    broken = small.build(tmp_path / "run", functions=functions([]), **SETTINGS)

    class Failing:
        has_retraced = False

        def __call__(self, *args):
            raise DataError("gone")

    broken.eval_blocks["test"].compiled = Failing()
    with pytest.raises(DataError, match=r"^gone$"):
        loop.train(broken)
    assert broken.checkpoints.steps() == []
    again = small.build(tmp_path / "run", functions=functions([]), **SETTINGS)
    loop.train(again)
    assert small.snapshot(again) == small.snapshot(whole)
    assert rows(tmp_path / "run") == rows(whole.workdir)


def test_launch_says_it_in_one_line_with_status_1(monkeypatch, capsys):
    def fail(argv):
        raise DataError("batch 7 of 'north' could not be read\nin 2 tries.")

    monkeypatch.setattr(launch, "_launch", fail)
    assert launch.main(["launch.py"]) == 1
    assert capsys.readouterr().err == "error: batch 7 of 'north' could not be read in 2 tries.\n"

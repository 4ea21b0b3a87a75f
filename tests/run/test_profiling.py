"""framework/run/profiling.py: a trace of the steps that were asked for, and the same bits with it as without."""

import logging
import sys
from types import SimpleNamespace

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from framework.checkpoint import digest
from framework.errors import UserError
from framework.run import loop
from framework.run.profiling import Profiler
from tests import small

SETTINGS = {"train.duration": "12 steps", "train.block_steps": 4, "log.every": "6 steps"}


def traces(workdir):
    """[[(last step of a block, its milliseconds), …] of each trace]."""
    files = sorted((workdir / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))
    return [list(events(xplane_pb2.XSpace.FromString(file.read_bytes()))) for file in files]


def events(space):
    for plane in space.planes:
        names = {key: value.name for key, value in plane.event_metadata.items()}
        stats = {key: value.name for key, value in plane.stat_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                if names[event.metadata_id] == "train":
                    values = {stats[stat.metadata_id]: stat.int64_value or stat.uint64_value for stat in event.stats}
                    yield values["step_num"], event.duration_ps / 1e9


def test_the_trace_holds_the_steps_and_changes_no_bit(tmp_path, caplog):
    plain = small.build(tmp_path / "plain", **SETTINGS)
    loop.train(plain)
    traced = small.build(tmp_path / "traced", **SETTINGS, **{"profile.steps": "5:11"})
    with caplog.at_level(logging.INFO, "absl"):
        loop.train(traced)
    assert digest(plain.state) == digest(traced.state)
    (blocks,) = traces(tmp_path / "traced")
    assert [step for step, _ in blocks] == [6, 10, 11]  # a row at 6, at most four steps, the border
    assert all(0 < milliseconds < 60_000 for _, milliseconds in blocks)
    assert traces(tmp_path / "plain") == []
    assert (
        f"the steps after step 5 are traced: tensorboard --logdir {tmp_path / 'traced' / 'tensorboard'} (pip install"
        " xprof adds its tab Profile)" in caplog.messages
    )


def profiler_of(tmp_path, steps, total=100, is_chief=True):
    replicas, resolved = SimpleNamespace(is_chief=is_chief), SimpleNamespace(profile=SimpleNamespace(steps=steps))
    return Profiler(SimpleNamespace(workdir=tmp_path, resolved=resolved, total_steps=total, replicas=replicas))


@pytest.mark.parametrize(
    ("steps", "start", "borders"),
    [
        ("5:11", 0, [5, 11]),
        ("1:3", 0, [1, 3]),
        ("5:11", 4, [5, 11]),
        ("5:11", 5, [6, 11]),  # the first block of a process compiles
        ("5:11", 8, [9, 11]),
        ("5:11", 10, []),
        ("5:11", 50, []),
        ("", 0, []),
    ],
)
def test_only_steps_ahead_are_traced(tmp_path, steps, start, borders, caplog):
    profiler, ends, step = profiler_of(tmp_path, steps), [], start
    with caplog.at_level(logging.INFO, "absl"):
        profiler.begin(step)
    while (step := profiler.next_step(step)) != sys.maxsize:
        ends.append(step)
    assert ends == borders
    past = "profile.steps=5:11: the run is past these steps, so there is no trace"
    assert caplog.messages == ([past] if steps and not borders else [])


def test_a_trace_under_way_is_written_when_the_run_goes_back_or_ends(tmp_path):
    with profiler_of(tmp_path, "2:90") as profiler:
        profiler.begin(0)
        with profiler.around(2, 1):
            tf.constant(1.0) + 1.0
        profiler.begin(0)
        assert [len(blocks) for blocks in traces(tmp_path)] == [1]
        with profiler.around(1, 1):
            pass
        other = profiler_of(tmp_path, "2:90")
        other.begin(0)
        with profiler.around(2, 1), pytest.raises(UserError) as error, other.around(2, 1):
            pass
        assert str(error.value) == (
            "profile.steps: another profiler is running in this process. Type tf.profiler.experimental.stop(), or leave"
            " the key out."
        )
    tf.profiler.experimental.start(str(tmp_path / "free"))  # none runs any more
    tf.profiler.experimental.stop()


def test_workers_beside_the_chief_trace_nothing(tmp_path):
    profiler = profiler_of(tmp_path, "2:90", is_chief=False)
    profiler.begin(0)
    assert profiler.next_step(0) == sys.maxsize


@pytest.mark.parametrize("is_chief", [True, False])
def test_steps_past_the_end_are_refused(tmp_path, is_chief):
    profiler_of(tmp_path, "10:20", total=20, is_chief=is_chief)
    with pytest.raises(UserError) as error:
        profiler_of(tmp_path, "10:21", total=20, is_chief=is_chief)
    assert str(error.value) == (
        "profile.steps='10:21' goes past step 20, the end of the run. Use a smaller --config.profile.steps=A:B, or a"
        " longer run."
    )

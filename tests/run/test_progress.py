"""framework/run/progress.py with an injected clock: every second is accounted for."""

import dataclasses
import math
import time

import pytest

from framework.run.progress import Progress

MODES = {"test/loss": "min", "test/accuracy": "max"}


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def make_progress(note=None, started=100.0, now=100.0):
    clock = Clock(now)
    return Progress(batch_size=32, started=started, note=note or {}, modes=MODES, clock=clock), clock


@dataclasses.dataclass
class Timed:
    """A block, as far as progress knows one."""

    steps: int
    waited: float
    traced: tuple[int, float] = (0, 0.0)


def run(progress, clock, k, seconds, waited=0.0):
    def train_block(steps):
        clock.now += seconds
        return Timed(steps, waited)

    assert progress.timed(train_block, k) == Timed(k, waited)


def lap_speed(progress):
    return progress.examples_per_second(progress.lap())


def test_speed_leaves_out_the_first_block_and_what_is_between_blocks():
    progress, clock = make_progress()
    clock.now += 7  # building the run
    run(progress, clock, 1, 20)  # compiles
    assert progress.time_to_first_step == 27
    assert math.isnan(progress.examples_per_second(progress.total))
    assert math.isnan(lap_speed(progress))
    run(progress, clock, 10, 2)
    clock.now += 50  # an evaluation
    run(progress, clock, 30, 3)
    assert lap_speed(progress) == 40 * 32 / 5
    assert math.isnan(lap_speed(progress))
    run(progress, clock, 5, 4)
    assert lap_speed(progress) == 5 * 32 / 4
    assert progress.examples_per_second(progress.total) == 45 * 32 / 9
    assert progress.time_to_first_step == 27
    assert progress.wall_seconds() == 7 + 20 + 2 + 50 + 3 + 4


def test_waiting_is_a_share_of_the_time_of_the_blocks():
    progress, clock = make_progress()
    run(progress, clock, 1, 20, waited=19)  # compiles
    assert math.isnan(progress.lap().data_wait) and math.isnan(progress.total.data_wait)
    run(progress, clock, 10, 4, waited=1)
    run(progress, clock, 10, 4)
    clock.now += 50  # an evaluation
    assert progress.lap().data_wait == 1 / 8
    run(progress, clock, 10, 2, waited=1.5)
    assert progress.lap().data_wait == 1.5 / 2
    assert progress.total.data_wait == 2.5 / 10


def test_every_second_is_of_one_part_of_the_run():
    progress, clock = make_progress()
    clock.now += 7
    progress.passed("building")
    clock.now += 5  # of which 2 compiled
    progress.passed("tuning", compiling=2)
    run(progress, clock, 1, 20)
    run(progress, clock, 10, 4, waited=1.5)
    with progress.spending("evaluate"):
        clock.now += 50
    clock.now += 0.25  # nobody's
    first = {"building": 7.0, "compiling": 22.0, "tuning": 3.0, "data_wait": 1.5, "steps": 2.5, "evaluate": 50.0}
    first["other"] = 0.25
    assert progress.seconds() == first and sum(first.values()) == progress.wall_seconds()
    again, clock = make_progress(progress.note(), started=5000.0, now=5003.0)
    again.passed("building")
    with pytest.raises(KeyError), again.spending("hooks/slow"):  # the time of a hook that fails counts too
        clock.now += 2
        raise KeyError
    assert again.seconds() == first | {"building": 10.0, "hooks/slow": 2.0}
    assert sum(again.seconds().values()) == again.wall_seconds()


def test_a_note_carries_time_and_evaluations_across_an_interruption():
    progress, clock = make_progress()
    progress.observe(7, {"test/loss": 0.5, "test/accuracy": 0.9})
    progress.observe(9, {"test/loss": 0.7, "test/accuracy": 0.95})
    progress.logged(9, {"loss": 0.4})
    clock.now += 60
    note = progress.note()
    assert note == {
        "wall_seconds": 60.0,
        "seconds": {"other": 60.0},
        "trained": {"loss": 0.4},
        "trained_step": 9,
        "evaluations": {"test/loss": 0.7, "test/accuracy": 0.95},
        "evaluated_step": 9,
        "best": {"test/loss": 0.5, "test/accuracy": 0.95},
        "best_steps": {"test/loss": 7, "test/accuracy": 9},
    }
    again, clock = make_progress(note, started=5000.0, now=5000.0)
    assert again.note() == note
    assert again.time_to_first_step is None
    clock.now += 15
    again.observe(20, {"test/loss": 0.6, "test/accuracy": 0.97})
    assert again.note() == {
        "wall_seconds": 75.0,
        "seconds": {"other": 75.0},
        "trained": {"loss": 0.4},
        "trained_step": 9,
        "evaluations": {"test/loss": 0.6, "test/accuracy": 0.97},
        "evaluated_step": 20,
        "best": {"test/loss": 0.5, "test/accuracy": 0.97},
        "best_steps": {"test/loss": 7, "test/accuracy": 20},
    }
    assert note["best"] == {"test/loss": 0.5, "test/accuracy": 0.95}  # the restored note is not written to


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("test/loss", [3.0, 1.0, 2.0], 1.0),
        ("test/accuracy", [0.1, 0.9, 0.5], 0.9),
        ("test/unknown", [1.0, 2.0], None),  # nobody said whether more is better
        ("test/loss", [math.nan, 2.0, math.nan], 2.0),
        ("test/accuracy", [0.5, math.nan], 0.5),
        ("test/loss", [math.inf, 2.0], 2.0),
    ],
)
def test_best_follows_the_mode_and_passes_over_nan(name, values, best):
    progress, _ = make_progress()
    for value in values:
        progress.observe(7, {name: value})
    assert progress.best == ({} if best is None else {name: best})
    assert progress.best_steps == ({} if best is None else {name: 7})
    assert progress.evaluations.keys() == {name}


def test_nan_alone_is_the_newest_and_never_the_best():
    progress, _ = make_progress()
    progress.observe(7, {"test/loss": math.nan})
    assert math.isnan(progress.evaluations["test/loss"])
    assert progress.best == {}


def test_a_block_that_fails_is_not_counted():
    progress, clock = make_progress()
    run(progress, clock, 1, 1)

    def fail(steps):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        progress.timed(fail, 5)
    assert math.isnan(progress.examples_per_second(progress.total))


def test_by_default_it_reads_the_clock_of_started():
    progress = Progress(batch_size=1, started=time.monotonic() - 10, note={}, modes={})
    assert 10 <= progress.wall_seconds() < 15

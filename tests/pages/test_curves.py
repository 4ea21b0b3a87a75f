"""framework/pages/curves.py: few points of many rows, and none of the extremes lost."""

import json
import math
import random
import resource
import time

import numpy as np
import pytest

from framework.pages import curves
from framework.pages.curves import Curve


def curve_of(steps, values):
    curve = Curve()
    for step, value in zip(steps, values, strict=True):
        curve.add(step, value)
    return curve


def points(curve):
    return [point for segment in curve.segments() for point in segment]


@pytest.mark.parametrize(("count", "every"), [(1, 100), (250, 1), (250, 97), (2, 10**12)])
def test_all_points_of_few_rows_are_kept(count, every):
    steps = [every * (number + 1) for number in range(count)]
    values = [random.Random(7).gauss(0, 1) for _ in steps]
    assert curve_of(steps, values).segments() == [[*zip(steps, values, strict=True)]]


@pytest.mark.parametrize("count", [251, 3000, 20_000])
def test_each_bin_keeps_its_least_and_its_greatest_value(count):
    rng = np.random.default_rng(count)
    steps, values = 10 * np.arange(1, count + 1), rng.normal(size=count)
    values[count // 3] = 1e6  # a spike of one row
    curve = curve_of(steps.tolist(), values.tolist())
    found = points(curve)
    assert len(found) <= 500 and found == sorted(found)
    assert (10 * (count // 3 + 1), 1e6) in found
    width = next(2**power for power in range(40) if np.unique(steps // 2**power).size <= 250)
    for place in np.unique(steps // width):
        inside = values[steps // width == place]
        kept = [value for step, value in found if step // width == place]
        assert (min(kept), max(kept)) == (inside.min(), inside.max())
        assert all(values[step // 10 - 1] == value for step, value in found)
    assert curve.last == (steps[-1], values[-1])
    assert curve.lowest == (steps[values.argmin()], values.min())
    assert curve.highest == (steps[values.argmax()], 1e6)


def test_the_first_of_equal_extremes_counts():
    curve = curve_of([1, 2, 3, 4], [2.0, 1.0, 1.0, 2.0])
    assert (curve.lowest, curve.highest, curve.last) == ((2, 1.0), (1, 2.0), (4, 2.0))


def test_values_that_are_not_finite_part_the_curve():
    curve = curve_of([10, 20, 30, 40, 50], [1.0, math.nan, 3.0, 4.0, math.inf])
    assert curve.segments() == [[(10, 1.0)], [(30, 3.0), (40, 4.0)]]
    assert (curve.gaps, curve.lost, curve.last) == ([20, 50], 2, (40, 4.0))
    nothing = curve_of([1, 2], [math.nan, -math.inf])
    assert (nothing.segments(), nothing.last, nothing.lost) == ([], None, 2)
    assert (curve.latest, nothing.latest) == ((50, math.inf), (2, -math.inf))


def test_many_lost_values_are_bounded_too():
    curve = curve_of(range(5000), [math.nan, 1.0] * 2500)
    assert curve.lost == 2500 and len(curve.gaps) <= 250 and len(points(curve)) <= 500


LINES = [
    '{"step": 1, "loss": 2.5, "accuracy": null}',
    '{"step": 2, "loss": NaN, "eval/test/loss": 1e999}',
    '{"step": 3, "loss": 1' + 400 * "0" + "}",
    '{"step": true, "loss": 1}', '{"step": -1, "loss": 1}', '{"step": 2.5}', '{"loss": 1}', "[]", "3", "{", "",
    '{"step": 4, "loss": "1"}', '{"step": 4, "loss": true}', '{"step": 4, "loss": [1]}', 5000 * "[",
    '{"step": 9, "loss": 1.5}',
]  # fmt: skip


def test_damaged_lines_are_counted_and_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join(LINES).encode() + b"\n\xff\xfe\n" + b'{"step": 10, "lo')
    found = curves.read(path)
    assert points(found.of["loss"]) == [(1, 2.5), (9, 1.5)] and found.of["loss"].lost == 2
    assert found.of["accuracy"].lost == found.of["eval/test/loss"].lost == 1
    assert (found.last_step, found.damaged) == (9, 13)
    short = curves.read(path, b'"eval/')
    assert [*short.of] == ["loss", "eval/test/loss"] and short.last_step == 2  # the torn line is the last one


def test_evaluations_alone_come_with_the_last_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "eval/test/loss": 3}\n{"step": 5, "loss": 2}\n')
    short = curves.read(path, b'"eval/')
    assert (
        short.last_step == 5
        and points(short.of["eval/test/loss"]) == [(2, 3.0)]
        and points(short.of["loss"]) == [(5, 2)]
    )


def test_a_missing_file_has_no_curves(tmp_path):
    assert curves.read(tmp_path / "metrics.jsonl") == curves.Curves()


@pytest.mark.slow
def test_a_million_rows_take_little_memory(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 1_000_001):
            row = {"step": step, "loss": math.sin(step), "learning_rate": 0.1, "accuracy": 0.5}
            file.write(json.dumps(row | ({"loss": 99.0} if step == 777_777 else {})) + "\n")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = curves.read(path)
    assert time.process_time() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB; the file has 80 MB
    assert (777_777, 99.0) in points(found.of["loss"]) and len(points(found.of["loss"])) <= 500

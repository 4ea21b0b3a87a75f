"""framework/pages/charts.py: where points are drawn, against the formula."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from framework.pages import charts
from framework.pages.charts import Series

LEFT, RIGHT, TOP, BOTTOM = 58, 388, 10, 186  # the corners of a picture of 400 by 210


def drawn(figure):
    """{name of a line: the points of its segments}, and the SVG."""
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL)[0])
    lines = {}
    for line in svg.iter("polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        lines.setdefault(line.find("title").text, []).append(points)
    return lines, svg


def expected(segment, last_step, low, high, scale=lambda value: value):
    span = scale(high) - scale(low)
    return [
        (LEFT + (RIGHT - LEFT) * step / last_step, BOTTOM - (BOTTOM - TOP) * (scale(value) - scale(low)) / span)
        for step, value in segment
    ]


def close(found, wanted):
    return np.shape(found) == np.shape(wanted) and np.abs(np.subtract(found, wanted)).max() <= 0.051


def test_lines_are_where_the_formula_puts_them():
    train, test = [(100, 2.5), (200, 1.75), (400, -0.5)], [(200, 2.0), (400, 0.25)]
    lines, svg = drawn(charts.curves("loss", [Series("train", [train[:2], train[2:]]), Series("test", [test])]))
    assert close(lines["train"][0] + lines["train"][1], expected(train, 400, -0.5, 2.5))
    assert close(lines["test"][0], expected(test, 400, -0.5, 2.5))
    texts = {text.text: (float(text.get("x")), float(text.get("y"))) for text in svg.iter("text")}
    assert {"0", "1", "2", "100", "400"} <= texts.keys()
    assert texts["100"][0] == pytest.approx(LEFT + (RIGHT - LEFT) / 4, abs=0.06)
    assert texts["2"][1] - 4 == pytest.approx(expected([(0, 2.0)], 400, -0.5, 2.5)[0][1], abs=0.06)


def test_positive_values_of_three_decades_are_logarithmic():
    segment = [(1, 1e-3), (2, 0.1), (4, 50.0)]
    figure = charts.curves("loss", [Series("train", [segment])])
    assert close(drawn(figure)[0]["train"][0], expected(segment, 4, 1e-3, 50.0, math.log10))
    assert "<figcaption>loss, logarithmic</figcaption>" in figure
    linear = charts.curves("loss", [Series("train", [segment])], is_linear=True)
    assert close(drawn(linear)[0]["train"][0], expected(segment, 4, 1e-3, 50.0)) and "logarithmic" not in linear


def test_a_single_point_is_a_dot():
    _, svg = drawn(charts.curves("loss", [Series("train", [[(50, 3.0)]])]))
    (dot,) = svg.iter("circle")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == (RIGHT, (TOP + BOTTOM) / 2)
    assert dot.find("title").text == "train: 3 at step 50"


def test_lost_values_and_bands_have_their_places():
    band = [(10, 1.0, 3.0), (20, 2.0, 4.0)]
    _, svg = drawn(charts.curves("loss", [Series("a", [[(10, 2.0), (20, 3.0)]], lost=[15, 40], bands=[band])]))
    lost = [float(line.get("x1")) for line in svg.iter("line") if line.get("class") == "lost"]
    assert lost == pytest.approx([LEFT + 330 * 15 / 40, RIGHT], abs=0.06)
    (polygon,) = svg.iter("polygon")
    found = [tuple(map(float, point.split(","))) for point in polygon.get("points").split()]
    assert close(found, expected([(10, 3.0), (20, 4.0), (20, 2.0), (10, 1.0)], 40, 1.0, 4.0))


EXTREMES = [
    [0.0, 0.0], [5.0, 5.0], [-1.7e308, 1.7e308], [1e308, 1.7e308], [5e-324, 1e-320], [0.0, 5e-324],
    [-3.0, -3.0 + 1e-15], [1e15, 1e15 + 1], [5e-324, 1e308], [1e6, 1e6 + 0.002], [],
]  # fmt: skip


@pytest.mark.parametrize("values", EXTREMES, ids=str)
def test_any_values_stay_inside(values):
    segment = [(2**62 * number, value) for number, value in enumerate(values)]
    lines, svg = drawn(charts.curves("x", [Series("x", [segment] if segment else [], lost=[3])]))
    for points in lines.get("x", []):
        assert all(LEFT <= right <= RIGHT and TOP <= down <= BOTTOM for right, down in points)
    words = [text.text for text in svg.iter("text") if float(text.get("x")) < LEFT]
    assert len(words) == len(set(words)) >= 2 and not {"nan", "inf"} & {*words}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (0.123, 0.124), (1e-9, 5e-9), (-1e300, 1e300), (0, 64000)])
def test_ticks_are_round_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 3 <= len(found) <= 9
    step = found[1] - found[0]
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - round_number) for round_number in (1, 2, 5)) < 1e-6
    for mark in found:
        assert low - 1e-6 * step <= mark <= high + 1e-6 * step
        assert abs(mark / step - round(mark / step)) < 1e-6


def test_over_decades_equal_factors_are_equally_far_apart():
    """The words below are powers of ten; what is not finite lies where its rate lies."""
    points = [(1e-4, 2.0), (1e-3, 1.5), (1e-2, 1.0), (1.0, 3.0)]
    figure = charts.curves("loss", [Series("smoothed", [points], lost=[0.1])], over_decades=True)
    lines, svg = drawn(figure)
    wanted = [(LEFT + (RIGHT - LEFT) * share, BOTTOM - (BOTTOM - TOP) * (value - 1) / 2) for share, (_, value) in
              zip((0, 0.25, 0.5, 1), points, strict=True)]  # fmt: skip
    assert close(lines["smoothed"][0], wanted)
    words = [text.text for text in svg.iter("text") if text.get("y") == str(210 - 8)]
    assert words == ["0.0001", "0.001", "0.01", "0.1", "1"]
    (lost,) = [line for line in svg.iter("line") if line.get("class") == "lost"]
    assert float(lost.get("x1")) == pytest.approx(LEFT + 0.75 * (RIGHT - LEFT), abs=0.051)
    assert "smoothed: 1.5 at 0.001<" in figure

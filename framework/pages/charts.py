"""Charts, as SVG, and the parts that they are made of: scales, lines, words.

    x = Scale(0, 640, 70, 610)                      # 0 is at 70 pixels from the left, 640 at 610
    line(70, 610, 30.0, 30.0) + text(62, 34.0, "10 %", "end")
    curves("loss", [Series("train", [[(100, 2.3), (200, 1.9)]]), Series("test", [[(200, 1.7)]])])

Coordinates that are floats are rounded to a tenth of a pixel. Plotting libraries are not used: the import of one takes
0.5 to 1.5 s, and a run of four seconds writes a report at its end.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from framework.pages.html import safe

Segments = Sequence[Sequence[tuple[float, float]]]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 210, 58, 12, 10, 24  # of a picture of curves, and its margins
# Okabe and Ito (2008), told apart by colour-blind readers; without the yellow, which is pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555", "#000000")
_DECADES = 3  # positive values that span so many are shown on a logarithmic scale
_TICKS = 5
_MOST_DOTS = 40  # points of a series whose points are marked
_LARGEST = 1.7e308

STYLE = """\
figure { margin: 0; min-width: 0 } figure svg { width: 100%; height: auto; display: block }
figcaption { font-weight: 600; overflow-wrap: anywhere }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23em), 1fr)); gap: 1.5em }
.curves svg text { font-size: 11px } polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round }
polygon { stroke: none; opacity: .18 } line.lost { stroke: #c00; stroke-dasharray: 2 3 }
.legend { font-size: 12px; color: #444; overflow-wrap: anywhere }
.legend span { display: inline-block; margin-right: 1.2em }
.legend i { display: inline-block; width: 1.2em; height: 3px; margin-right: .4em; vertical-align: middle }
"""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high`, which is higher, to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        # By halves: the difference of two float64 may overflow.
        return self.start + (self.end - self.start) * ((value / 2 - self.low / 2) / (self.high / 2 - self.low / 2))


def line(left: float, right: float, top: float, bottom: float) -> str:
    """Returns a straight line."""
    return f'<line x1="{_shown(left)}" x2="{_shown(right)}" y1="{_shown(top)}" y2="{_shown(bottom)}"/>'


def text(x: float, y: float, words: object, anchor: str = "") -> str:
    """Returns words at a place; `anchor` is 'middle' or 'end' if they do not start there."""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_shown(x)}" y="{_shown(y)}"{where}>{safe(words)}</text>'


def _shown(pixels: float) -> str:
    return str(pixels) if isinstance(pixels, int) else f"{pixels:.1f}"


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a picture.

    Attributes:
      name: for the legend.
      segments: points (step, value), finite and in order; the line has a gap between two segments.
      lost: steps of values that are not finite.
      colour: one of COLOURS by default, by the place of the series.
      is_pale: whether the line is drawn thin, behind the others.
      bands: areas of points (step, least, greatest) that are filled, in order.
    """

    name: str
    segments: Segments
    lost: Sequence[float] = ()
    colour: str = ""
    is_pale: bool = False
    bands: Sequence[Sequence[tuple[float, float, float]]] = ()


def curves(title: str, series: Sequence[Series], is_linear: bool = False, over_decades: bool = False) -> str:
    """Returns a figure with the curves of some series over steps, and their legend.

    Args:
      title: of the figure.
      series: at least one.
      is_linear: whether the scale is linear even if positive values span three decades or more.
      over_decades: whether the steps are positive numbers such as learning rates, on a logarithmic axis.
    """
    if over_decades:
        series = [_by_exponent(one) for one in series]
    values = [value for one in series for segment in one.segments for _, value in segment]
    values += [value for one in series for band in one.bands for _, *both in band for value in both]
    steps = [step for one in series for segment in one.segments for step, _ in segment]
    steps += [step for one in series for step in (*one.lost, *(point[0] for band in one.bands for point in band))]
    is_logarithmic = not is_linear and bool(values) and min(values) > 0 and max(values) / min(values) >= 10**_DECADES
    x = Scale(*widened(steps if over_decades else [0, *steps]), LEFT, WIDTH - RIGHT)
    y = Scale(*widened([math.log10(value) for value in values] if is_logarithmic else values), HEIGHT - BOTTOM, TOP)
    name_of = _rate if over_decades else _step
    parts = [*_grid(x, y, is_logarithmic, name_of)]
    place = (lambda value: y(math.log10(value))) if is_logarithmic else y
    coloured = [(one, one.colour or COLOURS[number % len(COLOURS)]) for number, one in enumerate(series)]
    for one, colour in sorted(coloured, key=lambda pair: not pair[0].is_pale):
        parts += _bands(one, colour, x, place) + _lines(one, colour, x, place, "" if over_decades else "step ", name_of)
        parts += [
            f'<line class="lost" x1="{x(s):.1f}" x2="{x(s):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>' for s in one.lost
        ]
    body = "\n".join(parts)
    legend = "".join(
        f'<span><i style="background:{colour}{";opacity:.35" if one.is_pale else ""}"></i>{safe(one.name)}</span>'
        for one, colour in coloured
    )
    scale = ", logarithmic" if is_logarithmic else ""
    return (
        f"<figure><figcaption>{safe(title)}{scale}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{safe(title)}">\n{body}\n</svg>'
        f'<div class="legend">{legend}</div></figure>\n'
    )


def widened(values: Sequence[float]) -> tuple[float, float]:
    """Returns the least and the greatest value, further apart if they are the same but for rounding."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if high / 2 - low / 2 > 1e-9 * size and size > 1e-290:
        return low, high
    pad = size * 0.1 if size > 1e-290 else 1.0
    return max(low - pad, -_LARGEST), min(high + pad, _LARGEST)


def ticks(low: float, high: float, is_whole: bool = False) -> list[float]:
    """Returns about five round numbers from `low` to `high`."""
    rough = (high / 2 - low / 2) / (_TICKS / 2)
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * base for factor in (1, 2, 5, 10) if factor * base >= 0.999 * rough)
    step = max(step, 1.0) if is_whole else step
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _step(step: float) -> str:
    return f"{step:,.0f}"


def _rate(exponent: float) -> str:
    return f"{10.0**exponent:.3g}"


def _by_exponent(series: Series) -> Series:
    """Returns a series over the decimal logarithms of its steps."""
    log = math.log10
    return dataclasses.replace(
        series,
        segments=[[(log(step), value) for step, value in segment] for segment in series.segments],
        lost=[log(step) for step in series.lost],
        bands=[[(log(step), low, high) for step, low, high in band] for band in series.bands],
    )


def _grid(x: Scale, y: Scale, is_logarithmic: bool, name_of: Callable[[float], str]) -> list[str]:
    parts = []
    marks = ticks(y.low, y.high, is_whole=is_logarithmic)
    if is_logarithmic and len(marks) < 2:
        marks = [y.low, y.high]
    apart = min((after - before for before, after in zip(marks, marks[1:], strict=False)), default=1.0)
    most = max((abs(mark) for mark in marks), default=0.0)
    digits = max(4, math.ceil(math.log10(most / apart)) + 1) if most and apart else 4
    for mark in marks:
        parts.append(line(LEFT, WIDTH - RIGHT, y(mark), y(mark)))
        words = f"{10.0**mark:.3g}" if is_logarithmic else _words(mark, digits)
        parts.append(text(LEFT - 6, y(mark) + 4, words, "end"))
    for mark in ticks(x.low, x.high, is_whole=True):
        parts.append(text(x(mark), HEIGHT - 8, name_of(mark), "end" if x(mark) > WIDTH - RIGHT - 20 else "middle"))
    return parts


def _words(value: float, digits: int) -> str:
    return f"{value:.{max(digits, 6)}g}" if 1e-3 <= abs(value) < 1e6 or not value else f"{value:.{digits}g}"


def _lines(
    series: Series, colour: str, x: Scale, y: Callable[[float], float], unit: str, name_of: Callable[[float], str]
) -> list[str]:
    width = ' stroke-width="1" opacity=".35"' if series.is_pale else ""
    has_dots = sum(map(len, series.segments)) <= _MOST_DOTS and not series.is_pale
    parts = []
    for segment in series.segments:
        places = [(x(step), y(value)) for step, value in segment]
        points = " ".join(f"{right:.1f},{down:.1f}" for right, down in places)
        parts.append(
            f'<polyline stroke="{colour}"{width} points="{points}"><title>{safe(series.name)}</title></polyline>'
        )
        if has_dots or len(segment) == 1:
            parts += [
                f'<circle cx="{right:.1f}" cy="{down:.1f}" r="2.2" style="fill:{colour}"><title>'
                f"{safe(series.name)}: {value:.6g} at {unit}{name_of(step)}</title></circle>"
                for (right, down), (step, value) in zip(places, segment, strict=True)
            ]
    return parts


def _bands(series: Series, colour: str, x: Scale, y: Callable[[float], float]) -> list[str]:
    parts = []
    for band in series.bands:
        edge = [(step, high) for step, _, high in band] + [(step, low) for step, low, _ in reversed(band)]
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in edge)
        parts.append(f'<polygon fill="{colour}" points="{points}"><title>{safe(series.name)}</title></polygon>')
    return parts

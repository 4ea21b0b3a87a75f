"""Small charts as SVG text, without a plotting package.

    Path("growth.svg").write_text(svg([Panel("batch size", "ms a step", [(32, 0.4), (64, 0.5)])]))

Both axes are logarithmic: what grows in proportion has the slope of the dashed line, what stays is level.
"""

import dataclasses
import html
import math
from collections.abc import Iterator, Sequence

_WIDTH, _HEIGHT = 300, 230  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 30, 44  # around its frame
_INK, _PALE, _LINE = "#333333", "#bbbbbb", "#1f5fa8"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One curve.

    Attributes:
      x, y: names of the axes.
      points: (x, y), at least one, all > 0.
    """

    x: str
    y: str
    points: Sequence[tuple[float, float]]


def svg(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels side by side, row by row."""
    rows = -(-len(panels) // columns)
    width, height = columns * _WIDTH, rows * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' font-family="sans-serif" font-size="11" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        place = f"translate({number % columns * _WIDTH} {number // columns * _HEIGHT})"
        parts += [f'<g transform="{place}">', *_drawn(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a range of positive numbers; at least two."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def short(number: float) -> str:
    """1e3 -> '1k', 5e7 -> '50M', 0.1 -> '0.1'."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _drawn(panel: Panel) -> Iterator[str]:
    x_ticks, y_ticks = (ticks(min(values), max(values)) for values in zip(*panel.points, strict=True))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + (right - _LEFT) * _part(value, x_ticks)

    def y_of(value: float) -> float:
        return bottom - (bottom - _TOP) * _part(value, y_ticks)

    yield f'<text x="{_LEFT}" y="18" font-weight="bold">{html.escape(panel.y)}</text>'
    yield f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{html.escape(panel.x)}</text>'
    for tick in x_ticks:
        yield f'<path d="M{x_of(tick):.1f} {_TOP}V{bottom}" stroke="{_PALE}" stroke-width="0.5"/>'
        yield f'<text x="{x_of(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{short(tick)}</text>'
    for tick in y_ticks:
        yield f'<path d="M{_LEFT} {y_of(tick):.1f}H{right}" stroke="{_PALE}" stroke-width="0.5"/>'
        yield f'<text x="{_LEFT - 5}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{short(tick)}</text>'
    # In proportion, up to the last point, as far as the frame goes.
    last_x, last_y = panel.points[-1]
    factor = max(x_ticks[0] / last_x, y_ticks[0] / last_y)
    first = f"{x_of(factor * last_x):.1f} {y_of(factor * last_y):.1f}"
    yield (
        f'<path d="M{first}L{x_of(last_x):.1f} {y_of(last_y):.1f}" stroke="{_INK}" stroke-dasharray="3 3" fill="none"/>'
    )
    line = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in panel.points)
    yield f'<path d="M{line}" stroke="{_LINE}" stroke-width="2" fill="none"/>'
    for x, y in panel.points:
        yield f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{_LINE}"/>'


def _part(value: float, ticks: Sequence[float]) -> float:
    """Where a value is between the first and the last tick, from 0 to 1."""
    return math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])

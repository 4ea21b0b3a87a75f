"""The parts of a chart, as SVG: scales, lines, words.

    x = Scale(0, 640, 70, 610)                      # 0 is at 70 pixels from the left, 640 at 610
    line(70, 610, 30.0, 30.0) + text(62, 34.0, "10 %", "end")

Coordinates that are floats are rounded to a tenth of a pixel.
"""

import dataclasses

from framework.pages.html import safe


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high`, which is higher, to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        # By halves: the difference of two float64 may overflow.
        return self.start + (self.end - self.start) * (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)


def line(left: float, right: float, top: float, bottom: float) -> str:
    """Returns a straight line."""
    return f'<line x1="{_shown(left)}" x2="{_shown(right)}" y1="{_shown(top)}" y2="{_shown(bottom)}"/>'


def text(x: float, y: float, words: object, anchor: str = "") -> str:
    """Returns words at a place; `anchor` is 'middle' or 'end' if they do not start there."""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_shown(x)}" y="{_shown(y)}"{where}>{safe(words)}</text>'


def _shown(pixels: float) -> str:
    return str(pixels) if isinstance(pixels, int) else f"{pixels:.1f}"

"""The curves of metrics.jsonl in bounded memory, however many rows it has.

    curves = read(workdir / "metrics.jsonl")
    curves.of["loss"].segments()        # [[(100, 2.3), (200, 1.9)], …]: a value that is not finite parts two segments
    curves.of["eval/test/loss"].last    # (469, 0.07)

A curve keeps the lowest and the highest value of at most 250 bins of steps, so that a spike of one row stays visible.
"""

import dataclasses
import json
import math
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from framework.files import lines

_MOST_BINS = 250  # two points each

Point = tuple[int, float]  # step, value
P = TypeVar("P", bound=tuple[Any, ...])
_value = operator.itemgetter(1)


def parted(points: Iterable[P], gaps: Iterable[float]) -> list[list[P]]:
    """Returns points, which begin with a step and are in order, in segments that no step of a gap lies within."""
    left = sorted(gaps)
    segments: list[list[P]] = [[]]
    for point in points:
        while left and left[0] < point[0]:
            left.pop(0)
            segments.append([])
        segments[-1].append(point)
    return [segment for segment in segments if segment]


class Curve:
    """One number over the steps of a run.

    Attributes:
      latest: the point of the latest step, whose value may be NaN or infinite; None without values.
      last: the finite point of the latest step.
      lowest: the first point of the least value; highest: that of the greatest. None, as `last`, without finite values.
      lost: how many values were not finite.
    """

    def __init__(self) -> None:
        self.latest: Point | None = None
        self.last: Point | None = None
        self.lowest: Point | None = None
        self.highest: Point | None = None
        self.lost = 0
        self._width = 1  # of a bin, in steps
        self._bins: dict[int, tuple[Point, Point]] = {}  # {bin: lowest, highest}
        self._gaps: dict[int, int] = {}  # {bin: step of its first value that is not finite}

    def add(self, step: int, value: float) -> None:
        """Takes a value, which may be NaN or infinite."""
        if self.latest is None or step >= self.latest[0]:
            self.latest = (step, value)
        place = step // self._width
        if not math.isfinite(value):
            self.lost += 1
            self._gaps[place] = min(step, self._gaps.get(place, step))
            self._widen()
            return
        point = (step, value)
        if self.last is None or self.lowest is None or self.highest is None:
            self.last = self.lowest = self.highest = point
        if step >= self.last[0]:
            self.last = point
        known = self._bins.get(place)
        if known is None:
            self._bins[place] = (point, point)
            if len(self._bins) > _MOST_BINS:
                self._widen()
        elif value < known[0][1]:
            self._bins[place] = (point, known[1])
        elif value > known[1][1]:
            self._bins[place] = (known[0], point)
        else:
            return  # neither can it be the least nor the greatest of all
        if value < self.lowest[1]:
            self.lowest = point
        elif value > self.highest[1]:
            self.highest = point

    def _widen(self) -> None:
        """Doubles the width of the bins while there are too many."""
        while max(len(self._bins), len(self._gaps)) > _MOST_BINS:
            self._width *= 2
            bins: dict[int, tuple[Point, Point]] = {}
            for place, (lowest, highest) in self._bins.items():
                low, high = bins.get(place // 2, (lowest, highest))
                bins[place // 2] = (min(low, lowest, key=_value), max(high, highest, key=_value))
            self._bins = bins
            gaps: dict[int, int] = {}
            for place, step in self._gaps.items():
                gaps[place // 2] = min(step, gaps.get(place // 2, step))
            self._gaps = gaps

    @property
    def gaps(self) -> list[int]:
        """The steps of values that are not finite, in order; the first of each bin."""
        return sorted(self._gaps.values())

    def segments(self) -> list[list[Point]]:
        """Returns the finite points in order of steps, parted where a value is not finite."""
        return parted(sorted({point for pair in self._bins.values() for point in pair}), self.gaps)


class Averaged(Curve):
    """A curve that also knows the mean of each bin, for means over several runs.

    Attributes:
      width: of a bin, in steps; a power of 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.width = 1
        self._sums: dict[int, tuple[int, float, float]] = {}  # {bin: how many values, sums of steps and of values}

    def add(self, step: int, value: float) -> None:
        super().add(step, value)
        if self._width > self.width:
            self._sums = _merged(self._sums, self._width // self.width)
            self.width = self._width
        if math.isfinite(value):
            count, steps, values = self._sums.get(step // self.width, (0, 0.0, 0.0))
            self._sums[step // self.width] = (count + 1, steps + step, values + value)

    def bins(self, width: int) -> dict[int, tuple[float, float, float, float]]:
        """Returns {bin: (mean step, mean value, least, greatest)} of bins of a width, a multiple of `width`."""
        factor = width // self.width
        lowest: dict[int, float] = {}
        highest: dict[int, float] = {}
        for place, (low, high) in self._bins.items():
            lowest[place // factor] = min(low[1], lowest.get(place // factor, low[1]))
            highest[place // factor] = max(high[1], highest.get(place // factor, high[1]))
        return {
            place: (steps / count, values / count, lowest[place], highest[place])
            for place, (count, steps, values) in _merged(self._sums, factor).items()
        }


def _merged(sums: dict[int, tuple[int, float, float]], factor: int) -> dict[int, tuple[int, float, float]]:
    merged: dict[int, tuple[int, float, float]] = {}
    for place, (count, steps, values) in sums.items():
        before = merged.get(place // factor, (0, 0.0, 0.0))
        merged[place // factor] = (before[0] + count, before[1] + steps, before[2] + values)
    return merged


@dataclasses.dataclass
class Curves:
    """Holds the curves of one metrics.jsonl.

    Attributes:
      of: {name of a number in a row: its curve}.
      last_step: of all rows; 0 without rows.
      damaged: how many lines are no rows.
    """

    of: dict[str, Curve] = dataclasses.field(default_factory=dict)
    last_step: int = 0
    damaged: int = 0


def read(path: Path, wanted: bytes = b"", make: type[Curve] = Curve) -> Curves:
    """Reads the curves of a file; a missing file has none. An incomplete last line, which the run writes, is left out.

    Args:
      path: metrics.jsonl.
      wanted: rows without these bytes are left out, but for the last one; that is several times as fast.
      make: Curve, or Averaged.

    Raises:
      CorruptError: the file cannot be read.
    """
    curves = Curves()
    last = b""
    for line in lines(path):
        last = line
        if wanted in line:
            _add(curves, line, make)
    if last and wanted not in last:
        _add(curves, last, make)
    return curves


def _add(curves: Curves, line: bytes, make: type[Curve]) -> None:
    try:
        row = _row(line)
    except (RecursionError, TypeError, ValueError, LookupError):
        curves.damaged += line.endswith(b"\n")
        return
    step = row.pop("step")
    curves.last_step = max(curves.last_step, step)
    for name, value in row.items():
        curve = curves.of.get(name)
        if curve is None:
            curve = curves.of[name] = make()
        curve.add(step, value)


def _row(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("the line is not complete")
    row = json.loads(line)
    if type(row["step"]) is not int or not 0 <= row["step"] < 2**63:
        raise ValueError("it has no step")
    return {"step": row.pop("step"), **dict(_numbers(row))}


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if value is None:
            yield name, math.nan
        elif type(value) in (int, float):
            try:
                yield name, float(value)
            except OverflowError:
                yield name, math.inf
        else:
            raise ValueError(f"{name} is no number")

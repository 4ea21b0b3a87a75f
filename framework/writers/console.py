"""The console: a progress bar in a terminal, plain lines elsewhere.

writer = Console(total_steps=2344, steps_per_epoch=469)
writer.scalars(400, {'loss': 0.2134, 'accuracy': 0.934})
"""

import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from framework.writers.base import Writer

_COLUMNS, _BAR = 80, 11  # of a line of the console; of these, percentage and bar in a terminal
_SPACE = "  "
_QUIET_SECONDS = 2.0  # between two lines of training rows, so that a short run does not fill the screen
_SHORTEST = 4  # characters of a name that is cut
_MEAN = "mean/"
_SHOWN_WAIT = 0.01  # a smaller share of waiting for data is left out
_COUNTS = ("skipped", "empty_terms")
_NOT_METRICS = {"loss", "learning_rate", "examples_per_second", "tokens_per_second", "data_wait", *_COUNTS}


class Console(Writer):
    """Shows the layers of the model, and then a progress bar in a terminal or plain lines of at most 80 columns.

        step 400/2344  epoch 0.85  loss 0.2134  accuracy 0.934  12,345 examples/s  eta 0:00:05

    Evaluations have lines of their own. If a row has means over the steps since the last row (`mean/…`), they are shown
    as loss and metrics. Names that do not fit are shortened or left out; metrics.jsonl has everything.

    Args:
      total_steps: of the whole run.
      start_step: the step at which this process begins.
      stream: what the lines are written to; standard error if None.
      clock: returns seconds, for the time left.
      steps_per_epoch: None shows no epoch.
      style: 'auto' for a bar in a terminal, and elsewhere a line for the first and last row and at most one in two
        seconds between them; 'plain' for a line for each row; 'quiet' for no line.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        steps_per_epoch: float | None = None,
        style: str = "auto",
    ) -> None:
        self._is_quiet, self._pause = style == "quiet", _QUIET_SECONDS if style == "auto" else 0.0
        self._last_line = -math.inf  # the time of it
        self._total, self._clock, self._epoch = total_steps, clock, steps_per_epoch
        self._stream = stream if stream is not None else sys.stderr
        self._first: tuple[int, float] | None = None  # step and time of the first training row
        self._bar: Any = None
        if style == "auto" and self._stream.isatty():
            layout = f"{{percentage:3.0f}}%|{{bar:{_BAR - 7}}}| {{desc}}"
            options = {"bar_format": layout, "dynamic_ncols": True, "mininterval": 0}
            self._bar = tqdm(total=total_steps, initial=start_step, file=self._stream, **options)

    def layers(self, table: str) -> None:
        if not self._is_quiet:
            self._write(f"{table}\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._is_quiet:
            return
        if any(name.startswith("eval/") for name in values):
            lines = _wrapped([f"step {step}/{self._total}"], [_item(*pair) for pair in values.items()])
            for line in lines:
                self._write(line)
            return
        left = self._time_left(step)
        if self._bar is None and step < self._total and self._clock() - self._last_line < self._pause:
            return
        self._last_line = self._clock()
        width = _COLUMNS if self._bar is None else _COLUMNS - _BAR
        line = _fitted(self._begin(step), values, left, width)
        if self._bar is None:
            self._write(line)
        else:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(step - self._bar.n)
            self._bar.refresh()

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self.flush()

    def _write(self, text: str) -> None:
        self._stream.write(f"{text}\n") if self._bar is None else self._bar.write(text, file=self._stream)

    def _begin(self, step: int) -> list[str]:
        epoch = [] if self._epoch is None else [f"epoch {step / self._epoch:.2f}"]
        return [f"step {step}/{self._total}", *epoch]

    def _time_left(self, step: int) -> list[str]:
        """Returns ['eta 0:00:05'], by the pace since the first row; [] for the first row, which has compiled."""
        now = self._clock()
        if self._first is None:
            self._first = step, now
            return []
        first_step, first_time = self._first
        seconds = (now - first_time) / max(1, step - first_step) * (self._total - step)
        left = datetime.timedelta(seconds=round(seconds))
        hours, minutes = divmod(left.seconds // 60, 60)
        return [f"eta {left.days}d {hours}:{minutes:02}" if left.days else f"eta {left}"]


def _fitted(begin: Sequence[str], values: Mapping[str, float], end: Sequence[str], width: int) -> str:
    """Returns a line of at most `width` columns: step, loss, counts above zero, time left, and what else fits.

    Metrics come first, with shortened names if need be, then the wait for data, speed, learning rate, and the terms of
    the loss.
    """
    means = {name.removeprefix(_MEAN): value for name, value in values.items() if name.startswith(_MEAN)}
    shown = means or values
    begin = [*begin, *(_item(name, shown[name]) for name in ("loss",) if name in shown)]
    counts = [_item(name, values[name]) for name in _COUNTS if values.get(name)]
    end = [*(counts if len(_SPACE.join([*begin, *counts, *end])) <= width else ()), *end]
    metrics = {name: value for name, value in shown.items() if name not in _NOT_METRICS and "loss/" not in name}
    names = _shortened(metrics, width - len(_SPACE.join([*begin, *end])))
    middle = [_item(names[name], value) for name, value in metrics.items() if name in names]
    if len(names) < len(metrics):
        middle.append(f"+{len(metrics) - len(names)}")
    rate = values.get("examples_per_second", math.nan)
    wait = values.get("data_wait", 0.0)
    further = [f"{100 * wait:.0f} % waiting for data"] if wait >= _SHOWN_WAIT else []
    further += [f"{rate:,.0f} examples/s"] if math.isfinite(rate) else []
    further += [_item(name, value) for name, value in values.items() if name.startswith("learning_rate")]
    further += [_item(name, value) for name, value in shown.items() if "loss/" in name]
    for text in further:
        if len(_SPACE.join([*begin, *middle, text, *end])) <= width:
            middle.append(text)
    return _SPACE.join([*begin, *middle, *end])[:width]


def _shortened(metrics: Mapping[str, float], room: int) -> dict[str, str]:
    """Returns {name: shown name}: names are cut to fit; if too little would be left of them, the last ones go."""
    for count in range(len(metrics), 0, -1):
        kept = dict(list(metrics.items())[:count])
        left = room if count == len(metrics) else room - len(f"{_SPACE}+{len(metrics) - count}")
        for most in range(max(map(len, kept)), _SHORTEST - 1, -1):
            names = {name: _cut(name, most) for name in kept}
            if sum(len(_SPACE + _item(names[name], value)) for name, value in kept.items()) <= left:
                return names
    return {}


def _wrapped(begin: Sequence[str], items: Sequence[str]) -> Iterator[str]:
    """Yields lines of at most 80 columns with all items; each line starts with `begin`."""
    line = list(begin)
    for item in items:
        if len(line) > len(begin) and len(_SPACE.join([*line, item])) > _COLUMNS:
            yield _SPACE.join(line)
            line = list(begin)
        name, _, value = item.rpartition(" ")
        line.append(f"{_cut(name, _COLUMNS - len(_SPACE.join([*line, f' {value}'])) - len(_SPACE))} {value}")
    yield _SPACE.join(line)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _item(name: str, value: float) -> str:
    return f"{name} {value:{'.2e' if name.startswith('learning_rate') else '.4g'}}"

"""*Where* numbers go: a JSON lines file, the console and TensorBoard (`tensorboard.py`), each taking the same calls.

    curves = AsyncWriter(TensorBoard('run/tensorboard', start))        # in a thread of its own
    with MultiWriter([Jsonl('run/metrics.jsonl', start), curves, Console(2344)]) as writer:
        writer.scalars(400, {'loss': 0.2134, 'learning_rate': 1e-3, 'examples_per_second': 12345.0})
        writer.scalars(469, {'eval/test/loss': 0.1234})       # eval/<split>/<metric>
        writer.histograms(469, {'weights/dense/kernel': kernel})

A run that resumes says at which step: what an interrupted run wrote beyond it is dropped, since it will be written
again. NaN and infinity are values like others; no writer raises because of them.
"""

import datetime
import errno
import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from framework.errors import RunError
from framework.files import CorruptError, lines_and_rows, write_bytes

_BEHIND = 8  # calls that may wait for their writer
_COLUMNS, _BAR = 80, 11  # of a line of the console; of these, percentage and bar in a terminal
_SPACE = "  "
_SHORTEST = 4  # characters of a name that is cut
_MEAN = "mean/"
_COUNTS = ("skipped", "empty_terms")
_NOT_METRICS = {"loss", "learning_rate", "examples_per_second", *_COUNTS}


class Writer:
    """What hooks write to. Subclasses override what they can show; the rest does nothing."""

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row of numbers; those of an evaluation are named 'eval/<split>/<metric>'."""

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Distributions by name, e.g. 'weights/dense/kernel'; arrays of any shape."""

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Pictures [n, height, width] or [n, height, width, 1 | 3 | 4]: uint8, or float from 0 to 1."""

    def graph(self, graph: tf.Graph) -> None:
        """The graph of the model or step; once a run."""

    def text(self, step: int, name: str, text: str) -> None:
        """Markdown."""

    def flush(self) -> None:
        """Returns when what was written is on disk."""

    def close(self) -> None:
        """Flushes and ends."""


class MultiWriter:
    """Hands every call to each of `writers`, in order; a context that closes them.

    Args:
      writers: what is written to.
      on_error: what a full or failing disk leads to: 'stop' raises RunError, 'continue' only says so, each time.
    """

    def __init__(self, writers: Sequence[Writer], on_error: str = "stop") -> None:
        self._writers, self._goes_on = tuple(writers), on_error == "continue"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda writer: writer.scalars(step, values))

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._each(lambda writer: writer.histograms(step, arrays))

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        self._each(lambda writer: writer.images(step, name, images))

    def graph(self, graph: tf.Graph) -> None:
        self._each(lambda writer: writer.graph(graph))

    def text(self, step: int, name: str, text: str) -> None:
        self._each(lambda writer: writer.text(step, name, text))

    def flush(self) -> None:
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        self._each(lambda writer: writer.close())

    def __enter__(self) -> "MultiWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._goes_on = self._goes_on or kind is not None  # the first error is the one to be seen
        self.close()

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in self._writers:
            try:
                call(writer)
            except (OSError, tf.errors.OpError) as error:
                message = f"{writer.name} cannot write: {' '.join(str(error).split())}."
                if not self._goes_on:
                    raise RunError(f"{message} Mend that and type the same command again.") from error
                logging.error("%s", message)


class AsyncWriter(Writer):
    """Hands every call to `writer` in a thread of its own, in order: training goes on meanwhile.

    What is handed over must not be changed afterwards. An error is raised by the call after the one that it is of; by
    `flush` or `close`, which wait, at the latest.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        # Who is so many calls behind is waited for: arrays of histograms must not pile up.
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_BEHIND)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def name(self) -> str:
        return self._writer.name

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._later(lambda: self._writer.scalars(step, values))

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._later(lambda: self._writer.histograms(step, arrays))

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        self._later(lambda: self._writer.images(step, name, images))

    def graph(self, graph: tf.Graph) -> None:
        self._later(lambda: self._writer.graph(graph))

    def text(self, step: int, name: str, text: str) -> None:
        self._later(lambda: self._writer.text(step, name, text))

    def flush(self) -> None:
        self._calls.join()
        self._raise()
        self._writer.flush()

    def close(self) -> None:
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None
        try:
            self._raise()
        finally:
            self._writer.close()

    def _later(self, call: Callable[[], None]) -> None:
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="writer")
            self._thread.start()
        self._calls.put(call)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                self._error = self._error or error
            finally:
                self._calls.task_done()
        self._calls.task_done()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


class Jsonl(Writer):
    """One JSON object a row: {"step": 400, "loss": 0.2134, …}; NaN and infinity are null.

    Args:
      path: of the file, which is appended to.
      resume_step: rows beyond this step are dropped, all of them at 0; None keeps the file. A torn last line goes.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self._path = Path(path)
        if self._path.exists():
            kept, before = _kept_lines(self._path, resume_step), self._path.stat().st_size
            if len(kept) != before:
                write_bytes(self._path.resolve(), kept)  # a link stays one
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        row: dict[str, float | None] = {"step": int(step)}
        for name, value in values.items():
            row[name] = float(value) if math.isfinite(value) else None
        self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Waits until all rows are on disk.

        Raises:
          OSError: also if the file was deleted meanwhile, and the rows with it.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
            raise OSError(errno.EIO, "deleted or replaced while the run was writing it", str(self._path))

    def close(self) -> None:
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()


class Console(Writer):
    """A progress bar in a terminal, a plain line a row elsewhere, of 80 columns at most.

        step 400/2344  epoch 0.85  loss 0.2134  accuracy 0.934  12,345 examples/s  eta 0:00:05

    Loss and metrics are the means over the steps since the last row (`mean/…`) where a row has them. What does not fit
    is shortened or left out; metrics.jsonl has all of it.

    Args:
      total_steps: of the whole run.
      start_step: where this process begins; not counted as progress of its own.
      stream: where to; standard error if None.
      clock: seconds, for the time left.
      steps_per_epoch: None shows no epoch.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        steps_per_epoch: float | None = None,
    ) -> None:
        self._total, self._clock, self._epoch = total_steps, clock, steps_per_epoch
        self._stream = stream if stream is not None else sys.stderr
        self._first: tuple[int, float] | None = None  # step and time of the first training row
        self._bar: Any = None
        if self._stream.isatty():
            layout = f"{{percentage:3.0f}}%|{{bar:{_BAR - 7}}}| {{desc}}"
            options = {"bar_format": layout, "dynamic_ncols": True, "mininterval": 0}
            self._bar = tqdm(total=total_steps, initial=start_step, file=self._stream, **options)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if any(name.startswith("eval/") for name in values):
            lines = _wrapped([f"step {step}/{self._total}"], [_item(*pair) for pair in values.items()])
            for line in lines:
                self._stream.write(f"{line}\n") if self._bar is None else self._bar.write(line, file=self._stream)
            return
        width = _COLUMNS if self._bar is None else _COLUMNS - _BAR
        line = _fitted(self._begin(step), values, self._time_left(step), width)
        if self._bar is None:
            self._stream.write(f"{line}\n")
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

    def _begin(self, step: int) -> list[str]:
        epoch = [] if self._epoch is None else [f"epoch {step / self._epoch:.2f}"]
        return [f"step {step}/{self._total}", *epoch]

    def _time_left(self, step: int) -> list[str]:
        """['eta 0:00:05'], by the pace since the first row, before which the step was compiled; [] for that row."""
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
    """A line of at most `width` columns: step, loss, counts that are not zero, time left, and what there is room for.

    Metrics come first, with shortened names if need be, then speed, learning rate, and the terms of the loss.
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
    further = [f"{rate:,.0f} examples/s"] if math.isfinite(rate) else []
    further += [_item(name, value) for name, value in values.items() if name.startswith("learning_rate")]
    further += [_item(name, value) for name, value in shown.items() if "loss/" in name]
    for text in further:
        if len(_SPACE.join([*begin, *middle, text, *end])) <= width:
            middle.append(text)
    return _SPACE.join([*begin, *middle, *end])[:width]


def _shortened(metrics: Mapping[str, float], room: int) -> dict[str, str]:
    """{name: as it is shown}: cut if they fit then; without the last ones if too little would be left of names."""
    for count in range(len(metrics), 0, -1):
        kept = dict(list(metrics.items())[:count])
        left = room if count == len(metrics) else room - len(f"{_SPACE}+{len(metrics) - count}")
        for most in range(max(map(len, kept)), _SHORTEST - 1, -1):
            names = {name: _cut(name, most) for name in kept}
            if sum(len(_SPACE + _item(names[name], value)) for name, value in kept.items()) <= left:
                return names
    return {}


def _wrapped(begin: Sequence[str], items: Sequence[str]) -> Iterator[str]:
    """Lines of at most 80 columns that have all items; each line begins alike."""
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


def _kept_lines(path: Path, resume_step: int | None) -> bytes:
    """All rows up to the last one at or before the step; what is damaged among them is left out."""
    try:
        found = lines_and_rows(path)
    except CorruptError as error:
        raise RunError(f"{path} cannot be read: {error}. Mend that and type the same command again.") from error
    is_kept = [resume_step is None or 0 < row["step"] <= resume_step for _, row in found]
    last = max((place for place, kept in enumerate(is_kept) if kept), default=-1)
    if odd := is_kept[: last + 1].count(False):
        logging.warning("%s: %d rows of steps that the run has not come to are left out", path, odd)
    return b"".join(line for (line, _), kept in zip(found, is_kept, strict=True) if kept)

"""*Where* numbers go: a JSON lines file, the console and TensorBoard (`tensorboard.py`), each taking the same calls.

    curves = Behind(TensorBoard('run/tensorboard', start))        # in a thread of its own
    with Writers([Jsonl('run/metrics.jsonl', start), curves, Console(2344)]) as writer:
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

from framework.config import RunError
from framework.files import DamagedError, lines_and_rows, write_bytes

_BEHIND = 8  # calls that may wait for their writer


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


class Writers:
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

    def __enter__(self) -> "Writers":
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


class Behind(Writer):
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
    """A progress bar in a terminal, a plain line a row elsewhere.

        step 400/2344  loss 0.2134  learning_rate 1.00e-03  12,345 examples/s  eta 0:00:05

    Args:
      total_steps: of the whole run.
      start_step: where this process begins; not counted as progress of its own.
      stream: where to; standard error if None.
      clock: seconds, for the time left.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._clock = total_steps, clock
        self._stream = stream if stream is not None else sys.stderr
        self._first: tuple[int, float] | None = None  # step and time of the first training row
        self._bar: Any = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps, initial=start_step, file=self._stream, unit="step", dynamic_ncols=True, mininterval=0
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        is_evaluation = any(name.startswith("eval/") for name in values)
        if self._bar is None:
            left = [] if is_evaluation else self._time_left(step)
            self._stream.write("  ".join([f"step {step}/{self._total}", *_shown(values), *left]) + "\n")
        elif is_evaluation:
            self._bar.write("  ".join([f"step {step}/{self._total}", *_shown(values)]), file=self._stream)
        else:
            self._bar.set_postfix_str("  ".join(_shown(values)), refresh=False)
            self._bar.update(step - self._bar.n)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self.flush()

    def _time_left(self, step: int) -> list[str]:
        """['eta 0:00:05'], by the pace since the first row, before which the step was compiled; [] for that row."""
        now = self._clock()
        if self._first is None:
            self._first = step, now
            return []
        first_step, first_time = self._first
        seconds = (now - first_time) / max(1, step - first_step) * (self._total - step)
        return [f"eta {datetime.timedelta(seconds=round(seconds))}"]


def _shown(values: Mapping[str, float]) -> Iterator[str]:
    for name, value in values.items():
        if name == "examples_per_second":
            yield f"{value:,.0f} examples/s"
        else:
            yield f"{name} {value:{'.2e' if name.endswith('learning_rate') else '.4g'}}"


def _kept_lines(path: Path, resume_step: int | None) -> bytes:
    """All rows up to the last one at or before the step; what is damaged among them is left out."""
    try:
        found = lines_and_rows(path)
    except DamagedError as error:
        raise RunError(f"{path} cannot be read: {error}. Mend that and type the same command again.") from error
    is_kept = [resume_step is None or 0 < row["step"] <= resume_step for _, row in found]
    last = max((place for place, kept in enumerate(is_kept) if kept), default=-1)
    if odd := is_kept[: last + 1].count(False):
        logging.warning("%s: %d rows of steps that the run has not come to are left out", path, odd)
    return b"".join(line for (line, _), kept in zip(found, is_kept, strict=True) if kept)

"""*Where* numbers go: each writer takes the same calls.

    curves = AsyncWriter(TensorBoard('run/tensorboard', start))        # in a thread of its own
    with MultiWriter([Jsonl('run/metrics.jsonl', start), curves, Console(2344)]) as writer:
        writer.scalars(400, {'loss': 0.2134, 'learning_rate': 1e-3, 'examples_per_second': 12345.0})
        writer.scalars(469, {'eval/test/loss': 0.1234})       # eval/<split>/<metric>
        writer.histograms(469, {'weights/dense/kernel': kernel})

A run that resumes says at which step: what an interrupted run wrote beyond it is dropped, since it will be written
again. NaN and infinity are values like others; no writer raises because of them.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import numpy as np
import tensorflow as tf
from absl import logging

from framework.errors import RunError

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

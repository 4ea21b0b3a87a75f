"""Reads of a source that are tried again when the disk or network fails.

    reader = RetryingReader(retries=3, wait_seconds=1.0)
    reader.read(source, indices, step=12)           # source.take(indices); DataError after the last try

What tf.data makes of an exception has lost its type. `failure` has it: of the first step whose batch failed. A reader
belongs to one tf.data iterator.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np
from absl import logging

from framework.data.sources import Source
from framework.errors import DataError


class RetryingReader:
    """Reads, from any thread.

    Args:
      retries: after the first try; only OSError is tried again, all else is a mistake of the source's code.
      wait_seconds: before the first retry; twice as long before each further one.
      wait: called with seconds; by default it waits so long, or until `stop`.
    """

    def __init__(self, retries: int, wait_seconds: float, wait: Callable[[float], object] | None = None) -> None:
        self._retries, self._seconds = retries, wait_seconds
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._failures: dict[int, BaseException] = {}

    def read(self, source: Source, indices: np.ndarray, step: int) -> dict[str, np.ndarray]:
        """`source.take(indices)` for the batch of a step.

        Raises:
          DataError: it failed every time. Other exceptions than OSError pass through.
        """
        with self.noting(step):
            return self._tried(source, indices, step)

    @contextlib.contextmanager
    def noting(self, step: int) -> Iterator[None]:
        """Keeps what is raised inside for the batch of a step, for `failure`."""
        try:
            yield
        except Exception as error:
            self._failures[step] = error
            raise

    def _tried(self, source: Source, indices: np.ndarray, step: int) -> dict[str, np.ndarray]:
        for retry in range(self._retries + 1):
            try:
                return source.take(indices)
            except OSError as error:
                shown = f"batch {step} of '{source.origin}' could not be read"
                if retry == self._retries or self._stopped.is_set():
                    raise DataError(f"{shown} in {retry + 1} tries: {type(error).__name__}: {error}.") from error
                seconds = self._seconds * 2**retry
                logging.warning("%s: %s; retry %d of %d in %g s", shown, error, retry + 1, self._retries, seconds)
                self._wait(seconds)
        raise AssertionError("the last try returns or raises")

    def failure(self) -> BaseException | None:
        """What was raised for the first of the steps that failed; None if none did."""
        return self._failures[min(self._failures)] if self._failures else None

    def stop(self) -> None:
        """Ends all waiting: who waits tries once more and gives up."""
        self._stopped.set()

"""Reading a source: a read that fails because of the disk or the network is tried again.

    reader = RetryingReader(retries=3, wait_seconds=1.0)
    reader.read(source, indices, step=12)           # source.take(indices); DataError after the last try
    reader.failure()                                # the exception of the first step that failed

tf.data turns an exception into one of its own, without the type; `failure` keeps the original. A reader belongs to one
tf.data iterator.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from absl import logging

from framework.data.sources import IndexedSource
from framework.errors import DataError

T = TypeVar("T")


class RetryingReader:
    """Reads from sources and retries; may be used from several threads.

    Args:
      retries: tries after the first one. Only a read that raises OSError is tried again: any other exception is a
        mistake in the source.
      wait_seconds: wait before the first retry; each further wait is twice as long.
      wait: function that waits so many seconds; the default returns early when `stop` is called.
    """

    def __init__(self, retries: int, wait_seconds: float, wait: Callable[[float], object] | None = None) -> None:
        self._retries = retries
        self._wait_seconds = wait_seconds
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._failures: dict[int, BaseException] = {}

    def read(self, source: IndexedSource, indices: np.ndarray, step: int) -> dict[str, np.ndarray]:
        """Returns `source.take(indices)` for the batch of a step.

        Raises:
          DataError: every try failed. Exceptions other than OSError pass through.
        """
        with self.noting(step):
            return self._retried(lambda: source.take(indices), f"batch {step} of '{source.origin}'")

    def learn(self, source: IndexedSource, read: Callable[[IndexedSource], T]) -> T:
        """Returns what `read` says of a source before its first batch.

        Raises:
          DataError: every try failed. Exceptions other than OSError pass through.
        """
        return self._retried(lambda: read(source), f"'{source.origin}'")

    @contextlib.contextmanager
    def noting(self, step: int) -> Iterator[None]:
        """Remembers an exception that is raised inside as that of a step; `failure` returns it."""
        try:
            yield
        except Exception as error:
            self._failures[step] = error
            raise

    def _retried(self, read: Callable[[], T], what: str) -> T:
        shown = f"{what} could not be read"
        for retry in range(self._retries + 1):
            try:
                return read()
            except OSError as error:
                if retry == self._retries or self._stopped.is_set():
                    raise DataError(f"{shown} in {retry + 1} tries: {type(error).__name__}: {error}.") from error
                seconds = self._wait_seconds * 2**retry
                logging.warning("%s: %s; retry %d of %d in %g s", shown, error, retry + 1, self._retries, seconds)
                self._wait(seconds)
        raise AssertionError("the last try returns or raises")

    def failure(self) -> BaseException | None:
        """Returns the exception of the earliest step that failed, or None."""
        return self._failures[min(self._failures)] if self._failures else None

    def stop(self) -> None:
        """Ends all waits: a read that is waiting tries once more, then gives up."""
        self._stopped.set()

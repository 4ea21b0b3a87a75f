"""Signals that ask a run to stop.

with Interrupt() as interrupt:
    while not interrupt.is_requested:
        ...                               # one block
"""

import signal
import threading
from types import FrameType
from typing import Any

from absl import logging


class Interrupt:
    """While open, turns the first SIGTERM or SIGINT into a request; the second signal has its usual effect.

    Python allows signal handlers in the main thread only: in other threads signals keep their effect.

    Attributes:
      is_requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True
        logging.warning("%s: finishing the block and saving; once more ends at once", signal.Signals(number).name)
        self._restore()

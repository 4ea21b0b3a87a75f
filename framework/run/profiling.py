"""Writes a profiler trace of some steps (`profile.steps`), which the profile plugin of TensorBoard shows.

    with Profiler(run) as profiler:
        profiler.begin(step)                         # where a segment of the run starts
        while step < total:
            length = min(length, profiler.next_step(step) - step)
            with profiler.around(step, length):
                train_block(length)

The trace begins before a block and ends after one, so that it holds whole steps; each block is an event 'train' with
`step_num`, its last step. The profiler observes: it changes no number.
"""

import contextlib
import sys
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from framework.config.keys.profile import borders
from framework.errors import UserError
from framework.folder import CURVES
from framework.run.run import Run


class Profiler:
    """The profiler of a run; a context at whose end the trace is written, if one is under way.

    Raises:
      UserError: `profile.steps` goes past the end of the run.
    """

    def __init__(self, run: Run) -> None:
        steps = run.resolved.profile.steps
        self._folder = run.workdir / CURVES
        asked = borders(steps)
        self._first = self._last = 0
        self._is_on = False
        if asked and asked[1] > run.total_steps:  # on each worker, or the others would wait for the chief
            raise UserError(
                f"profile.steps='{steps}' goes past step {run.total_steps}, the end of the run. Use a smaller"
                " --config.profile.steps=A:B, or a longer run."
            )
        self._asked = asked if run.replicas.is_chief else None

    def begin(self, step: int) -> None:
        """Takes the step at which the run starts, resumes or to which it went back.

        The next block compiles, so the trace begins one step later at the earliest.
        """
        self.stop()
        if self._asked:
            self._first, self._last = max(self._asked[0], step + 1), self._asked[1]
            if self._first >= self._last:
                self._first = self._last = 0
                logging.warning("profile.steps=%d:%d: the run is past these steps, so there is no trace", *self._asked)

    def next_step(self, step: int) -> int:
        """Returns the next step at which a block must end; one far away if there is none."""
        return next((border for border in (self._first, self._last) if step < border), sys.maxsize)

    @contextlib.contextmanager
    def around(self, step: int, length: int) -> Iterator[None]:
        """While open, a block of `length` steps after `step` is trained; traced if it is in the borders."""
        if not self._first <= step < self._last:
            yield
            return
        if not self._is_on:
            self._start(step)
        with tf.profiler.experimental.Trace("train", step_num=step + length, _r=1):
            yield
        if step + length >= self._last:
            self.stop()

    def _start(self, step: int) -> None:
        try:
            tf.profiler.experimental.start(str(self._folder))
        except tf.errors.AlreadyExistsError as error:
            raise UserError(
                "profile.steps: another profiler is running in this process. Type tf.profiler.experimental.stop(), or"
                " leave the key out."
            ) from error
        self._is_on, self._first = True, step

    def stop(self) -> None:
        """Writes the trace, if one is under way. A disk that fails costs the trace, not the run."""
        if not self._is_on:
            return
        self._is_on = False
        try:
            tf.profiler.experimental.stop()
        except tf.errors.OpError as error:
            logging.error("the profiler trace cannot be written: %s", error.message)
            return
        logging.info(
            "the steps after step %d are traced: tensorboard --logdir %s (pip install xprof adds its tab Profile)",
            self._first,
            self._folder,
        )

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

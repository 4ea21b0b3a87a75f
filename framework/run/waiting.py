"""Warns once if training waits for its data.

warn_of_waiting(run, progress)      # "training waited for data 34 % of its time. Prepare more batches at a time …"
"""

from absl import logging

from framework.run.progress import Progress
from framework.run.run import Run

LONG_WAIT = 0.05  # share of the training time
_SECONDS = 2.0  # training time before the share says anything: the first batches of a stream are always waited for


def warn_of_waiting(run: Run, progress: Progress) -> None:
    """Logs a warning, once a process, if so far training waited for streamed batches more than 5 % of its time."""
    total = progress.total
    if progress.is_wait_told or total.seconds < _SECONDS or not total.data_wait > LONG_WAIT:
        return
    progress.is_wait_told = True
    logging.warning(
        "training waited for data %.0f %% of its time. %s",
        100 * total.data_wait,
        getattr(run.data, "advice", "Make `plan` of the batches faster."),
    )

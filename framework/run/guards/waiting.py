"""Warns if training waits for its data.

Waiting(run, progress).look(block)      # "training waited for data 34 % of its time. Prepare more batches at a time …"
"""

from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block

LONG_WAIT = 0.05  # share of the training time
_SECONDS = 2.0  # training time before the share says anything: the first batches of a stream are always waited for


class Waiting:
    """Rule: after two seconds of training, more than 5 % of the time went into waiting for streamed batches."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._data, self._progress = run.data, progress

    def look(self, block: Block) -> str:
        """Returns the warning; '' while there is none."""
        total = self._progress.total
        if total.seconds < _SECONDS or not total.data_wait > LONG_WAIT:
            return ""
        advice = getattr(self._data, "advice", "Make `plan` of the batches faster.")
        return f"training waited for data {100 * total.data_wait:.0f} % of its time. {advice}"

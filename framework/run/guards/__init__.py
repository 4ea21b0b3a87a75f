"""Warnings while a run trains: each is one line, told once a process, and says what to do.

    guards = Guards(run, progress)
    guards.begin()                      # at the start, and after going back before a step that was not finite
    guards.look(block)                  # after each block

| file | warns of |
|---|---|
| `waiting.py` | training that waits for streamed batches, and how long |
| `retracing.py` | a step or an evaluation that is traced or compiled again, and which argument changed |
| `memory.py` | memory that grows steadily and would be full before the end |
| `loss_scale.py` | steps that overflow float16 at any loss scale |
| `learning.py` | a loss that has not fallen since the first step |
| `spikes.py` | a loss far above the recent ones, with the command that replays its step |

The class of each states its rule. A guard reads the numbers that a block reports anyway and changes none. What it has
seen is not saved: a run that goes on starts to look anew.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from absl import logging

from framework.run.guards.learning import NotLearning
from framework.run.guards.loss_scale import StuckScale
from framework.run.guards.memory import Leak
from framework.run.guards.retracing import Retracing
from framework.run.guards.spikes import Spikes
from framework.run.guards.waiting import Waiting
from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block


class Guard(Protocol):
    """Looks at each block until it has something to say."""

    def look(self, block: Block) -> str: ...


_OF_EACH_WORKER: tuple[Callable[[Run, Progress], Guard], ...] = (Waiting, Leak)
_OF_THE_CHIEF: tuple[Callable[[Run, Progress], Guard], ...] = (
    Retracing,
    StuckScale,
    Spikes,
    NotLearning,
)  # the same on all


class Guards:
    """The guards of a process at work."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._left = list(_OF_EACH_WORKER + (_OF_THE_CHIEF if run.replicas.is_chief else ()))
        self._guards: Mapping[Callable[[Run, Progress], Guard], Guard] = {}

    def begin(self) -> None:
        """Makes the guards forget what they have seen, but for what they have told."""
        self._guards = {make: make(self._run, self._progress) for make in self._left}

    def look(self, block: Block) -> None:
        """Logs what the guards say of the newest block."""
        for make in tuple(self._left):
            if warning := self._guards[make].look(block):
                self._left.remove(make)
                logging.warning("%s", warning)

"""The progress of a run: time, speed and evaluations, carried across interruptions by the note of a checkpoint.

    progress = Progress(batch_size=128, started=time.monotonic(), note=run.note, modes={'test/loss': 'min'})
    block = progress.timed(train_block, k)
    progress.lap()                   # speed and share of waiting since the last lap
    progress.observe(469, {'test/loss': 0.07})
    checkpoints.save(state, progress.note())

Times are in seconds; the time of a run is the sum over its starts.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging

# Numbers of a row that no two runs share.
TIMES = ("examples_per_second", "tokens_per_second", "data_wait")
# A number of all steps since the last row.
PADDING = "padding"


@dataclasses.dataclass(frozen=True)
class Spent:
    """The time that some training steps took, in seconds.

    Attributes:
      steps: how many.
      seconds: of all of them.
      waited: of these, seconds in which the devices waited for streamed batches.
    """

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def data_wait(self) -> float:
        """The share of the time that was waited for data, from 0 to 1; NaN if there was no time."""
        return self.waited / self.seconds if self.seconds else math.nan

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.steps + other.steps, self.seconds + other.seconds, self.waited + other.waited)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.steps - other.steps, self.seconds - other.seconds, self.waited - other.waited)


class Progress:
    """What result.json and the log report beside the state.

    Args:
      batch_size: examples of a step, in the mean.
      started: `time.monotonic()` when this process started the run.
      note: what `note()` returned for the checkpoint that was restored; {} for a new run.
      modes: {metric: 'min' or 'max'}: which values are better.
      clock: returns seconds; `started` was read from it.

    Attributes:
      trained: {'loss': mean, …} of the newest row, which is of step `trained_step`.
      evaluations: {'split/metric': value} of the newest evaluation, which is of step `evaluated_step`.
      best: {'split/metric': the best value so far}; best_steps: {'split/metric': the step of that value}.
      time_to_first_step: seconds from `started` to the end of the first step; None before it.
    """

    def __init__(
        self,
        batch_size: float,
        started: float,
        note: Mapping[str, Any],
        modes: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.go_back(note)
        self.time_to_first_step: float | None = None
        self._batch_size, self._started, self._modes, self._clock = batch_size, started, modes, clock
        self._before = float(note.get("wall_seconds", 0.0))
        self._total = self._lap_start = Spent()
        self._phases: dict[str, float] = {}
        self._seconds = {part: float(seconds) for part, seconds in note.get("seconds", {}).items()}

    def go_back(self, note: Mapping[str, Any]) -> None:
        """Takes rows and evaluations as the note of a checkpoint has them, and forgets later ones; time goes on."""
        self.trained: dict[str, float] = dict(note.get("trained", {}))
        self.trained_step: int | None = note.get("trained_step")
        self.evaluations: dict[str, float] = dict(note.get("evaluations", {}))
        self.evaluated_step: int | None = note.get("evaluated_step")
        self.best: dict[str, float] = dict(note.get("best", {}))
        self.best_steps: dict[str, int] = dict(note.get("best_steps", {}))

    def passed(self, phase: str, compiling: float = 0.0) -> None:
        """Ends a phase that comes before the first step, such as 'building'.

        Args:
          phase: for the log.
          compiling: seconds of the phase in which the training step was compiled.
        """
        self._phases[phase] = self._clock() - self._started - sum(self._phases.values()) - compiling
        self._phases["compiling"] = self._phases.get("compiling", 0.0) + compiling
        self._spend(phase, self._phases[phase])
        self._spend("compiling", compiling)

    def timed(self, train_block: Callable[[int], Any], k: int) -> Any:
        """Runs a block of `k` steps and measures its time; what compiles does not count as speed: the first block, and
        the first steps of each bucket.
        """
        start = self._clock()
        block = train_block(k)
        if self.time_to_first_step is None:
            self.time_to_first_step = self._clock() - self._started
            self._spend("compiling", self._clock() - start)
            compiling = self._phases.pop("compiling", 0.0) + self._clock() - start
            phases = self._phases | {"compiling": compiling}
            shares = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
            logging.info("first step after %.1f s, of which %s", self.time_to_first_step, shares)
        else:
            steps, seconds = block.traced
            spent = Spent(k - steps, self._clock() - start - seconds, block.waited)
            self._total += spent
            for part, of_part in (("compiling", seconds), ("data_wait", spent.waited)):
                self._spend(part, of_part)
            self._spend("steps", spent.seconds - spent.waited)
        return block

    @contextlib.contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Adds the time of the context to a part of `seconds`, such as 'evaluate'."""
        start = self._clock()
        try:
            yield
        finally:
            self._spend(part, self._clock() - start)

    def _spend(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Returns where the time of the run went, over this process and those before it; the sum is `wall_seconds`.

        'building' and 'tuning' come before the first step; 'compiling' has the first block too; 'steps' are the other
        blocks but for 'data_wait', in which they waited for streamed batches; each hook has its name, an experiment's
        own 'hooks/<name>'; 'save' is what training waited for checkpoints; 'other' is the rest.
        """
        parts = {part: seconds for part, seconds in self._seconds.items() if part != "other"}
        return parts | {"other": self.wall_seconds() - sum(parts.values())}

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, over all blocks but the first; 0 before the second block."""
        return self._total.seconds / self._total.steps if self._total.steps else 0.0

    @property
    def total(self) -> "Spent":
        """The steps of this process but those of the first block, without evaluations and saves."""
        return self._total

    def lap(self) -> "Spent":
        """Returns the steps since the last lap and their time, without evaluations and saves."""
        lap = self._total - self._lap_start
        self._lap_start = self._total
        return lap

    def examples_per_second(self, spent: "Spent") -> float:
        """Returns examples per second of some steps; NaN if there were none."""
        return spent.steps * self._batch_size / spent.seconds if spent.steps else math.nan

    def observe(self, step: int, evaluations: Mapping[str, float]) -> None:
        """Takes the evaluation of a step; a value that is not finite, or has no mode, is never the best."""
        self.evaluations, self.evaluated_step = dict(evaluations), step
        for name, value in evaluations.items():
            better = min if self._modes.get(name) == "min" else max
            if math.isfinite(value) and name in self._modes:
                before = self.best.get(name)
                self.best[name] = better(value, value if before is None else before)
                if self.best[name] != before:
                    self.best_steps[name] = step

    def logged(self, step: int, means: Mapping[str, float]) -> None:
        """Takes the means of the row of a step."""
        self.trained, self.trained_step = dict(means), step

    def note(self) -> dict[str, Any]:
        """Returns what a checkpoint carries for the next start."""
        return {
            "wall_seconds": self.wall_seconds(),
            "seconds": self.seconds(),
            "trained": self.trained,
            "trained_step": self.trained_step,
            "evaluations": self.evaluations,
            "evaluated_step": self.evaluated_step,
            "best": self.best,
            "best_steps": self.best_steps,
        }

    def wall_seconds(self) -> float:
        """Returns the seconds of the run, over this process and those before it."""
        return self._before + self._clock() - self._started

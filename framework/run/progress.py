"""How far a run is: time, speed and the evaluations so far, carried across interruptions by the checkpoint's note.

    progress = Progress(batch_size=128, started=time.monotonic(), note=run.note, modes={'test/loss': 'min'})
    block = progress.timed(train_block, k)
    progress.lap()                   # examples per second since the last lap
    progress.observe(469, {'test/loss': 0.07})
    checkpoints.save(state, progress.note())

Times are in seconds; what a run has taken is the sum over its starts.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging


class Progress:
    """What result.json and the log say beside the state.

    Args:
      batch_size: examples of a step.
      started: `time.monotonic()` at the start of this process's part of the run.
      note: what `note()` gave to the checkpoint that was restored; {} for a new run.
      modes: {metric: 'min' or 'max'}, which values are better.
      clock: seconds; the one `started` was read from.

    Attributes:
      trained: {'loss': mean, …} of the newest row, that of `trained_step`.
      evaluations: {'split/metric': value} of the newest evaluation, that of `evaluated_step`; best: the best of each,
        and best_steps: where each was seen first.
      time_to_first_step: seconds from `started` to the end of the first step; None before it.
    """

    def __init__(
        self,
        batch_size: int,
        started: float,
        note: Mapping[str, Any],
        modes: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.go_back(note)
        self.time_to_first_step: float | None = None
        self._batch_size, self._started, self._modes, self._clock = batch_size, started, modes, clock
        self._before = float(note.get("wall_seconds", 0.0))
        self._lap_start = self._seconds = 0.0
        self._lap_first = self._steps = 0
        self._phases: dict[str, float] = {}

    def go_back(self, note: Mapping[str, Any]) -> None:
        """Takes rows and evaluations as the note of a checkpoint has them, and forgets later ones; time goes on."""
        self.trained: dict[str, float] = dict(note.get("trained", {}))
        self.trained_step: int | None = note.get("trained_step")
        self.evaluations: dict[str, float] = dict(note.get("evaluations", {}))
        self.evaluated_step: int | None = note.get("evaluated_step")
        self.best: dict[str, float] = dict(note.get("best", {}))
        self.best_steps: dict[str, int] = dict(note.get("best_steps", {}))

    def passed(self, phase: str, compiling: float = 0.0) -> None:
        """Something that comes before the first step, such as 'building', is done.

        Args:
          compiling: seconds of it that belong to compiling what is trained.
        """
        self._phases[phase] = self._clock() - self._started - sum(self._phases.values()) - compiling
        self._phases["compiling"] = self._phases.get("compiling", 0.0) + compiling

    def timed(self, train_block: Callable[[int], Any], k: int) -> Any:
        """Runs a block of `k` steps and takes its time; the first one compiles and is not counted as speed."""
        start = self._clock()
        block = train_block(k)
        if self.time_to_first_step is None:
            self.time_to_first_step = self._clock() - self._started
            compiling = self._phases.pop("compiling", 0.0) + self._clock() - start
            phases = self._phases | {"compiling": compiling}
            parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
            logging.info("first step after %.1f s, of which %s", self.time_to_first_step, parts)
        else:
            self._seconds += self._clock() - start
            self._steps += k
        return block

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, over all but the first block; 0 before there was another."""
        return self._seconds / self._steps if self._steps else 0.0

    def lap(self) -> float:
        """Examples per second of the steps since the last lap; evaluating and saving is not in it. NaN for no steps."""
        seconds, steps = self._seconds - self._lap_start, self._steps - self._lap_first
        self._lap_start, self._lap_first = self._seconds, self._steps
        return self._rate(seconds, steps)

    def examples_per_second(self) -> float:
        """Of all steps of this process but those of the first block; NaN for none."""
        return self._rate(self._seconds, self._steps)

    def observe(self, step: int, evaluations: Mapping[str, float]) -> None:
        """Takes the evaluation of a step; what is not finite, or has no mode, is never the best."""
        self.evaluations, self.evaluated_step = dict(evaluations), step
        for name, value in evaluations.items():
            better = min if self._modes.get(name) == "min" else max
            if math.isfinite(value) and name in self._modes:
                before = self.best.get(name)
                self.best[name] = better(value, value if before is None else before)
                if self.best[name] != before:
                    self.best_steps[name] = step

    def logged(self, step: int, means: Mapping[str, float]) -> None:
        """Takes the means of a row."""
        self.trained, self.trained_step = dict(means), step

    def note(self) -> dict[str, Any]:
        """What a checkpoint carries for the next start."""
        return {
            "wall_seconds": self.wall_seconds(),
            "trained": self.trained,
            "trained_step": self.trained_step,
            "evaluations": self.evaluations,
            "evaluated_step": self.evaluated_step,
            "best": self.best,
            "best_steps": self.best_steps,
        }

    def wall_seconds(self) -> float:
        """Of this process's part and of those before it."""
        return self._before + self._clock() - self._started

    def _rate(self, seconds: float, steps: int) -> float:
        return steps * self._batch_size / seconds if steps else math.nan

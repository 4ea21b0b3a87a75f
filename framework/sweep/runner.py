"""Hands the trials of a sweep to workers, reports their evaluations, and ends those that the pruner gives up.

    Runner(study, request, trials=20, parallel=2).run()

A trial's run folder is `trial-0007` in that of the sweep. Whatever ends the sweep, also `kill -9`, ends its workers.
The same command goes on: a trial that had begun resumes as the same trial, from its last checkpoint.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from framework import files, folder
from framework.errors import RunError, UserError
from framework.sweep.study import Study, Trial, begins
from framework.sweep.worker import Task, Worker

TRIAL = "trial-"  # of the name of a trial's run folder

_POLL_SECONDS = 0.05
_STOP_SECONDS = 120.0  # for workers that were asked to save
_FRUITLESS = 3  # the sweep gives up if so many trials fail before one is trained
_TRIALS_OF_A_WORKER = 25  # what XLA keeps of programs that are gone stays until a process ends


@dataclasses.dataclass(frozen=True)
class Request:
    """What all trials share.

    Attributes:
      config: the experiment, as --config names it.
      overrides: of the config, as typed; those of a trial come after them.
      workdir: the folder of the sweep.
    """

    config: str
    overrides: Sequence[str]
    workdir: Path

    def task(self, trial: Trial) -> Task:
        """Returns what a worker trains for a trial."""
        return Task(self.config, (*self.overrides, *trial.overrides), str(self.folder(trial.number)))

    def folder(self, number: int) -> Path:
        """Returns the run folder of a trial."""
        return self.workdir / f"{TRIAL}{number:04d}"


@dataclasses.dataclass
class _Running:
    """A trial in a worker."""

    trial: Trial
    worker: Worker
    lock: contextlib.ExitStack
    is_pruned: bool = False
    read: int = 0  # bytes that metrics.jsonl had when it was read


class Runner:
    """Runs the trials of a sweep.

    Args:
      study: of the sweep.
      request: what the trials share.
      trials: how many trials the sweep shall have in all, those that ended before among them.
      parallel: how many train at the same time.
      workers: that have started already.
      make_worker: starts another.
    """

    def __init__(
        self,
        study: Study,
        request: Request,
        trials: int,
        parallel: int,
        workers: Sequence[Worker] = (),
        make_worker: Callable[[], Worker] = Worker,
    ) -> None:
        self._study, self._request = study, request
        self._trials, self._parallel = trials, parallel
        self._make_worker = make_worker
        self._idle = list(workers)
        self._running: list[_Running] = []

    def run(self) -> None:
        """Runs trials until there are enough.

        Raises:
          UserError: the experiment's `sweep` or the values of the first trial are refused.
          RunError: the first trials failed; or the disk or the network did, which is no fault of a trial: it goes on
            with the same command.
        """
        waiting = self._study.unfinished()
        try:
            while self._fill(waiting) or self._running:
                for running in list(self._running):
                    self._look_at(running)
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            for worker in (*self._idle, *(running.worker for running in self._running)):
                worker.end()
            for running in self._running:
                running.lock.close()

    def _fill(self, waiting: list[Trial]) -> bool:
        """Gives trials to free places; returns whether there was one more."""
        while len(self._running) < self._parallel:
            trial = waiting.pop(0) if waiting else self._next()
            if trial is None:
                return False
            self._begin(trial)
        return True

    def _next(self) -> Trial | None:
        with begins(self._request.workdir):  # another process of the sweep counts the same trials
            return self._study.ask() if self._study.started < self._trials else None

    def _begin(self, trial: Trial) -> None:
        lock = contextlib.ExitStack()
        path = self._request.workdir / f"{TRIAL}{trial.number:04d}.lock"
        try:
            lock.enter_context(files.held(path, lambda holder: f"trial {trial.number} is trained by process {holder}"))
        except UserError as busy:
            logging.info("%s", busy)
            return
        if not self._study.is_unfinished(trial):
            lock.close()
            return
        worker = self._idle.pop() if self._idle and not self._needs_fresh(trial) else self._make_worker()
        logging.info("trial %d begins: %s", trial.number, " ".join(trial.overrides))
        worker.begin(self._request.task(trial))
        self._running.append(_Running(trial, worker, lock))

    def _needs_fresh(self, trial: Trial) -> bool:
        """Returns whether a trial changes what TensorFlow fixes at the start of a process."""
        return any(override.startswith("--config.runtime.") for override in trial.overrides)

    def _look_at(self, running: _Running) -> None:
        """Takes the answers of a worker, and reports new evaluations."""
        while (answer := running.worker.answer()) is not None:
            if "modes" not in answer:
                self._end(running, answer)
                return
        if not running.is_pruned and self._report(running):
            running.is_pruned = True
            running.worker.stop()

    def _report(self, running: _Running) -> bool:
        """Reports the evaluations that the study does not know; returns whether the trial shall end."""
        path = self._request.folder(running.trial.number) / folder.METRICS
        size = path.stat().st_size if path.exists() else 0
        if size == running.read:
            return False
        running.read = size
        ends = False
        for count, value in self._values(running.trial):
            if count > running.trial.reported:
                ends = self._study.report(running.trial, count, value) or ends
                running.trial = dataclasses.replace(running.trial, reported=count)
        return ends

    def _values(self, trial: Trial) -> Iterator[tuple[int, float]]:
        """Yields (evaluations so far, best value so far) after each evaluation of a trial, once there is a finite one.

        An evaluation that is not finite counts, or later ones would be compared with those of earlier steps.
        """
        plan = self._study.plan
        best = -math.inf if plan.mode == "max" else math.inf
        choose, name = max if plan.mode == "max" else min, f"eval/{plan.metric}"
        rows = files.rows(self._request.folder(trial.number) / folder.METRICS)
        for count, row in enumerate((row for row in rows if name in row), start=1):
            if isinstance(row[name], int | float) and math.isfinite(row[name]):
                best = choose(best, row[name])
            if math.isfinite(best):
                yield count, best

    def _end(self, running: _Running, answer: Mapping[str, Any]) -> None:
        """Notes how a trial ended.

        Raises:
          RunError: no trial has been trained, and too many have failed; or the machine failed, and not the trial.
        """
        # Else all trials that are left would fail as fast as they begin.
        if answer.get("is_of_machine") and not running.is_pruned:
            raise RunError(f"trial {running.trial.number}: {answer['error']}")
        self._report(running)
        self._running.remove(running)
        trial, worker = running.trial, running.worker
        if running.is_pruned and answer.get("status") in (None, "interrupted"):
            self._study.prune(trial)
            logging.info("trial %d is ended early, after %d evaluations", trial.number, trial.reported)
        elif "error" in answer:
            self._study.fail(trial, answer["error"])
            logging.warning("trial %d failed: %s", trial.number, answer["error"])
        elif answer["status"] == "interrupted":
            logging.info("trial %d was stopped at step %d and saved", trial.number, answer["step"])
        else:
            value = answer["best"].get(self._study.plan.metric)
            self._study.end(trial, value)
            logging.info("trial %d ended: %s %s", trial.number, self._study.plan.metric, value)
        running.lock.close()
        if worker.is_usable and worker.trials < _TRIALS_OF_A_WORKER and not self._needs_fresh(trial):
            self._idle.append(worker)
        else:
            worker.end()
        self._refuse_fruitless()

    def _refuse_fruitless(self) -> None:
        rows = self._study.rows()
        failed = [row for row in rows if row["state"] == "failed"]
        if len(failed) >= _FRUITLESS and not any(row["state"] in ("finished", "ended early") for row in rows):
            raise RunError(
                f"the first {len(failed)} trials failed. Trial {failed[-1]['number']}"
                f" ({' '.join(failed[-1]['overrides'])}): {failed[-1]['error']}"
            )

    def _stop(self) -> None:
        """Lets the workers save; their trials stay unfinished."""
        for running in self._running:
            running.worker.stop()
        end = time.monotonic() + _STOP_SECONDS
        waiting = list(self._running)
        while waiting and time.monotonic() < end:
            waiting = [running for running in waiting if not _has_ended(running.worker.answer())]
            time.sleep(_POLL_SECONDS)


def _has_ended(answer: Mapping[str, Any] | None) -> bool:
    return answer is not None and "modes" not in answer

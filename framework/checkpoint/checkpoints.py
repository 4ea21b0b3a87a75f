"""Checkpoints that are whole or not there, written while training goes on.

    with Checkpoints(workdir / 'checkpoints', keep=3) as checkpoints:
        checkpoints.save(state, {'wall_seconds': 12.3})     # checkpoints/step-00000469/
        note = checkpoints.restore(state)                   # the newest whole one; None if there is none
    read_arrays(workdir / 'checkpoints/step-00000469')      # {'model/dense/kernel': array, …}

`save` copies every variable to host memory and returns. A thread writes the copy aside, flushes it to disk, renames it,
moves `last.json` and `best.json`, which name one each, and deletes what is not kept. One write at a time: a save waits
for the one before it. A folder of one is `framework/checkpoint/snapshot.py`.
"""

import contextlib
import copy
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from absl import logging

from framework import paths
from framework.checkpoint.directory import PUT_BACK, Directory
from framework.checkpoint.snapshot import copied as _copied
from framework.checkpoint.snapshot import digest, facts_of, read, write_state
from framework.checkpoint.storage import (
    Cancelled,
    CorruptError,
    UnreachableError,
    is_written,
    read_arrays,
    write_arrays,
)
from framework.config import RunError, UserError
from framework.files import remove, sync
from framework.state import TrainState

__all__ = ["Checkpoints", "digest", "read_arrays", "write_state"]

# Of the writing thread: training comes first on a processor that both want.
_NICENESS = 19
_SHOWN = 20  # most steps of one message


class Checkpoints:
    """The checkpoints of one run. A context, which waits for the last of them to be on disk.

    Args:
      folder: where they are.
      keep: the newest so many are kept, and the best.
      keep_hours: the first, and then one for every so many hours, is kept for good; 0 = none.
      asynchronous: whether `save` returns while its copy is being written.
      on_error: what a failing disk leads to: 'stop' raises at the next save, 'continue' only says so; both raise at
        the end.
      clock: seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_hours: float = 0.0,
        asynchronous: bool = True,
        on_error: str = "stop",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.directory = folder, Directory(folder)
        self._keep, self._keep_seconds, self._clock = keep, 3600 * keep_hours, clock
        self._is_asynchronous, self._goes_on = asynchronous, on_error == "continue"
        self._copy: dict[str, np.ndarray] = {}  # reused: memory that has been touched takes a copy ten times as fast
        self._newest: tuple[int, int] | None = None  # step and best step of the newest save
        self._writer: threading.Thread | None = None
        self._abandoned = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, KeyboardInterrupt):
            self._abandoned.set()  # who asked for the end at once does not wait for a disk
        else:
            self._join()

    def save(self, state: TrainState, note: dict[str, Any], facts: Mapping[str, Any] | None = None) -> Path:
        """Takes a copy of the state, which may change at once, and has it written.

        Args:
          state: is saved as that of its own step; a step that is there already is not written again.
          note: JSON that `restore` gives back.
          facts: JSON that `facts` gives back: what a resumed run is compared with, such as hashes of its files.

        Returns:
          The folder in which it will be, complete, after `close` or a next `save`.

        Raises:
          RunError: the one before (this one, if not asynchronous) could not be written, and `on_error` is 'stop'.
        """
        step, best = int(state.step), int(state.best.step)
        if self._newest == (step, best):
            return self.directory.path(step)  # on its way: several hooks may save one step
        self._settle(self._goes_on)
        is_there = self.directory.has_manifest(step)
        if not is_there:
            self._copy = _copied(state, self._copy)
        manifest: dict[str, Any] = {"step": step, "best": best, "saved": self._clock()}
        manifest |= {"note": copy.deepcopy(note), "facts": copy.deepcopy(dict(facts or {}))}
        manifest["named"] = paths.ambiguous(state)
        self._newest, self._error, self._abandoned = (step, best), None, threading.Event()
        self._writer = threading.Thread(target=self._write, args=(manifest, not is_there), name="checkpoint writer")
        self._writer.start()
        if not self._is_asynchronous:
            self._settle(self._goes_on)
        return self.directory.path(step)

    def close(self) -> None:
        """Waits until the newest save is on disk, and lets go of the memory of the copy.

        Raises:
          RunError: it could not be written, whatever `on_error` says: nothing comes after it.
        """
        self._settle(goes_on=False)
        self._copy = {}

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        self._join()
        return self.directory.complete()

    def pointed(self, name: str) -> int | None:
        """The step that is 'last' or 'best'; None if it is not there.

        The newest whole manifest knows it. `last.json` and `best.json`, which have no hash, count only where they are
        ahead of it: each best is of a later step than the one before.
        """
        self._join()
        complete = self.directory.complete()
        known = {self.directory.pointer(name)}
        for newest in reversed(complete):
            try:
                known.add(self.directory.manifest(newest).get("step" if name == "last" else "best"))
            except CorruptError:
                continue
            break
        return max((step for step in known if step in complete), default=None)

    def facts(self, step: int | None = None) -> dict[str, Any]:
        """The facts that a checkpoint was saved with; {} if there is none, or it was saved without any.

        Args:
          step: of the checkpoint, such as that of a state just restored; None for the newest with a whole manifest.
        """
        self._join()
        whole = (saved for saved in reversed(self.directory.complete()) if self.directory.has_manifest(saved))
        newest = next(whole, None) if step is None else step
        return {} if newest is None else facts_of(self.directory.path(newest))

    def restore(
        self, state: TrainState, which: str | int = "last", repair: bool = False, until: int | None = None
    ) -> dict[str, Any] | None:
        """Sets every variable of `state` and returns the note.

        Args:
          state: of the same model and optimizer.
          which: 'last' falls back, loudly, past damaged checkpoints to the newest whole one; 'best', or the number of a
            step, does not.
          repair: for who trains on: damaged ones are set aside as damaged-step-…, so that they are written anew and
            never count among the newest; a best pointer that a crash left behind is moved.
          until: later steps are passed over.

        Raises:
          UserError: the checkpoint is of another model (both sides are listed), the one asked for is missing or
            damaged, or all are; one cannot be reached, so that it would be lost.
        """
        self._join()
        self._newest = None
        if which == "best":
            return self._restore_best(state)
        if isinstance(which, int):
            return self._restore_step(state, which)
        self.directory.warn_of_other_names()
        damages: dict[int, CorruptError] = {}
        for step in reversed(self.directory.steps()):
            if until is not None and step > until:
                continue
            try:
                note = read(state, self.directory.path(step))
            except UnreachableError as error:
                raise UserError(f"{self.directory.path(step)} cannot be reached: {error}. {PUT_BACK}") from error
            except CorruptError as damage:
                damages[step] = damage
                continue
            self._fall_back(damages, repair)
            if repair:
                self.directory.point("last", step)
                self._point_to_best(int(state.best.step))
            return note
        ours = {step: damage for step, damage in damages.items() if is_written(self.directory.path(step))}
        if ours and repair:
            listed = "; ".join(f"{self.directory.path(step)}: {damage}" for step, damage in ours.items())
            raise UserError(
                f"no checkpoint is whole, and what was trained would be lost ({listed}). Put one back, or use another"
                " --workdir."
            )
        self._fall_back(damages, repair)
        return None

    def _fall_back(self, damages: Mapping[int, CorruptError], repair: bool) -> None:
        for step, damage in damages.items():
            path = self.directory.path(step)
            logging.error("checkpoint %s is damaged (%s); falling back to the one before", path, damage)
            if repair:
                self.directory.set_aside(step)

    def _restore_best(self, state: TrainState) -> dict[str, Any]:
        step, damage = self.pointed("best"), "there is none; checkpoint.best_metric is what one is kept by"
        if step is not None:
            try:
                return read(state, self.directory.path(step))
            except CorruptError as error:
                damage = str(error)
        raise UserError(f"{self.folder}: the best checkpoint cannot be used: {damage}. Use --checkpoint=last.")

    def _restore_step(self, state: TrainState, step: int) -> dict[str, Any] | None:
        complete = self.directory.complete()
        if step not in complete:
            shown = ", ".join(map(str, complete[-_SHOWN:]))
            raise UserError(
                f"{self.folder} has no checkpoint of step {step}, but of {'…, ' if len(complete) > _SHOWN else ''}"
                f"{shown or 'no step'}. Type e.g. --checkpoint={complete[-1] if complete else 'last'}."
            )
        try:
            return read(state, self.directory.path(step))
        except CorruptError as damage:
            raise UserError(
                f"{self.folder}: the checkpoint of step {step} cannot be used: {damage}. Use --checkpoint=last."
            ) from damage

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _settle(self, goes_on: bool) -> None:
        """Waits for the write under way; raises its error, unless it is one of the disk and the run goes on."""
        self._join()
        error = self._error
        if error is not None and not (goes_on and isinstance(error, RunError)):
            self._error = None
            raise error

    def _write(self, facts: dict[str, Any], is_new: bool) -> None:
        """What the thread does; nothing here touches TensorFlow."""
        if self._is_asynchronous and sys.platform == "linux":  # elsewhere it would be that of the process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        step = facts["step"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.directory.remove_leftovers()
            if is_new:
                self._write_new(self.directory.path(step), facts)
            self.directory.point("last", step)
            self._point_to_best(facts["best"])
            self._prune(facts["best"])
        except BaseException as error:
            self._newest = None  # not on its way any more
            self._error = self._explained(step, error)

    def _write_new(self, target: Path, facts: dict[str, Any]) -> None:
        aside = self.folder / f".{target.name}.tmp"
        aside.mkdir()
        write_arrays(aside, self._copy, facts, self._abandoned)
        if os.path.lexists(target):
            self.directory.set_aside(facts["step"])
        aside.rename(target)
        sync(self.folder)

    def _explained(self, step: int, error: BaseException) -> BaseException | None:
        """What the run is told of an error of the writer; None if it is meant."""
        with contextlib.suppress(OSError, UserError):
            self.directory.remove_leftovers()  # on a full disk, what is half written is in the way
        if isinstance(error, Cancelled):
            return None
        if not isinstance(error, OSError):
            return error  # a slip in the code, or a folder that cannot be reached any more
        try:
            complete = self.directory.complete()
        except UserError as unreachable_now:
            return unreachable_now
        last = f"the last complete one is of step {complete[-1]}" if complete else "there is no complete one"
        message = f"{self.folder}: the checkpoint of step {step} could not be saved: {error}; {last}."
        logging.error("%s", message)
        return RunError(f"{message} Mend that and type the same command again.")

    def _prune(self, best: int) -> None:
        steps = self.directory.complete()
        kept = {*steps[-self._keep :], best, *self._kept_for_good(steps)}
        for old in set(steps) - kept:
            # Renamed first: what a crash leaves of it must not look like a checkpoint.
            remove(self.directory.path(old).rename(self.folder / f".{self.directory.path(old).name}.tmp"))

    def _kept_for_good(self, steps: Iterable[int]) -> list[int]:
        """The oldest, and each that was saved `keep_hours` or more after the one kept before it."""
        kept: list[int] = []
        due = -np.inf
        for step in steps if self._keep_seconds else ():
            try:
                saved = float(self.directory.manifest(step)["saved"])
            except CorruptError:
                continue
            if saved >= due:
                kept.append(step)
                due = saved + self._keep_seconds
        return kept

    def _point_to_best(self, best: int) -> None:
        """The state itself says which step is the best; a pointer written later could be lost to a crash."""
        if best != self.directory.pointer("best") and best in self.directory.complete():
            self.directory.point("best", best)

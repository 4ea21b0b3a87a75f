"""Checkpoints of a run: each is complete or not there, and is written while training goes on.

    with Checkpoints(workdir / 'checkpoints', keep=3) as checkpoints:
        checkpoints.save(state, {'wall_seconds': 12.3})     # checkpoints/step-00000469/
        note = checkpoints.restore(state)                   # the newest undamaged one; None if there is none
    read_arrays(workdir / 'checkpoints/step-00000469')      # {'model/dense/kernel': array, …}

`save` copies every variable to host memory and returns. A thread then writes the copy into a temporary folder, flushes
it to disk, renames it, updates `last.json` and `best.json`, and deletes the checkpoints that are not to be kept. One
write runs at a time: a save waits for the one before it. `snapshot.py` describes the folder of one checkpoint.
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
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from framework import paths
from framework.checkpoint.directory import PUT_BACK, Directory
from framework.checkpoint.snapshot import copy_of, digest, facts_of, read, write_state
from framework.checkpoint.storage import (
    Cancelled,
    CorruptError,
    UnreachableError,
    is_written,
    read_arrays,
    write_arrays,
)
from framework.errors import MachineError, RunError, UserError
from framework.files import sync
from framework.state import TrainState

__all__ = ["Checkpoints", "digest", "read_arrays", "write_state"]

_NICENESS = 19  # of the thread that writes: training goes first on a busy processor
_SHOWN = 20  # most steps that a message lists


class _Save(NamedTuple):
    """Which state a save is of: its step, and the step of the best state so far."""

    step: int
    best: int


class Checkpoints:
    """Saves and restores the checkpoints of one run; as a context, it waits until the last one is on disk.

    Args:
      folder: the folder of the checkpoints.
      keep: how many of the newest are kept, beside the best.
      keep_hours: hours between checkpoints that are kept for good, from the first one on; 0 keeps none for good.
      asynchronous: whether `save` returns before the checkpoint is on disk.
      on_error: how a failing disk is treated. 'stop' raises at the next save, 'continue' logs the error and trains on;
        at the end of the run both raise.
      clock: returns the seconds since the epoch.
      on_saved: called by the thread that writes, after each checkpoint; its RunError ends the run at the next save.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_hours: float = 0.0,
        asynchronous: bool = True,
        on_error: str = "stop",
        clock: Callable[[], float] = time.time,
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.directory = Directory(folder)
        self._keep = keep
        self._keep_seconds = 3600 * keep_hours
        self._clock = clock
        self._on_saved = on_saved
        self._is_asynchronous = asynchronous
        self._continues = on_error == "continue"
        self._copy: dict[str, np.ndarray] = {}  # reused: copying into memory that was used before is ten times as fast
        self._newest: _Save | None = None
        self._writer: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, KeyboardInterrupt):
            self._cancelled.set()  # a user who interrupts does not wait for a disk
        else:
            self._join()

    def save(self, state: TrainState, note: dict[str, Any], facts: Mapping[str, Any] | None = None) -> Path:
        """Copies the state and starts to write it; the state may change as soon as this returns.

        Args:
          state: the state to save; a step that is saved already is not written again.
          note: JSON that `restore` returns.
          facts: JSON that `facts` returns: what a resumed run is compared with, such as hashes of its files.

        Returns:
          The folder of the checkpoint, which is complete after `close` or the next `save`.

        Raises:
          RunError: the checkpoint before (this one, if not asynchronous) could not be written and `on_error` is 'stop'.
        """
        save = _Save(int(state.step), int(state.best.step))
        if self._newest == save:
            return self.directory.path(save.step)  # several hooks may save one step
        self._finish_write(self._continues)
        is_new = not self.directory.has_manifest(save.step)
        if is_new:
            self._copy = copy_of(state, self._copy)
        manifest = {
            "step": save.step,
            "best": save.best,
            "saved": self._clock(),
            "note": copy.deepcopy(note),
            "facts": copy.deepcopy(dict(facts or {})),
            "named": paths.ambiguous(state),
        }
        self._newest = save
        self._error = None
        self._cancelled = threading.Event()
        self._writer = threading.Thread(target=self._write, args=(manifest, is_new), name="checkpoint writer")
        self._writer.start()
        if not self._is_asynchronous:
            self._finish_write(self._continues)
        return self.directory.path(save.step)

    def close(self) -> None:
        """Waits until the newest checkpoint is on disk, and frees the memory of the copy.

        Raises:
          RunError: the checkpoint could not be written, whatever `on_error` says: no later one will be.
        """
        self._finish_write(continues=False)
        self._copy = {}

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        self._join()
        return self.directory.complete()

    def pointed(self, name: str) -> int | None:
        """Returns the step of the 'last' or the 'best' checkpoint; None if there is none.

        The newest undamaged manifest names both. `last.json` and `best.json`, which have no hash, count only if they
        name a later step: each best is later than the best before.
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
        """Returns the facts that a checkpoint was saved with; {} if there is no checkpoint, or it has no facts.

        Args:
          step: the step of the checkpoint; None for the newest one with an undamaged manifest.
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
          state: a state of the same model and optimizer.
          which: 'last' skips damaged checkpoints, with an error in the log, and takes the newest undamaged one; 'best',
            or the number of a step, takes that one or raises.
          repair: set by a run that trains on. Damaged checkpoints are renamed to damaged-step-…, so that their steps
            are written again and they do not count among the newest; a best pointer that a crash left behind is moved.
          until: checkpoints of later steps are skipped.

        Raises:
          UserError: the checkpoint is of another model (the message lists both), it is missing or damaged, all are
            damaged, or one cannot be reached and would be lost.
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
        lost = {step: damage for step, damage in damages.items() if is_written(self.directory.path(step))}
        if lost and repair:
            listed = "; ".join(f"{self.directory.path(step)}: {damage}" for step, damage in lost.items())
            raise UserError(
                f"every checkpoint is damaged, so a start would lose what was trained ({listed}). Put one back, or use"
                " another --workdir."
            )
        self._fall_back(damages, repair)
        return None

    def _fall_back(self, damages: Mapping[int, CorruptError], repair: bool) -> None:
        """Logs the damaged checkpoints, and renames them if `repair` is set."""
        for step, damage in damages.items():
            path = self.directory.path(step)
            logging.error("checkpoint %s is damaged (%s); falling back to the one before", path, damage)
            if repair:
                self.directory.set_aside(step)

    def _restore_best(self, state: TrainState) -> dict[str, Any]:
        step = self.pointed("best")
        damage = "there is none; set checkpoint.best_metric to keep one"
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

    def _finish_write(self, continues: bool) -> None:
        """Waits for the write under way and raises its error, unless the disk failed and the run is to continue."""
        self._join()
        error = self._error
        if error is not None and not (continues and isinstance(error, RunError)):
            self._error = None
            raise error

    def _write(self, manifest: dict[str, Any], is_new: bool) -> None:
        """Writes the copy, moves the pointers and deletes old checkpoints; runs in the thread, without TensorFlow."""
        if self._is_asynchronous and sys.platform == "linux":  # other systems have no priority of a single thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        step = manifest["step"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.directory.remove_leftovers()
            if is_new:
                self._write_new(self.directory.path(step), manifest)
            self.directory.point("last", step)
            self._point_to_best(manifest["best"])
            self._prune(manifest["best"])
            self._on_saved()
        except BaseException as error:
            self._newest = None  # the next save of this step is to be written
            self._error = self._explained(step, error)

    def _write_new(self, target: Path, manifest: dict[str, Any]) -> None:
        aside = self.folder / f".{target.name}.tmp"
        aside.mkdir()
        write_arrays(aside, self._copy, manifest, self._cancelled)
        if os.path.lexists(target):
            self.directory.set_aside(manifest["step"])
        aside.rename(target)
        sync(self.folder)

    def _explained(self, step: int, error: BaseException) -> BaseException | None:
        """Returns the exception that the run gets for an error of the thread; None if the write was cancelled."""
        with contextlib.suppress(OSError, UserError):
            self.directory.remove_leftovers()  # frees the room of the incomplete checkpoint on a full disk
        if isinstance(error, Cancelled):
            return None
        if not isinstance(error, OSError):
            return error  # a bug, or a folder that can no longer be reached
        try:
            complete = self.directory.complete()
        except UserError as unreachable:
            return unreachable
        last = f"the last complete one is of step {complete[-1]}" if complete else "there is no complete one"
        message = f"{self.folder}: the checkpoint of step {step} could not be saved: {error}; {last}."
        logging.error("%s", message)
        return MachineError(f"{message} Mend that and type the same command again.")

    def _prune(self, best: int) -> None:
        """Deletes all checkpoints but the newest, the best and those that are kept for good."""
        steps = self.directory.complete()
        kept = {*steps[-self._keep :], best, *self._kept_for_good(steps)}
        for step in set(steps) - kept:
            self.directory.delete(step)

    def _kept_for_good(self, steps: Iterable[int]) -> list[int]:
        """Returns the oldest step, and each that was saved `keep_hours` or more after the step kept before it."""
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
        """Moves best.json to the best step that the state names, as a crash may have left the pointer behind."""
        if best != self.directory.pointer("best") and best in self.directory.complete():
            self.directory.point("best", best)

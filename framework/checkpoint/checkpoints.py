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
import itertools
import os
import shutil
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
from framework.checkpoint.snapshot import PREFIX, digest, facts_of, manifest_of, name_of, read, step_of, write_state
from framework.checkpoint.snapshot import copied as _copied
from framework.checkpoint.storage import (
    MANIFEST,
    Cancelled,
    CorruptError,
    UnreachableError,
    is_written,
    read_arrays,
    write_arrays,
    write_manifest,
)
from framework.errors import RunError, UserError
from framework.files import load_json, remove, sync, unreachable, write_json
from framework.state import TrainState

__all__ = ["Checkpoints", "adopt", "digest", "find", "read_arrays", "restore_from", "write_state"]

_PUT_BACK = "Put it back, or use another --workdir."
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
        self.folder = folder
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
            return self._path(step)  # on its way: several hooks may save one step
        self._settle(self._goes_on)
        is_there = self._has(step)
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
        return self._path(step)

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
        return self._complete()

    def pointed(self, name: str) -> int | None:
        """The step that is 'last' or 'best'; None if it is not there.

        The newest whole manifest knows it. `last.json` and `best.json`, which have no hash, count only where they are
        ahead of it: each best is of a later step than the one before.
        """
        self._join()
        complete = self._complete()
        known = {self._pointer(name)}
        for newest in reversed(complete):
            try:
                known.add(self._manifest(newest).get("step" if name == "last" else "best"))
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
        whole = (saved for saved in reversed(self._complete()) if self._has(saved))
        newest = next(whole, None) if step is None else step
        return {} if newest is None else facts_of(self._path(newest))

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
        self._warn_of_other_names()
        damages: dict[int, CorruptError] = {}
        for step in reversed(self._found()):
            if until is not None and step > until:
                continue
            try:
                note = read(state, self._path(step))
            except UnreachableError as error:
                raise UserError(f"{self._path(step)} cannot be reached: {error}. {_PUT_BACK}") from error
            except CorruptError as damage:
                damages[step] = damage
                continue
            self._fall_back(damages, repair)
            if repair:
                self._point("last", step)
                self._point_to_best(int(state.best.step))
            return note
        ours = {step: damage for step, damage in damages.items() if is_written(self._path(step))}
        if ours and repair:
            listed = "; ".join(f"{self._path(step)}: {damage}" for step, damage in ours.items())
            raise UserError(
                f"no checkpoint is whole, and what was trained would be lost ({listed}). Put one back, or use another"
                " --workdir."
            )
        self._fall_back(damages, repair)
        return None

    def _fall_back(self, damages: Mapping[int, CorruptError], repair: bool) -> None:
        for step, damage in damages.items():
            path = self._path(step)
            logging.error("checkpoint %s is damaged (%s); falling back to the one before", path, damage)
            if repair:
                self._set_aside(step)

    def _set_aside(self, step: int) -> None:
        """Renames what is no checkpoint, whoever made it; nothing is deleted."""
        path = self._path(step)
        free = self.folder / f"damaged-{path.name}"
        numbers = itertools.count(2)
        while os.path.lexists(free):
            free = self.folder / f"damaged-{path.name}-{next(numbers)}"
        path.rename(free)

    def _warn_of_other_names(self) -> None:
        for name in self._names():
            digits = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and digits.isascii() and digits.isdecimal() and step_of(name) is None:
                logging.warning(
                    "%s is not the name of a checkpoint and is left alone. If it is one, name it %s.",
                    self.folder / name,
                    name_of(int(digits)),
                )

    def _restore_best(self, state: TrainState) -> dict[str, Any]:
        step, damage = self.pointed("best"), "there is none; checkpoint.best_metric is what one is kept by"
        if step is not None:
            try:
                return read(state, self._path(step))
            except CorruptError as error:
                damage = str(error)
        raise UserError(f"{self.folder}: the best checkpoint cannot be used: {damage}. Use --checkpoint=last.")

    def _restore_step(self, state: TrainState, step: int) -> dict[str, Any] | None:
        complete = self._complete()
        if step not in complete:
            shown = ", ".join(map(str, complete[-_SHOWN:]))
            raise UserError(
                f"{self.folder} has no checkpoint of step {step}, but of {'…, ' if len(complete) > _SHOWN else ''}"
                f"{shown or 'no step'}. Type e.g. --checkpoint={complete[-1] if complete else 'last'}."
            )
        try:
            return read(state, self._path(step))
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
            self._remove_leftovers()
            if is_new:
                self._write_new(self._path(step), facts)
            self._point("last", step)
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
            self._set_aside(facts["step"])
        aside.rename(target)
        sync(self.folder)

    def _explained(self, step: int, error: BaseException) -> BaseException | None:
        """What the run is told of an error of the writer; None if it is meant."""
        with contextlib.suppress(OSError, UserError):
            self._remove_leftovers()  # on a full disk, what is half written is in the way
        if isinstance(error, Cancelled):
            return None
        if not isinstance(error, OSError):
            return error  # a slip in the code, or a folder that cannot be reached any more
        try:
            complete = self._complete()
        except UserError as unreachable_now:
            return unreachable_now
        last = f"the last complete one is of step {complete[-1]}" if complete else "there is no complete one"
        message = f"{self.folder}: the checkpoint of step {step} could not be saved: {error}; {last}."
        logging.error("%s", message)
        return RunError(f"{message} Mend that and type the same command again.")

    def _prune(self, best: int) -> None:
        steps = self._complete()
        kept = {*steps[-self._keep :], best, *self._kept_for_good(steps)}
        for old in set(steps) - kept:
            # Renamed first: what a crash leaves of it must not look like a checkpoint.
            remove(self._path(old).rename(self.folder / f".{self._path(old).name}.tmp"))

    def _kept_for_good(self, steps: Iterable[int]) -> list[int]:
        """The oldest, and each that was saved `keep_hours` or more after the one kept before it."""
        kept: list[int] = []
        due = -np.inf
        for step in steps if self._keep_seconds else ():
            try:
                saved = float(self._manifest(step)["saved"])
            except CorruptError:
                continue
            if saved >= due:
                kept.append(step)
                due = saved + self._keep_seconds
        return kept

    def _pointer(self, name: str) -> int | None:
        """What a pointer file says; None without one that says the same twice: a flipped bit names another step."""
        try:
            pointer = load_json(self.folder / f"{name}.json")
            step = int(pointer["step"])
            return step if pointer["checkpoint"] == name_of(step) else None
        except (OSError, CorruptError, LookupError, TypeError, ValueError, OverflowError):
            return None

    def _point_to_best(self, best: int) -> None:
        """The state itself says which step is the best; a pointer written later could be lost to a crash."""
        if best != self._pointer("best") and best in self._complete():
            self._point("best", best)

    def _point(self, name: str, step: int) -> None:
        if self._pointer(name) != step:
            write_json(self.folder / f"{name}.json", {"step": step, "checkpoint": self._path(step).name})

    def _complete(self) -> list[int]:
        return [step for step in self._found() if os.path.isfile(self._path(step) / MANIFEST)]

    def _has(self, step: int) -> bool:
        try:
            return bool(self._manifest(step))
        except CorruptError:
            return False

    def _found(self) -> list[int]:
        """Steps of all checkpoint folders, also of those in which something is missing."""
        return sorted(step for step in map(step_of, self._names()) if step is not None)

    def _names(self) -> list[str]:
        """What is in the folder; [] if there is none.

        Raises:
          UserError: it cannot be reached. That must not look as if nothing had been saved.
        """
        problem = unreachable(self.folder)
        try:
            if not problem:
                return os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            problem = "it is not a folder" if isinstance(error, NotADirectoryError) else str(error.strerror)
        raise UserError(f"{self.folder} cannot be reached: {problem}. {_PUT_BACK}")

    def _manifest(self, step: int) -> dict[str, Any]:
        return manifest_of(self._path(step))

    def _path(self, step: int) -> Path:
        return self.folder / name_of(step)

    def _remove_leftovers(self) -> None:
        for name in self._names():
            if name.startswith(f".{PREFIX}") and name.endswith(".tmp"):
                remove(self.folder / name)


def find(key: str, text: str) -> Path:
    """The checkpoint that a config key names: a checkpoint's own folder, or of a run folder the newest whole one.

    Raises:
      UserError: there is none, or it is damaged.
    """
    folder = Path(text)
    damages = {}
    for path in [folder] if (folder / MANIFEST).is_file() else _newest_first(folder):
        try:
            manifest_of(path)
            read_arrays(path)
        except CorruptError as damage:
            logging.error("checkpoint %s is damaged (%s)", path, damage)
            damages[path] = damage
        else:
            return path
    if damages:
        raise UserError(
            f"{key}='{text}': {'; '.join(f'{path} is damaged ({damage})' for path, damage in damages.items())}."
        )
    raise UserError(
        f"{key}='{text}' is neither a checkpoint nor a run folder with one."
        f" Type e.g. --config.{key}=runs/first or --config.{key}=runs/first/checkpoints/{PREFIX}00000469."
    )


def _newest_first(folder: Path) -> list[Path]:
    inner = folder / "checkpoints"
    checkpoints = Checkpoints(inner if os.path.lexists(inner) else folder, 1)
    return [checkpoints._path(step) for step in reversed(checkpoints._found())]


def restore_from(state: TrainState, folder: Path, hint: str) -> dict[str, Any]:
    """Sets every variable of `state` from a checkpoint outside of the run folder and returns the note.

    Raises:
      UserError: it is of another model or optimizer; ends with `hint`.
    """
    return read(state, folder, hint)


def adopt(source: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Copies a checkpoint into the folder of another run's checkpoints, with that run's facts: whole or not at all."""
    manifest = manifest_of(source)
    target = folder / name_of(manifest["step"])
    aside = folder / f".{target.name}.tmp"
    remove(aside)
    shutil.copytree(source, aside)
    write_manifest(aside, {**manifest, "facts": dict(facts)})
    for path in aside.iterdir():
        sync(path)
    sync(aside)
    aside.rename(target)
    sync(folder)

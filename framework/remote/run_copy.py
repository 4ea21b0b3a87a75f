"""A run folder at an address: the run works in a copy on this machine, whose files go to the address.

    copy = RunCopy("s3://bucket/run")
    copy.fetch()                    # before the folder is read: takes what another machine has changed meanwhile
    with copy.holding():            # refuses a second run; at the end, all that is missing goes to the address
        copy.later()                # after each checkpoint: returns at once, a thread copies

What a reader finds at the address: rows are copied before the checkpoint, results after it, and the manifest of a
checkpoint after its arrays; it is deleted before them. So each checkpoint with a manifest is whole, and its SHA-256 is
compared when it is restored.

A file system that fails does not end the training: the copy is tried again, with one warning, until it works, and for
some seconds at the end of the run. What is then missing stays in the folder of this machine, from where the same
command copies it.
"""

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from framework import files, folder
from framework.errors import RunError, UserError
from framework.files import read_json, remove, write_json
from framework.remote.address import Place, Unreachable, folder_of
from framework.remote.holder import Holder, parsed
from framework.remote.mirror import mirror

COPIED = ".copied.json"  # at the address: the id of the run there, and that of its newest copy

_DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds between the attempts of the last copy
_LONGEST_DELAY = 60.0  # of a copy while the run trains
_SAVED = f"{folder.CHECKPOINTS}/{folder.PREFIX}"  # begins the names of the files of checkpoints
_OF_THE_END = (folder.RESULT, folder.PAGE, f"{folder.EXPORTS}/{folder.REPORT}")
_ROWS, _ARRAYS, _MANIFESTS, _POINTERS, _RESULTS = range(5)  # the order in which files are copied


class RunCopy:
    """The copy of a run folder on this machine, and its way from and to the address.

    Args:
      address: 's3://bucket/run'.
      clock: returns the seconds since the epoch.
      wait: waits for seconds, between the attempts of the last copy.

    Attributes:
      folder: the run folder on this machine.

    Raises:
      UserError: there is no such file system, or its package is not installed.
    """

    def __init__(
        self, address: str, clock: Callable[[], float] = time.time, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self.address = address
        self.folder = folder_of(address)
        self._place = Place(address)
        self._holder = Holder(self._place, clock)
        self._wait = wait
        self._seen: str | None = None  # id of the copy at the address that this process knows of
        self._wake = threading.Event()
        self._is_ending = threading.Event()
        self._is_interrupted = threading.Event()

    # ---- From the address ----

    def fetch(self) -> None:
        """Makes the folder of this machine as new as the address, if another machine has changed that.

        Raises:
          UserError: the address cannot be read; it and the folder are different runs; or it was emptied.
        """
        if process := files.holder(self._beside("lock")):
            logging.info("%s: process %s trains in its copy on this machine, %s", self.address, process, self.folder)
            return
        with self._locked(), self._refusing("read"):
            self._fetch()
        logging.info("%s: its copy on this machine is %s", self.address, self.folder)

    def _fetch(self) -> None:
        names = {name for name in self._place.listing() if not Path(name).name.startswith(".")}
        there, here = self._copied(), self._state()
        self._seen = there.get("id")
        if not self._files():
            if names or there:
                self._mirror(there)
            return
        if not names and here.get("id"):
            raise UserError(
                f"{self.address} is empty, but {self.folder} has the run that was copied there. To begin a new one,"
                f" delete that copy: rm -r {self.folder}"
            )
        if there.get("run") and here.get("run") and there["run"] != here["run"]:
            raise UserError(
                f"{self.address} has another run than its copy {self.folder}. To take the one at the address, delete"
                f" the copy: rm -r {self.folder}"
            )
        if not there or there.get("id") == here.get("id"):
            return
        ours, theirs = _newest(self._files()), _newest(names)
        if ours > theirs:
            said = "%s is at step %d, by another machine; %s is at step %d, is kept, and is copied there"
            logging.warning(said, self.address, theirs, self.folder, ours)
            return
        self._mirror(there)

    def _mirror(self, there: Mapping[str, Any]) -> None:
        """Copies what is at the address, in place of what this machine has."""
        state = self._state()
        known, token = state.get("files"), {"token": state.get("token")}
        if known is not None and any(known.get(name) != _signature(path) for name, path in self._files().items()):
            aside = self.folder.with_name(f"{self.folder.name}-{secrets.token_hex(2)}")
            self.folder.rename(aside)
            said = "%s: changed by another machine. What this one had, which was never copied there, is now in %s"
            logging.warning(said, self.address, aside)
        self._keep(token)  # without files, so that a copy that is interrupted goes on where it was
        count = mirror(self._place, self.folder, lambda name: not Path(name).name.startswith("."), _rank)
        here = {name: _signature(path) for name, path in self._files().items()}
        self._keep({**token, "run": there.get("run"), "id": there.get("id"), "files": here})
        logging.info("%s: %d files copied from there, newest step %d", self.address, count, _newest(here))

    # ---- Holding ----

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Keeps other runs from the address, and copies what changes; inside another `holding`, does nothing.

        Raises:
          UserError: another process trains there, the address cannot be written, or it changed since `fetch`.
          RunError: at the end, the address lacks something, and cannot be written.
        """
        if self._holder.is_held:
            yield
            return
        with self._locked():
            self._take()
            thread = threading.Thread(target=self._copy_when_due, name="copy of a run")
            thread.start()
            try:
                yield
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):  # a user who interrupts does not wait for a network
                    self._is_interrupted.set()
                self._end(thread)
                self._copy_after_error()
                raise
            else:
                self._end(thread)
                self._copy_at_last()
            finally:
                self._holder.release()

    def later(self) -> None:
        """Has the thread copy what has changed; returns at once.

        Raises:
          RunError: another run has taken the address.
        """
        self._holder.refuse_taken()
        self._wake.set()

    def _take(self) -> None:
        for event in (self._is_ending, self._is_interrupted, self._wake):
            event.clear()
        with self._refusing("written"):
            token = self._holder.take(self._state().get("token"))
            try:
                self._keep(self._begun() | {"token": token})
            except BaseException:
                self._holder.release()
                raise

    def _begun(self) -> dict[str, Any]:
        """Returns what this machine knows when it begins to copy: files that the address has lost are copied again."""
        there, state = self._copied(), self._state()
        if there.get("id") != self._seen:
            raise UserError(f"{self.address} was changed since this start read it. Type the same command again.")
        state["run"] = state.get("run") or there.get("run") or secrets.token_hex(8)
        listing = self._place.listing()
        state["files"] = {
            name: known
            for name, known in state.get("files", {}).items()
            if there and name in listing and listing[name].size in (None, known[0])
        }
        if not there:
            state["id"] = None
            self._write_copied({"run": state["run"], "id": None})
        return state

    def _end(self, thread: threading.Thread) -> None:
        self._is_ending.set()
        self._wake.set()
        thread.join()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes of this machine from the folder: a lock of the system, which dies with the process."""

        def busy(process: str) -> str:
            return (
                f"--workdir={self.address} is in use by process {process}, in its copy {self.folder}. Wait for it, stop"
                " it, or use another folder."
            )

        with self._refusing("locked"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        with files.held(self._beside("lock"), busy):
            yield

    # ---- To the address ----

    def _copy_when_due(self) -> None:
        """Copies after each call of `later`, until the end, and tries again what failed; runs in a thread."""
        delay = 0.0
        while True:
            self._wake.wait()
            if self._is_ending.wait(delay):
                return
            self._wake.clear()
            try:
                self._copy()
            except RunError:  # another run took the address; the next save says so
                return
            except (Unreachable, OSError) as error:
                if not delay:
                    logging.warning("%s: not copied (%s). Training goes on; it is tried again.", self.address, error)
                delay = min(max(2 * delay, _DELAYS[0]), _LONGEST_DELAY)
                self._wake.set()
            else:
                if delay:
                    logging.info("%s: copied", self.address)
                delay = 0.0

    def _copy_at_last(self) -> None:
        """Copies what is missing; raises RunError if that fails again and again."""
        for delay in (*_DELAYS, None):
            try:
                self._copy()
                return
            except (Unreachable, OSError) as error:
                if delay is None:
                    raise RunError(
                        f"{self.address} lacks the newest files of the run ({error}). Nothing is lost: they are in"
                        f" {self.folder}. Mend that and type the same command again, which copies them."
                    ) from error
                self._wait(delay)

    def _copy_after_error(self) -> None:
        """Copies once, before the error of the run is raised; nothing if a user interrupted."""
        try:
            self._copy()
        except (Unreachable, OSError, RunError) as why:
            logging.error("%s: not copied (%s); the newest files of the run are in %s", self.address, why, self.folder)

    def _copy(self) -> None:
        """Copies what has changed in the folder, and deletes at the address what is gone in it.

        Raises:
          Unreachable, OSError: it failed; a next call copies the rest.
          RunError: another run has taken the address.
        """
        self._holder.check()
        state = self._state()
        known: dict[str, list[int]] = state["files"]
        try:
            names, staged = self._staged(known)
            for name in sorted(staged, key=_rank):
                if self._is_interrupted.is_set():
                    raise Unreachable("interrupted")
                self._place.put(self._beside("stage") / name, name)
                known[name] = staged[name]
            gone = known.keys() - names
            for name in sorted(gone, key=_rank, reverse=True):  # the manifest of a checkpoint before its arrays
                self._place.delete(name)
                del known[name]
            if staged or gone:
                new = secrets.token_hex(8)
                self._write_copied({"run": state["run"], "id": new, "step": _newest(names)})
                self._seen = state["id"] = new
        finally:
            remove(self._beside("stage"))
            self._keep(state)

    def _staged(self, known: Mapping[str, list[int]]) -> tuple[set[str], dict[str, list[int]]]:
        """Sets the changed files aside, as they are now; returns the names of all files, and {name: state} of these.

        A checkpoint is set aside whole, or not at all if it is deleted meanwhile.
        """
        stage, staged = self._beside("stage"), {}
        remove(stage)
        there = self._files()
        for name, path in there.items():
            with contextlib.suppress(FileNotFoundError):
                now = _signature(path)
                if known.get(name) != now:
                    _set_aside(path, stage / name, name.startswith((folder.CHECKPOINTS, folder.EXPORTS)))
                    staged[name] = now
        whole = {Path(name).parent for name in {*known, *staged} if _rank(name) == _MANIFESTS}
        return set(there), {
            name: now for name, now in staged.items() if not name.startswith(_SAVED) or Path(name).parent in whole
        }

    # ---- What is known ----

    def _files(self) -> dict[str, Path]:
        """Returns {name: path} of the files of the run folder, without locks and what is being written."""
        found = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (Path(parent, name) for name in names if not name.startswith("."))
            found.update({path.relative_to(self.folder).as_posix(): path for path in paths})
        return found

    def _state(self) -> dict[str, Any]:
        """Returns what this machine knows of its copy; {} if the copy is gone."""
        path = self._beside("state.json")
        return read_json(path, dict, {}, "all files are copied again") if self.folder.is_dir() else {}

    def _keep(self, state: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._beside("state.json"), dict(state))

    def _beside(self, name: str) -> Path:
        """Returns a file of this room beside the run folder, which has none of them."""
        return self.folder.with_name(f".{self.folder.name}.{name}")

    def _copied(self) -> dict[str, Any]:
        return parsed(self._place.read(COPIED))

    def _write_copied(self, value: Mapping[str, Any]) -> None:
        self._place.write(COPIED, json.dumps(value).encode())

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """Raises UserError if the address or the cache fails."""
        try:
            yield
        except Unreachable as error:
            raise UserError(f"--workdir={self.address} cannot be {what}: {error}. Type another address.") from error
        except OSError as error:
            raise UserError(
                f"--workdir={self.address}: its copy cannot be {what}: {error}. Set FRAMEWORK_CACHE to another folder."
            ) from error


def _rank(name: str) -> int:
    """Returns when a file of a run folder is copied."""
    if name.startswith(_SAVED):
        return _MANIFESTS if name.endswith(f"/{folder.MANIFEST}") else _ARRAYS
    if name.startswith(folder.CHECKPOINTS):
        return _POINTERS
    return _RESULTS if name in _OF_THE_END else _ROWS


def _newest(names: Iterable[str]) -> int:
    """Returns the step of the newest checkpoint that has a manifest; 0 if there is none."""
    steps = (folder.step_of(Path(name).parent.name) for name in names if _rank(name) == _MANIFESTS)
    return max((step for step in steps if step is not None), default=0)


def _signature(path: Path) -> list[int]:
    """Returns size and time of the last change of a file, in bytes and nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _set_aside(path: Path, target: Path, is_final: bool) -> None:
    """Gives a file a second name, or copies it if it may still grow, or the disk has no second names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_final:
        try:
            os.link(path, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            pass
    shutil.copyfile(path, target)

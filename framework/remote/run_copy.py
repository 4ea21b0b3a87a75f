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
command copies it. One that does not answer keeps the end of the run waiting, which says so; a user who interrupts
that waits ten seconds.

A file at the address has an id, which is another one before the first change of each copy and after its last. This
machine notes all three before it begins. So another machine sees a change that was cut short, and this one knows its
own, whichever call failed and whether or not it had its effect.
"""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from framework import files, folder
from framework.errors import RunError, UserError
from framework.files import read_json, remove, write_json
from framework.remote.address import Place, Unreachable, folder_of
from framework.remote.holder import Holder, parsed
from framework.remote.mirror import mirror, without_manifest
from framework.remote.run_files import files_of, is_shown, newest, rank, signature, staged, state_of

COPIED = ".copied.json"  # at the address: the id of the run there, and that of its newest change

_DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds between the attempts of the last copy
_LONGEST_DELAY = 60.0  # of a copy while the run trains
_SAID_SECONDS = 60.0  # between two lines about an end that waits
_INTERRUPTED_SECONDS = 10.0  # that a user who interrupted waits for an answer


class RunCopy:
    """The copy of a run folder on this machine, and its way from and to the address.

    Args:
      address: 's3://bucket/run'.
      clock: returns the seconds since the epoch.
      wait: waits for seconds: between the attempts of the last copy, and for the sign of another process.

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
        self._holder = Holder(self._place, clock, wait)
        self._wait = wait
        self._seen: str | None = None  # the id at the address when it was fetched
        self._known: dict[str, Any] = {}  # while it is held: what this machine knows, as `state_of` has it
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
        names = {name for name in self._place.listing() if is_shown(name)}
        there, here, ours = self._copied(), self._state(), files_of(self.folder)
        self._seen = there.get("id")
        if not ours:
            if names or there:
                self._mirror(there)
            else:
                remove(self._beside("state.json"))  # of a run that was deleted here and there
            return
        if not names and any(here.get("files", {}).values()):
            raise UserError(
                f"{self.address} is empty, but {self.folder} has the run that was copied there. To begin a new one,"
                f" delete that copy: rm -r {self.folder}"
            )
        if there.get("run") and here.get("run") and there["run"] != here["run"]:
            raise UserError(
                f"{self.address} has another run than its copy {self.folder}. To take the one at the address, delete"
                f" the copy: rm -r {self.folder}"
            )
        if self._seen in here.get("ids", ()):
            return
        if not here.get("is_fetching"):
            if not there and newest(ours) >= newest(names):
                return
            if newest(ours) > newest(names):
                said = "%s is at step %d, by another machine; %s is at step %d, is kept, and is copied there"
                logging.warning(said, self.address, newest(names), self.folder, newest(ours))
                return
        self._mirror(there)

    def _mirror(self, there: Mapping[str, Any]) -> None:
        """Copies what is at the address, in place of what this machine has."""
        state, ours = self._state(), files_of(self.folder)
        known, token = state.get("files", {}), {"token": state.get("token")}
        is_same = all(known.get(name) == signature(path) for name, path in ours.items())
        if not is_same and not state.get("is_fetching"):
            aside = self._aside()
            self.folder.rename(aside)
            said = "%s: changed by another machine. What this one had, not all of which was copied there, is now in %s"
            logging.warning(said, self.address, aside)
        self._keep(token | {"is_fetching": True})  # so that a copy that is interrupted goes on where it was
        count = mirror(self._place, self.folder, is_shown, rank, files_of(self.folder))
        here = {name: signature(path) for name, path in files_of(self.folder).items()}
        self._keep({**token, "run": there.get("run"), "ids": [there.get("id")], "files": here})
        logging.info("%s: %d files copied from there, newest step %d", self.address, count, newest(here))

    def _aside(self) -> Path:
        """Returns a new folder beside the run folder, for what would be lost."""
        return self.folder.with_name(f"{self.folder.name}-{secrets.token_hex(2)}")

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
            thread = threading.Thread(target=self._copy_when_due, name="copy of a run", daemon=True)
            thread.start()
            try:
                yield
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):  # a user who interrupts does not wait for a network
                    self._is_interrupted.set()
                self._wait_for(lambda: self._end(thread, self._copy_after_error))
                raise
            else:
                self._wait_for(lambda: self._end(thread, self._copy_at_last))
            finally:
                self._wait_for(self._holder.release)

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
                self._known = self._begun() | {"token": token}
                self._keep(self._known)
            except BaseException:
                self._holder.release()
                raise

    def _begun(self) -> dict[str, Any]:
        """Returns what this machine knows when it begins to copy: files that the address has lost are copied again."""
        there, state = self._copied(), self._state()
        now, ids = there.get("id"), state.get("ids", [])
        if now not in (self._seen, *ids):
            raise UserError(f"{self.address} was changed since this start read it. Type the same command again.")
        listing = {name: entry.size for name, entry in self._place.listing().items() if is_shown(name)}
        if now in ids:
            known = state.get("files", {})
            known = {name: seen for name, seen in known.items() if name in listing}
            known = {name: seen for name, seen in known.items() if not seen or listing[name] in (None, seen[0])}
            known |= {name: () for name in without_manifest(listing) if name not in known}  # of a machine that died
        else:  # by another machine: all files are copied, and those that are not here are deleted
            ids, known = [now], dict.fromkeys(listing, ())
            if listing:
                aside = self._aside()
                mirror(self._place, aside, is_shown)
                logging.warning("%s: what another machine had copied there is now in %s", self.address, aside)
        run = state.get("run") or there.get("run") or secrets.token_hex(8)
        if not there:
            self._write_copied({"run": run, "id": now})
        return {"run": run, "ids": ids, "files": known}

    def _end(self, thread: threading.Thread, copy: Callable[[], None]) -> None:
        self._is_ending.set()
        self._wake.set()
        thread.join()
        copy()

    def _wait_for(self, do: Callable[[], None]) -> None:
        """Calls `do` in a thread, which a file system that does not answer may keep for ever; raises what it raises."""
        raised: list[BaseException] = []

        def call() -> None:
            try:
                do()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=call, name="end of a copy", daemon=True)
        thread.start()
        try:
            self._join(thread)
        except KeyboardInterrupt:
            self._is_interrupted.set()
            raise
        if raised:
            raise raised[0]

    def _join(self, thread: threading.Thread) -> None:
        """Waits for a thread, and says so; if the user has interrupted, for some seconds only."""
        if self._is_interrupted.is_set():
            thread.join(_INTERRUPTED_SECONDS)
            if thread.is_alive():
                logging.error("%s: no answer; the newest files of the run are in %s", self.address, self.folder)
            return
        start = time.monotonic()
        thread.join(_SAID_SECONDS)
        while thread.is_alive():
            said = "%s: the end of the run waits for it, %.0f s so far. To end now, interrupt: what it lacks is in %s"
            logging.warning(said, self.address, time.monotonic() - start, self.folder)
            thread.join(_SAID_SECONDS)

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
        now = self._refuse_changed()
        known: dict[str, Any] = self._known["files"]
        try:
            names, changed = staged(self.folder, known, self._beside("stage"))
            if folder.CONFIG in known and folder.CONFIG not in names:  # which no run deletes
                raise FileNotFoundError(f"{self.folder} was deleted")
            gone = known.keys() - names
            if changed or gone or self._known["ids"] != [now]:
                begin, end = secrets.token_hex(8), secrets.token_hex(8)
                self._known["ids"] = [now, begin, end]
                known.update(dict.fromkeys(changed, ()))  # on the disk before it is at the address
                self._keep(self._known)
                self._write_copied({"run": self._known["run"], "id": begin})
                self._change(known, changed, gone)
                self._write_copied({"run": self._known["run"], "id": end, "step": newest(names)})
                self._known["ids"] = [end]
        finally:
            remove(self._beside("stage"))
            self._keep(self._known)

    def _change(self, known: dict[str, Any], changed: Mapping[str, list[int]], gone: set[str]) -> None:
        """Copies files that were set aside, deletes those that are gone, and notes each in `known`."""
        for name in sorted(changed, key=rank):
            if self._is_interrupted.is_set():
                raise Unreachable("interrupted")
            self._place.put(self._beside("stage") / name, name)
            known[name] = changed[name]
        for name in sorted(gone, key=rank, reverse=True):  # the manifest of a checkpoint before its arrays
            self._place.delete(name)
            del known[name]

    def _refuse_changed(self) -> Any:
        """Returns the id at the address; raises RunError if another run, which may have ended, changed it meanwhile."""
        there = self._copied()
        if there and there.get("id") not in self._known["ids"]:
            self._holder.give_up(
                f"{self.address} was changed by another run, so this run stops. What it has is in {self.folder}. Type"
                " the same command again, which compares the two."
            )
        return there.get("id")

    # ---- What is known ----

    def _state(self) -> dict[str, Any]:
        """Returns what this machine knows of its copy; {} if the copy is gone."""
        path = self._beside("state.json")
        return read_json(path, state_of, {}, "all files are copied again") if self.folder.is_dir() else {}

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

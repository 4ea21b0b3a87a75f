"""Who trains at an address: a file there, which the process renews while it trains.

    holder = Holder(place)
    token = holder.take(before)     # UserError if another process renewed the file in the last three minutes
    holder.check()                  # RunError if another process has taken the address meanwhile
    holder.release()
    told(folder)                    # '123 on host', of a copy of what is at an address

Object stores have no locks. A process that dies leaves the file, which counts for three minutes after its last renewal.
Clocks of two machines may differ by more than that, so an older file, or one from the future, is first watched for a
minute: one that is renewed meanwhile is that of a living process.
Two starts within the same second may both begin; the one that the file does not name stops when it copies next.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from framework.errors import RunError, UserError
from framework.files import CorruptError, load_json
from framework.remote.address import Place, Unreachable

HOLDER = ".holder.json"  # its name at the address
RENEWAL_SECONDS = 30.0
DEAD_SECONDS = 180.0  # after the last renewal


class Holder:
    """Holds an address for this process.

    Args:
      place: the address.
      clock: returns the seconds since the epoch.
      wait: waits for seconds, while the file of a process that may be dead is watched.
    """

    def __init__(
        self, place: Place, clock: Callable[[], float] = time.time, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._place = place
        self._clock = clock
        self._wait = wait
        self._now: dict[str, Any] = {}  # content of the file while this process holds the address
        self._taken: RunError | None = None
        self._is_ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds the address."""
        return bool(self._now)

    def take(self, own: str | None) -> str:
        """Writes the file and renews it from now on; returns a token, by which a later start knows it again.

        Args:
          own: the token of the last process of this machine, which is known to be dead.

        Raises:
          UserError: another process holds the address.
          Unreachable: the file system failed.
        """
        there = self._read()
        if there and there.get("token") != own:
            self._refuse_living(there)
        self._taken = None
        process = f"{os.getpid()} on {os.uname().nodename}"
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._clock()))
        now = {"process": process, "started": started, "token": secrets.token_hex(8)}
        self._write(now)
        self._now = now
        self._is_ending.clear()
        self._thread = threading.Thread(target=self._renew, name="holder of an address", daemon=True)
        self._thread.start()
        return str(now["token"])

    def check(self) -> None:
        """Raises RunError if another process has taken the address, now or before; Unreachable if nobody knows."""
        there = self._read()
        if there and there.get("token") != self._now.get("token"):
            self.give_up(
                f"{self._place.address} was taken by process {there.get('process')}, which trains there since"
                f" {there.get('started')}, so this run stops. Type the same command again when that one has ended."
            )
        self.refuse_taken()

    def give_up(self, why: str) -> None:
        """Raises RunError, now and at each later `refuse_taken`."""
        self._taken = RunError(why)
        raise self._taken

    def refuse_taken(self) -> None:
        """Raises RunError if `check` has found that another process took the address."""
        if self._taken is not None:
            raise self._taken

    def release(self) -> None:
        """Stops renewing, and deletes the file if it is this process's."""
        self._is_ending.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(Unreachable):
            if self._read().get("token") == self._now.get("token"):
                self._place.delete(HOLDER)
        self._now = {}

    def _refuse_living(self, there: Mapping[str, Any]) -> None:
        age = self._clock() - _renewed(there)
        who = f"process {there.get('process')}, which trains there since {there.get('started')}"
        busy = f"--workdir={self._place.address} is in use by {who}. Wait for it, stop it, or use another folder."
        if abs(age) < DEAD_SECONDS:
            raise UserError(f"{busy} If it has died, the same command works in {DEAD_SECONDS - age:.0f} s.")
        watched = 2 * RENEWAL_SECONDS
        said = "%s: %s, has not said so for %.0f s by this clock. Its file is watched for %.0f s."
        logging.info(said, self._place.address, who, age, watched)
        self._wait(watched)
        now = self._read()
        if now and now != there:
            raise UserError(f"{busy} Its file, {age:.0f} s old by this clock, was renewed just now.")
        logging.warning("%s: taken over from %s, and has not said so for %.0f s", self._place.address, who, age)

    def _renew(self) -> None:
        while not self._is_ending.wait(RENEWAL_SECONDS):
            with contextlib.suppress(Unreachable, RunError):
                self.check()
                self._write(self._now)

    def _read(self) -> dict[str, Any]:
        return parsed(self._place.read(HOLDER))

    def _write(self, now: Mapping[str, Any]) -> None:
        self._place.write(HOLDER, json.dumps({**now, "renewed": self._clock()}).encode())


def told(path: Path) -> str:
    """Returns which process trains at the address whose files a folder has; '' if none does, or it has died."""
    try:
        there = load_json(path / HOLDER)
    except (CorruptError, FileNotFoundError):
        return ""
    is_alive = isinstance(there, dict) and time.time() - _renewed(there) < DEAD_SECONDS
    return str(there.get("process")) if is_alive else ""


def parsed(content: bytes | None) -> dict[str, Any]:
    """Returns the value of a JSON file of this room; {} if there is none, or half of it."""
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _renewed(there: Mapping[str, Any]) -> float:
    renewed = there.get("renewed")
    return float(renewed) if isinstance(renewed, int | float) else 0.0

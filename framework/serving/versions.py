"""The versions of a model in a folder: the newest one that can be trusted is served, while a newer one is prepared.

    versions = Versions(Path("exports/saved_model"), "mnist", is_trusted=False, say=print)
    versions.look()                     # again and again: loads a version that has come, and only then serves it
    versions.asked("mnist", None)       # the Model that answers; requests that have the former one keep it

A version is left alone if it is half-written, if the manifest does not know it or has another hash, or if it cannot be
loaded; a line says why, once, and the version is tried again when its files change.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from framework import manifest
from framework.errors import UserError
from framework.serving.errors import CodeError
from framework.serving.model import Model
from framework.serving.transport import State

_Print = tuple[tuple[str, int, int], ...]  # of the files of a version: name, bytes, time of change


class Versions:
    """The versions of one model.

    Args:
      folder: exports/<hook>, with a folder for each version.
      name: of the model.
      is_trusted: whether versions are served whose hash the manifest does not have.
      say: gets each line for people.
    """

    def __init__(self, folder: Path, name: str, is_trusted: bool, say: Callable[[str], None]) -> None:
        self.name = name
        self._folder = folder
        self._is_trusted = is_trusted
        self._say = say
        self._current: Model | None = None
        self._states: dict[int, State] = {}
        self._refused: dict[int, tuple[_Print, str]] = {}  # as it was when it was refused, and why
        self._pause = 1.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)

    def start(self, seconds: float) -> None:
        """Loads the first version, and looks for others every so many seconds from then on.

        Raises:
          UserError: there is no version that can be served.
        """
        self.look()
        if self._current is None:
            if not self._refused:
                raise UserError(f"{self._folder} has no version to serve. Export one: --mode=export.")
            newest = max(self._refused)
            raise UserError(f"{self._folder / str(newest)} is not served: {self._refused[newest][1]}")
        self._pause = seconds
        self._thread.start()

    def stop(self) -> None:
        """Ends the looks; the version stays."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def asked(self, name: str, version: int | None) -> Model:
        """Returns the model that answers a request.

        Raises:
          CodeError: NOT_FOUND, if there is no such model or version.
        """
        current = self._current
        wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        if current is None or name != self.name or version not in (None, current.version):
            raise CodeError("NOT_FOUND", f"Servable not found for request: {wanted}")
        return current

    def states(self, name: str, version: int | None) -> list[State]:
        """Returns the states of the versions that were seen, newest first; of one version, if it is asked for.

        Raises:
          CodeError: NOT_FOUND, if there is no such model or version.
        """
        known = dict(self._states)
        chosen = [known[number] for number in sorted(known, reverse=True) if version in (None, number)]
        if name != self.name or not chosen:
            which = name if version is None else f"{name} with version {version}"
            raise CodeError("NOT_FOUND", f"Could not find any versions of model {which}")
        return chosen

    def look(self) -> None:
        """Loads the newest version that is neither served nor refused, and serves it."""
        for number, path in sorted(manifest.versions(self._folder).items(), reverse=True):
            if self._current is not None and number == self._current.version:
                return
            files = _files(path)
            if number in self._refused and self._refused[number][0] == files:
                continue
            model = self._prepared(number, path, files)
            if model is not None:
                self._serve(model)
                return

    def _prepared(self, number: int, path: Path, files: _Print) -> Model | None:
        """Returns a version that is loaded and warm, or None after it was refused."""
        why = self._fault(path)
        if not why:
            self._states[number] = State(number, "LOADING")
            try:
                return Model.load(path)
            except Exception as error:  # whatever a SavedModel of others raises, the earlier version stays
                why = " ".join(f"it cannot be loaded: {type(error).__name__}: {error}".split())
        is_new = self._refused.get(number, ((), ""))[1] != why
        self._refused[number] = (files, why)
        self._states[number] = State(number, "END", "FAILED_PRECONDITION", why)
        if is_new:
            self._say(f"version {number} is not served: {why}")
        return None

    def _fault(self, path: Path) -> str:
        """Returns why a version must not be loaded; '' if it may."""
        if not (path / "saved_model.pb").is_file():
            return "it is half-written: it has no saved_model.pb"
        return "" if self._is_trusted else manifest.fault(path)

    def _serve(self, model: Model) -> None:
        former, self._current = self._current, model
        self._states[model.version] = State(model.version, "AVAILABLE")
        self._refused.pop(model.version, None)
        if former is not None:
            self._states[former.version] = State(former.version, "END")
            self._say(f"version {model.version} is served instead of {former.version}")

    def _watch(self) -> None:
        while not self._stopped.wait(self._pause):
            try:
                self.look()
            except OSError as error:
                self._say(f"{self._folder} cannot be looked at: {error.strerror or error}")


def _files(path: Path) -> _Print:
    found = []
    for file in sorted(path.rglob("*")):
        try:
            stat = file.stat()
        except OSError:  # removed at this moment
            continue
        found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)

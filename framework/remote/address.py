"""Addresses of run folders and data that are not on this machine: 's3://bucket/run', 'gs://…', 'memory://…'.

    is_address("s3://bucket/run")                       # True; 'runs/first' is a folder of this machine
    folder_of("s3://bucket/run")                        # its copy below the cache, by the address alone
    place = Place("s3://bucket/run")                    # UserError without the package of that file system
    place.listing()                                     # {'config.json': Entry(size=1200, key='9f…')}
    place.put(path, "config.json"), place.get("config.json", path)

fsspec does the work: each scheme that it knows is an address, if its package is installed. Nothing here imports
TensorFlow.
"""

import contextlib
import hashlib
import os
import re
import textwrap
import urllib.parse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from framework import extras
from framework.errors import RunError, UserError
from framework.files import cache_folder

EXTRA = "remote"  # of pyproject.toml
RUNS, VIEWS, READ = "runs", "views", "read"  # folders of the cache: of runs, to look at, of data and other runs
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_REASON_CHARACTERS = 300


class Unreachable(Exception):
    """A file system did not do what it was asked; the message is its reason."""


class Entry(NamedTuple):
    """A file at an address.

    Attributes:
      size: in bytes; None if the file system does not tell.
      key: hash of all that the file system tells of it: size, times, ETag and other checksums.
    """

    size: int | None
    key: str


def is_address(text: Any) -> bool:
    """Returns whether a text is an address, not a folder of this machine."""
    return isinstance(text, str) and _SCHEME.match(text) is not None


def check(address: str) -> None:
    """Raises UserError for an address that no copy can be made of, or that has a password in it."""
    shown = address.partition("://")[0] + "://"
    if "::" in address:
        raise UserError(f"{address} is a chain of file systems. Type one of them, e.g. s3://bucket/run.")
    with contextlib.suppress(ValueError):
        if urllib.parse.urlsplit(address).password is not None:
            raise UserError(
                f"{shown}… has a password in it, which the run would record. Put it where the package of {shown} looks,"
                " such as its environment variables, and leave it out."
            )
    if any(part in (".", "..") for part in address.split("/")):
        raise UserError(f"{address} has a '.' or '..' in it. Type the address without it.")


def refuse(path: Any, what: str) -> None:
    """Raises UserError for an address where only a folder or a file of this machine will do.

    Args:
      path: as given.
      what: where it was given, for the message: 'tf_records'.
    """
    if is_address(path):
        raise UserError(
            f"{what}: {path} is an address, and this reads files of this machine. Type its folder at --data_dir, which"
            " is copied, and read cfg.data.dir."
        )


def folder_of(address: str | os.PathLike[str], kind: str = RUNS) -> Path:
    """Returns the folder of this machine that holds the copy of an address; of a folder, the folder itself.

    Args:
      address: an address or a folder.
      kind: RUNS; VIEWS, of copies without the arrays of checkpoints; or READ, of data and of checkpoints to start from.
    """
    if not is_address(address):
        return Path(address)
    plain = str(address).rstrip("/")
    name = re.sub(r"[^\w.=+,-]+", "_", plain.rpartition("/")[2], flags=re.ASCII) or "root"
    return Path(os.path.abspath(cache_folder(kind))) / hashlib.sha256(plain.encode()).hexdigest()[:12] / name


@contextlib.contextmanager
def as_typed(address: str | os.PathLike[str] | None) -> Iterator[None]:
    """Has errors inside the context name the address in place of --workdir=<its copy>."""
    try:
        yield
    except (UserError, RunError) as error:
        if address is not None and is_address(address):
            text = str(error.args[0]) if error.args else ""
            for flag in ("--workdir", "--config.resume_from"):
                text = text.replace(f"{flag}={folder_of(address)}", f"{flag}={address}")
            error.args = (text, *error.args[1:])
        raise


class Place:
    """The files at an address.

    Raises:
      UserError: it is no address of a file system that fsspec knows, or a package is not installed.
    """

    def __init__(self, address: str) -> None:
        check(address)
        self.address = address
        core = extras.load("fsspec.core", EXTRA)
        scheme = address.partition("://")[0]
        try:
            self._system, root = core.url_to_fs(address)
        except ImportError as error:
            if package := _PACKAGES.get(scheme):
                pins = " ".join(extras.pins(EXTRA))  # typed too, or pip would change the version of fsspec
                raise UserError(f"{scheme}:// needs {package}. Type python -m pip install {package} {pins}") from error
            raise UserError(f"{scheme}:// needs another package: {_reason(error)}.") from error
        except Exception as error:  # each package raises exceptions of its own, such as for missing credentials
            raise UserError(f"{address} is no address that fsspec can open ({scheme}): {_reason(error)}.") from error
        self._root = str(root).rstrip("/")
        disk = extras.load("fsspec.implementations.local", EXTRA).LocalFileSystem
        self._has_folders = isinstance(self._system, disk)  # others show a file when it is whole
        self._made: set[str] = set()  # folders

    def listing(self) -> dict[str, Entry]:
        """Returns {name: entry} of all files below the address; {} if there is nothing.

        Raises:
          Unreachable: the file system failed.
          UserError: the address is a file, or a name would lead out of a folder.
        """
        with _explained():
            self._system.invalidate_cache()
            found = self._system.find(self._root, detail=True)
        files = {}
        for path, info in found.items():
            if info.get("type") != "file":
                continue
            name = str(path).removeprefix(self._root).lstrip("/")
            if not name and info.get("size"):
                raise UserError(f"{self.address} is a file. Type the address of a folder.")
            if ".." in PurePosixPath(name).parts:
                raise UserError(f"{self.address} has a file of the name '{name}', which no folder can hold.")
            if name and not str(path).endswith("/"):
                key = hashlib.sha256(str(sorted(info.items(), key=str)).encode()).hexdigest()
                files[name] = Entry(info.get("size"), key)
        return files

    def get(self, name: str, target: Path) -> None:
        """Copies a file to this machine; raises FileNotFoundError if it is gone, or Unreachable."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with _explained():
            self._system.get_file(self._path(name), str(target))

    def put(self, source: Path, name: str) -> None:
        """Copies a file of this machine to the address; raises Unreachable."""
        with _explained(), self._replaced(name) as path:
            self._system.put_file(str(source), path)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file; None if there is none. Raises Unreachable."""
        try:
            with _explained():
                return bytes(self._system.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file; raises Unreachable."""
        with _explained(), self._replaced(name) as path:
            self._system.pipe_file(path, content)

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there, and the folder that is empty without it; raises Unreachable."""
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError), _explained():
            self._system.rm_file(path)
        if self._has_folders:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(path))
                self._made.discard(os.path.dirname(path))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _replaced(self, name: str) -> Iterator[str]:
        """Gives the path to write a file to; on a disk another one, which is renamed when the file is whole."""
        parent, _, last = self._path(name).rpartition("/")
        if parent not in self._made:
            self._system.makedirs(parent, exist_ok=True)
            self._made.add(parent)
        path = f"{parent}/.{last}.part" if self._has_folders else f"{parent}/{last}"
        yield path
        if self._has_folders:
            os.replace(path, f"{parent}/{last}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raises Unreachable for whatever a file system raises, but for FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # OSError, and those of each package's own
        raise Unreachable(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return textwrap.shorten(text, _REASON_CHARACTERS, placeholder=" …") or type(error).__name__

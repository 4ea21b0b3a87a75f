"""Small files: how every file of a run folder is written, read and locked.

    write_json(path, {"mode": "xla"})                           # a crash leaves the old file or the new one, never half
    read_json(path, lambda value: str(value["mode"]), None, "the step is timed again")      # warns of a damaged file
    rows(path)                                                  # the complete lines of a JSON lines file
    with held(path, lambda holder: f"in use by {holder}"): ...  # a lock

No function waits for a pipe, writes through a link, or takes a folder for a file.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from absl import logging

from framework.errors import UserError

T = TypeVar("T")

_HOLDER_CHARACTERS = 100
_LONGEST_LINE = 2**20  # bytes
_PROBE_SECONDS = 0.05


class CorruptError(Exception):
    """A file or folder does not have the content that was written."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file; readers, also those after a crash, get the old content or the new one and nothing between.

    Raises:
      OSError: the disk is full or fails, or `path` is a folder; the old file stays.
    """
    aside = path.with_name(f".{path.name}.tmp")
    remove(aside)
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(aside)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, as `write_bytes` does."""
    text = io.StringIO()
    json.dump(value, text, indent=2)
    write_text(path, text.getvalue() + "\n")


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
      FileNotFoundError: there is no file.
      CorruptError: the path is a folder or a pipe, or cannot be read.
    """
    with _opened(path) as file:
        return file.read()


def lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file one by one, in the memory of one line; nothing if there is no file.

    A line longer than a megabyte comes in parts.

    Raises:
      CorruptError: the path is a folder or a pipe, or cannot be read.
    """
    try:
        with _opened(path) as file:
            yield from iter(lambda: file.readline(_LONGEST_LINE), b"")
    except FileNotFoundError:
        return


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptError(error.strerror) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptError("it is not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise CorruptError(error.strerror) from error
    finally:
        os.close(descriptor)


def load_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
      FileNotFoundError: there is no file.
      CorruptError: the file cannot be read, or is not JSON.
    """
    return _parsed(read_bytes(path))


def read_json(path: Path, take: Callable[[Any], T], default: T, so: str) -> T:
    """Returns what `take` picks from a JSON file; `default` if there is no file or, with a warning, if it is damaged.

    Args:
      path: the file.
      take: picks from the value, which may be any JSON; an exception that it raises counts as damage.
      default: the result without the file.
      so: the consequence of a damaged file, for the warning: 'the step is timed again'.
    """
    try:
        return take(load_json(path))
    except FileNotFoundError:
        return default
    except (ArithmeticError, AttributeError, CorruptError, LookupError, TypeError, ValueError) as error:
        logging.warning("%s is damaged (%s): %s", path, _why(error), so)
        return default


def rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a JSON lines file, each an object with a whole number 'step'; [] without a file.

    Damaged lines are left out, with one warning. An incomplete last line, from a process that was killed, is left out
    without a warning.
    """
    try:
        return [row for _, row in lines_and_rows(path)]
    except FileNotFoundError:
        return []
    except CorruptError as error:
        logging.warning("%s cannot be read (%s) and is left out", path, error)
        return []


def lines_and_rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns (line, row) for each row that `rows` returns, with the line as it is in the file.

    Raises:
      FileNotFoundError: there is no file.
      CorruptError: the file cannot be read.
    """
    pairs = []
    damaged = 0
    lines = read_bytes(path).splitlines(keepends=True)
    for line in lines:
        try:
            pairs.append((line, _row(line)))
        except (CorruptError, LookupError, TypeError):
            damaged += line.endswith(b"\n")
    if damaged:
        logging.warning("%s: %d of %d lines are damaged and left out", path, damaged, len(lines))
    return pairs


def _row(line: bytes) -> dict[str, Any]:
    row = _parsed(line)
    if not line.endswith(b"\n") or type(row["step"]) is not int or row["step"] < 0:
        raise CorruptError("it is not a row")
    return row


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise CorruptError("it is nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number with thousands of digits
        raise CorruptError(str(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return " ".join(str(error).split()) or type(error).__name__


def cache_folder(name: str) -> Path:
    """Returns the folder of that name in the cache: below $FRAMEWORK_CACHE, else ~/.cache/tf-research-framework."""
    root = os.environ.get("FRAMEWORK_CACHE") or os.path.join("~", ".cache", "tf-research-framework")
    return Path(root).expanduser() / name


def remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a folder with everything in it, if the path exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_full_disk(error: BaseException) -> bool:
    """Returns whether a write failed because the disk is full, by the exceptions of Python and TensorFlow."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_full or type(error).__name__ == "ResourceExhaustedError"


def sync(folder: Path) -> None:
    """Waits until a folder's entries, or a file's bytes, are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unreachable(path: Path) -> str:
    """Returns why a path cannot be examined; '' if it can, or if nothing has that name."""
    try:
        if path.is_symlink() and not path.exists():
            return f"it is a link to {os.readlink(path)}, which does not exist"
        path.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error.strerror)
    return ""


@contextlib.contextmanager
def held(path: Path, busy: Callable[[str], str], waits: bool = False) -> Iterator[None]:
    """Locks a file, which is made if need be, while the context lasts; the lock ends when the process dies.

    Args:
      path: the lock file.
      busy: returns the message for a lock that another process, such as '123 on host', holds.
      waits: whether to log that message and wait, instead of raising it.

    Raises:
      UserError: another process holds the lock, or the file cannot be locked.
    """
    with os.fdopen(_lock_file(path), "r+", errors="replace") as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            holder = " ".join(file.read(_HOLDER_CHARACTERS).split()) or "unknown"
            if not waits:
                raise UserError(busy(holder)) from error
            logging.info("%s", busy(holder))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"{path} cannot be locked: {error.strerror}. Use a folder on another disk.") from error
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def _lock(file: IO[str]) -> None:
    """Locks a file; raises BlockingIOError if a process keeps the lock for longer than `holder` does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_PROBE_SECONDS)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def holder(path: Path) -> str:
    """Returns which process, such as '123 on host', holds the lock of a file; '' if none does, or there is no file."""
    try:
        with _opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for microseconds, which `held` waits out
            except BlockingIOError:
                return " ".join(file.read(_HOLDER_CHARACTERS).decode(errors="replace").split()) or "unknown"
    except (CorruptError, FileNotFoundError):
        pass
    return ""


def _lock_file(path: Path) -> int:
    """Returns a descriptor of the file; refuses a link, because the lock overwrites the content."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise UserError(f"{path} cannot be locked: {why}. Remove it, or use another folder.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} cannot be locked: it is not a file. Remove it, or use another folder.")
    return descriptor

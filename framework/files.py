"""Small files of a run folder: one way to write them, one way to read them, one way to lock a folder.

    write_json(path, {"mode": "xla"})                                         # the old file or the new one, never half
    read_json(path, lambda value: str(value["mode"]), None, "the step is timed anew")   # damage is a warning
    rows(path)                                                                # whole lines of a JSON lines file
    with held(path, lambda holder: f"in use by {holder}"): ...

Nothing here waits for a pipe, writes through a link that a crash left behind, or takes a folder for a file.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from framework.errors import UserError

T = TypeVar("T")

_HOLDER_CHARACTERS = 100


class CorruptError(Exception):
    """A file or folder is not what was written."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old one or the new one and nothing between.

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
    """The same for text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """The same for JSON."""
    text = io.StringIO()
    json.dump(value, text, indent=2)
    write_text(path, text.getvalue() + "\n")


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
      FileNotFoundError: there is none.
      CorruptError: it is a folder or a pipe, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, who opens a pipe waits for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptError(error.strerror) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptError("it is not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise CorruptError(error.strerror) from error
    finally:
        os.close(descriptor)


def load_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
      FileNotFoundError: there is none.
      CorruptError: it cannot be read, or is no JSON.
    """
    return _parsed(read_bytes(path))


def read_json(path: Path, take: Callable[[Any], T], default: T, so: str) -> T:
    """What `take` makes of a JSON file; `default` if there is none, or, with a warning, if it is damaged.

    Args:
      take: picks what is needed out of the value, which may be any JSON; what it raises counts as damage.
      so: what happens without the file, for the warning.
    """
    try:
        return take(load_json(path))
    except FileNotFoundError:
        return default
    except (ArithmeticError, AttributeError, CorruptError, LookupError, TypeError, ValueError) as error:
        logging.warning("%s is damaged (%s): %s", path, _why(error), so)
        return default


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, each an object with a whole number 'step'; [] without a file.

    Lines that are damaged are left out with one warning; a last line that a dying process left torn, without one.
    """
    try:
        return [row for _, row in lines_and_rows(path)]
    except FileNotFoundError:
        return []
    except CorruptError as error:
        logging.warning("%s cannot be read (%s): it is left out", path, error)
        return []


def lines_and_rows(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The rows of `rows`, each after its line as it is in the file.

    Raises:
      FileNotFoundError: there is no file.
      CorruptError: it cannot be read.
    """
    found, damaged = [], 0
    lines = read_bytes(path).splitlines(keepends=True)
    for line in lines:
        try:
            found.append((line, _row(line)))
        except (CorruptError, LookupError, TypeError):
            damaged += line.endswith(b"\n")
    if damaged:
        logging.warning("%s: %d of %d lines are damaged and left out", path, damaged, len(lines))
    return found


def _row(line: bytes) -> dict[str, Any]:
    row = _parsed(line)
    if not line.endswith(b"\n") or type(row["step"]) is not int or row["step"] < 0:
        raise CorruptError("no row")
    return row


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise CorruptError("it is nested too deeply") from error
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise CorruptError(str(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return " ".join(str(error).split()) or type(error).__name__


def remove(path: Path) -> None:
    """Removes a file, a link (never what it points to) or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed for want of room, as Python or as TensorFlow says it."""
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
    """Why what `path` names cannot be looked at; '' if it can, or if there is nothing of that name."""
    try:
        if path.is_symlink() and not path.exists():
            return f"it is a link to {os.readlink(path)}, which is not there"
        path.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error.strerror)
    return ""


@contextlib.contextmanager
def held(path: Path, busy: Callable[[str], str], waits: bool = False) -> Iterator[None]:
    """Holds a lock file, which is made if it is not there; the system lets go of it when the process dies.

    Args:
      busy: what to say if another process, such as '123 on host', holds it.
      waits: whether to say that and wait for it.

    Raises:
      UserError: another process holds it, or it cannot be locked.
    """
    with os.fdopen(_lock_file(path), "r+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def _lock_file(path: Path) -> int:
    """A descriptor of the file; its content would be lost, so it must be a file of the folder itself."""
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

"""What is noted of a data file: its hash, and results of reading it that take long to make again.

    digest = content_hash(shard)                      # read once; the cache remembers it until the file changes
    digests = content_hashes(Path("pets"), pictures)  # of many small files; the cache has one file for all of them
    write(shard, ".index", content)                   # beside the file or, in a read-only folder, in the cache
    read(shard, ".index")                             # None if there is none

A note is a convenience: a note that cannot be written is made again at the next start.
"""

import concurrent.futures
import hashlib
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from framework import files
from framework.data import fetch
from framework.errors import UserError
from framework.files import CorruptError


def content_hash(path: Path) -> str:
    """Returns the SHA-256 of a file; the cache remembers it with the file's size, times and inode.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        now = _state(path)
        note = _in_cache(path, ".hash")
        known = files.read_json(
            note, lambda value: (value["file"], str(value["sha256"])), None, "the file is read again"
        )
        if known is not None and known[0] == now:
            return known[1]
        digest = _digest(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    _write(note, json.dumps({"path": str(path.absolute()), "file": now, "sha256": digest}).encode())
    return digest


def content_hashes(root: Path, paths: Sequence[Path]) -> list[str]:
    """Returns the SHA-256 of files below a folder; the cache remembers all of them in one file, as `content_hash` does.

    Raises:
      UserError: a file cannot be read.
    """
    note = _in_cache(root, ".hashes")
    none: dict[str, tuple[list[int], str]] = {}
    known = files.read_json(note, _to_hashes, none, "the files are read again")

    def hashed(path: Path) -> tuple[list[int], str]:
        try:
            now, before = _state(path), known.get(path.relative_to(root).as_posix())
            return (now, before[1] if before is not None and before[0] == now else _digest(path))
        except OSError as error:
            raise _unreadable(path, error) from error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        hashes = {
            path.relative_to(root).as_posix(): found for path, found in zip(paths, pool.map(hashed, paths), strict=True)
        }
    if hashes != known:
        _write(note, json.dumps(hashes).encode())
    return [digest for _, digest in hashes.values()]


def read(path: Path, suffix: str) -> bytes | None:
    """Returns the note of a file, from beside it or from the cache; None if there is none."""
    try:
        return files.read_bytes(place_of(path, suffix))
    except FileNotFoundError:
        return None
    except CorruptError as error:
        logging.warning("%s cannot be read (%s) and is made again", place_of(path, suffix), error)
        return None


def write(path: Path, suffix: str, content: bytes) -> None:
    """Writes a note of a file beside it; in the cache, if the folder of the file is read-only."""
    if not (_is_writable(path.parent) and _write(_beside(path, suffix), content)):
        _write(_in_cache(path, suffix), content)


def place_of(path: Path, suffix: str) -> Path:
    """Returns the path of the note of a file: beside it if one is there, else in the cache."""
    beside = _beside(path, suffix)
    return beside if beside.exists() else _in_cache(path, suffix)


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({fetch.reason(error)}).")


def _to_hashes(value: dict[str, Any]) -> dict[str, tuple[list[int], str]]:
    return {name: (list(state), str(digest)) for name, (state, digest) in value.items()}


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _in_cache(path: Path, suffix: str) -> Path:
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    return files.cache_folder("files") / f"{path.name}-{name}{suffix}"


def _is_writable(folder: Path) -> bool:
    """Returns whether the folder's mode lets anybody write: the superuser may write where nobody is meant to."""
    return bool(folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def _write(note: Path, content: bytes) -> bool:
    """Returns whether the note was written."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(note, content)
    except OSError as error:  # another process that writes the same note takes the place of this one
        logging.info("%s is not kept: %s", note, fetch.reason(error))
        return False
    return True

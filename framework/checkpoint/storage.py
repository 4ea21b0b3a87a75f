"""A folder of arrays: flushed to disk, hashed, and read back whole or not at all.

    write_arrays(folder, {'model/dense/kernel': kernel, 'step': step}, {'note': {}})
    read_arrays(folder)                     # {path: array}; CorruptError if a byte is not the one that was written
    read_manifest(folder)['note']

`arrays.bin` is the bytes of the arrays, one after the other; `manifest.json` has dtype, shape and offset of each, the
SHA-256 of `arrays.bin`, and one of itself.
"""

import hashlib
import json
import math
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from framework.files import CorruptError, load_json, write_json

MANIFEST = "manifest.json"
_ARRAYS = "arrays.bin"
# Small enough that a processor's cache still has what was hashed when it is written.
_CHUNK_BYTES = 2**20


class UnreachableError(CorruptError):
    """A folder may be what was written, but cannot be looked at."""


class Cancelled(Exception):
    """Nobody waits for the rest."""


def write_arrays(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    abandoned: threading.Event | None = None,
) -> None:
    """Writes arrays and manifest into an empty folder and returns when all of it is on disk.

    Args:
      folder: exists.
      arrays: {path: array} of numbers or bools of any shape, contiguous; they must not change meanwhile.
      facts: JSON that `read_manifest` gives back beside its own.
      abandoned: once set, the rest is not written.

    Raises:
      OSError: the disk is full, or fails.
      Cancelled: `abandoned` was set.
    """
    entries, offset, whole = {}, 0, hashlib.sha256()
    with (folder / _ARRAYS).open("wb") as file:
        for path, array in arrays.items():
            entries[path] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": offset}
            offset += array.nbytes
            for part in _parts(array):
                if abandoned is not None and abandoned.is_set():
                    raise Cancelled
                whole.update(part)
                file.write(part)
        file.flush()
        os.fsync(file.fileno())
    write_manifest(folder, {**facts, "bytes": offset, "sha256": whole.hexdigest(), "variables": entries})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes what `read_manifest` gives back, with its hash."""
    write_json(folder / MANIFEST, {**manifest, "manifest_sha256": _json_sha256(manifest)})


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """{path: array} of a folder that `write_arrays` wrote.

    Raises:
      CorruptError: with what is wrong.
    """
    manifest, arrays, whole = read_manifest(folder), {}, hashlib.sha256()
    entries = _checked(manifest)
    try:
        with os.fdopen(os.open(folder / _ARRAYS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size != manifest["bytes"]:
                raise CorruptError(f"{_ARRAYS} has {found.st_size} bytes, not {manifest['bytes']}")
            for path, (dtype, shape) in entries.items():
                arrays[path] = np.empty(shape, dtype)
                for part in _parts(arrays[path]):
                    file.readinto(part)
                    whole.update(part)
    except OSError as error:
        raise _damage(_ARRAYS, error) from error
    except ValueError as error:  # more dimensions, or larger ones, than an array can have
        raise CorruptError(f"{MANIFEST}: {error}") from error
    if whole.hexdigest() != manifest["sha256"]:
        raise CorruptError(f"{_ARRAYS} does not have its SHA-256")
    return arrays


def _checked(manifest: Mapping[str, Any]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """{path: dtype and shape} in the order of their bytes, which follow one another without a gap.

    Raises:
      CorruptError: no array can be like that, or not all of them together.
    """
    entries, end = {}, 0
    try:
        for path, entry in sorted(manifest["variables"].items(), key=lambda item: item[1]["offset"]):
            kind, shape = tf.as_dtype(entry["dtype"]), tuple(entry["shape"])
            if not (kind.is_floating or kind.is_integer or kind.is_complex or kind.is_bool):
                raise CorruptError(f"{MANIFEST}: '{path}' is of dtype {kind.name}")
            if any(type(size) is not int or size < 0 for size in shape):
                raise CorruptError(f"{MANIFEST}: '{path}' has shape {list(shape)}")
            if type(entry["offset"]) is not int or entry["offset"] != end:
                raise CorruptError(f"{MANIFEST}: '{path}' begins at byte {entry['offset']}, not {end}")
            entries[path] = np.dtype(kind.as_numpy_dtype), shape
            end += math.prod(shape) * entries[path][0].itemsize
        if type(manifest["bytes"]) is not int or manifest["bytes"] != end:
            raise CorruptError(f"{MANIFEST}: {manifest['bytes']} bytes for arrays of {end}")
        if len(manifest["sha256"]) != len(hashlib.sha256().hexdigest()):
            raise CorruptError(f"{MANIFEST}: no SHA-256 of {_ARRAYS}")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CorruptError(f"{MANIFEST}: {type(error).__name__}: {error}") from error
    return entries


def is_written(folder: Path) -> bool:
    """Whether a folder holds arrays or their manifest, whole or not."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, _ARRAYS))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_arrays` was given as facts, and bytes, sha256 and {path: {dtype, shape, offset}} as 'variables'.

    Raises:
      CorruptError: with what is wrong.
    """
    try:
        manifest = load_json(folder / MANIFEST)
        digest = manifest.pop("manifest_sha256")
    except OSError as error:
        raise _damage(MANIFEST, error) from error
    except CorruptError as error:
        kind = UnreachableError if isinstance(error.__cause__, PermissionError) else CorruptError
        raise kind(f"{MANIFEST}: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise CorruptError(f"{MANIFEST}: {error}") from error
    if digest != _json_sha256(manifest):
        raise CorruptError(f"{MANIFEST} does not have its SHA-256")
    return manifest


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied; a memoryview of bfloat16 itself does not exist."""
    return array.reshape(-1).view(np.uint8).data


def _parts(array: np.ndarray) -> Iterator[memoryview]:
    data = bytes_of(array)
    return (data[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES))


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _damage(name: str, error: OSError) -> CorruptError:
    if isinstance(error, FileNotFoundError):
        return CorruptError(f"{name} is missing")
    kind = UnreachableError if isinstance(error, PermissionError) else CorruptError
    return kind(f"{name}: {error.strerror}")

"""A folder of arrays: flushed to disk, hashed, and read back completely or not at all.

    write_arrays(folder, {'model/dense/kernel': kernel, 'step': step}, {'note': {}})
    read_arrays(folder)                     # {path: array}; CorruptError if any byte has changed
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
from framework.folder import MANIFEST

_ARRAYS = "arrays.bin"
# Small enough that a chunk is still in the processor's cache when it is written after it was hashed.
_CHUNK_BYTES = 2**20


class UnreachableError(CorruptError):
    """A folder cannot be looked at, so nobody knows whether it is damaged."""


class Cancelled(Exception):
    """A write was cancelled before its end."""


def write_arrays(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    cancelled: threading.Event | None = None,
) -> None:
    """Writes arrays and their manifest into an empty folder, and returns when all of it is on disk.

    Args:
      folder: an existing folder.
      arrays: {path: array} of numbers or bools, contiguous; they must not change meanwhile.
      facts: JSON that `read_manifest` returns beside its own entries.
      cancelled: an event that ends the write when it is set.

    Raises:
      OSError: the disk is full, or fails.
      Cancelled: `cancelled` was set.
    """
    entries = {}
    offset = 0
    total = hashlib.sha256()
    with (folder / _ARRAYS).open("wb") as file:
        for path, array in arrays.items():
            entries[path] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": offset}
            offset += array.nbytes
            for chunk in _chunks(array):
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled
                total.update(chunk)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    write_manifest(folder, {**facts, "bytes": offset, "sha256": total.hexdigest(), "variables": entries})


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest that `read_manifest` returns, and its hash."""
    write_json(folder / MANIFEST, {**manifest, "manifest_sha256": _json_sha256(manifest)})


def read_arrays(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns {path: array} of a folder that `write_arrays` wrote.

    Raises:
      CorruptError: the folder is damaged; the message says how.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    entries = _checked(manifest)
    arrays = {}
    total = hashlib.sha256()
    try:
        with os.fdopen(os.open(folder / _ARRAYS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != manifest["bytes"]:
                raise CorruptError(f"{_ARRAYS} has {status.st_size} bytes, not {manifest['bytes']}")
            for path, (dtype, shape) in entries.items():
                arrays[path] = np.empty(shape, dtype)
                for chunk in _chunks(arrays[path]):
                    file.readinto(chunk)
                    total.update(chunk)
    except OSError as error:
        raise _damage(_ARRAYS, error) from error
    except ValueError as error:  # too many dimensions for an array, or too large ones
        raise CorruptError(f"{MANIFEST}: {error}") from error
    if total.hexdigest() != manifest["sha256"]:
        raise CorruptError(f"{_ARRAYS} does not have its SHA-256")
    return arrays


def _checked(manifest: Mapping[str, Any]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Returns {path: (dtype, shape)} in the order of their bytes, which must follow one another without a gap.

    Raises:
      CorruptError: the entry of an array is impossible, or does not fit the others.
    """
    entries = {}
    end = 0
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
    """Returns whether a folder has arrays or their manifest, damaged or not."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, _ARRAYS))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the facts that `write_arrays` was given, with bytes, sha256 and {path: {dtype, shape, offset}}.

    Raises:
      CorruptError: the manifest is damaged; the message says how.
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
    """Returns the bytes of a contiguous array without a copy; NumPy has no memoryview of bfloat16 itself."""
    return array.reshape(-1).view(np.uint8).data


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
    data = bytes_of(array)
    return (data[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES))


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _damage(name: str, error: OSError) -> CorruptError:
    if isinstance(error, FileNotFoundError):
        return CorruptError(f"{name} is missing")
    kind = UnreachableError if isinstance(error, PermissionError) else CorruptError
    return kind(f"{name}: {error.strerror}")

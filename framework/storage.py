"""A folder of arrays: flushed to disk, hashed, and read back whole or not at all.

    write_arrays(folder, {'model/dense/kernel': kernel, 'step': step}, {'note': {}})
    read_arrays(folder)                     # {path: array}; DamagedError if a byte is not the one that was written
    read_manifest(folder)['note']

`arrays.bin` is the bytes of the arrays, one after the other; `manifest.json` has dtype, shape and offset of each, the
SHA-256 of `arrays.bin`, and one of itself.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

MANIFEST = "manifest.json"
_ARRAYS = "arrays.bin"
# Small enough that a processor's cache still has what was hashed when it is written.
_CHUNK_BYTES = 2**20


class DamagedError(Exception):
    """A folder is not what was written."""


class AbandonedError(Exception):
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
      AbandonedError: `abandoned` was set.
    """
    entries, offset, whole = {}, 0, hashlib.sha256()
    with (folder / _ARRAYS).open("wb") as file:
        for path, array in arrays.items():
            entries[path] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": offset}
            offset += array.nbytes
            for part in _parts(array):
                if abandoned is not None and abandoned.is_set():
                    raise AbandonedError
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
      DamagedError: with what is wrong.
    """
    manifest, arrays, whole = read_manifest(folder), {}, hashlib.sha256()
    try:
        with (folder / _ARRAYS).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != manifest["bytes"]:
                raise DamagedError(f"{_ARRAYS} has {size} bytes, not {manifest['bytes']}")
            for path, entry in sorted(manifest["variables"].items(), key=lambda item: item[1]["offset"]):
                arrays[path] = np.empty(entry["shape"], tf.as_dtype(entry["dtype"]).as_numpy_dtype)
                for part in _parts(arrays[path]):
                    file.readinto(part)
                    whole.update(part)
    except OSError as error:
        raise DamagedError(_what_of(_ARRAYS, error)) from error
    if whole.hexdigest() != manifest["sha256"]:
        raise DamagedError(f"{_ARRAYS} does not have its SHA-256")
    return arrays


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_arrays` was given as facts, and bytes, sha256 and {path: {dtype, shape, offset}} as 'variables'.

    Raises:
      DamagedError: with what is wrong.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        digest = manifest.pop("manifest_sha256")
    except OSError as error:
        raise DamagedError(_what_of(MANIFEST, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST}: {error}") from error
    if digest != _json_sha256(manifest):
        raise DamagedError(f"{MANIFEST} does not have its SHA-256")
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader, or a crash, sees the old file or the new one and nothing between."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Waits until a folder's entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied; a memoryview of bfloat16 itself does not exist."""
    return array.reshape(-1).view(np.uint8).data


def _parts(array: np.ndarray) -> Iterator[memoryview]:
    data = bytes_of(array)
    return (data[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES))


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _what_of(name: str, error: OSError) -> str:
    return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"

"""One checkpoint: a folder with the state of a step, its note and its facts.

    write_state(state, {}, folder)          # returns when it is on disk
    read(state, folder)                     # sets every variable, and returns the note
    facts_of(folder), digest(state)         # facts of its run; one SHA-256 of all bits

`checkpoints.py` decides which checkpoints a run has and keeps.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths
from framework.checkpoint.storage import (
    MANIFEST,
    CorruptError,
    UnreachableError,
    bytes_of,
    read_arrays,
    read_manifest,
    write_arrays,
)
from framework.errors import UserError
from framework.files import unreachable
from framework.folder import step_of
from framework.state import TrainState


def digest(state: tf.Module | Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256, in hex, of path, dtype, shape and bytes of all variables, in the order of their paths.

    Two states have the same digest if and only if they have the same bits.

    Args:
      state: a TrainState or any other module, or {path: array}.
    """
    total = hashlib.sha256()
    arrays = state if isinstance(state, Mapping) else dict(_arrays(state))
    for path in sorted(arrays):
        total.update(f"{path} {arrays[path].dtype.name}{list(arrays[path].shape)}\n".encode())
        total.update(bytes_of(np.ascontiguousarray(arrays[path])))
    return total.hexdigest()


def write_state(state: TrainState, note: dict[str, Any], folder: Path) -> None:
    """Writes the state and a note (see `Checkpoints.save`) as a checkpoint; returns once it is on disk."""
    write_arrays(folder, dict(_arrays(state)), {"step": int(state.step), "note": note, "named": paths.ambiguous(state)})


def _arrays(state: tf.Module) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, array) of every variable; an array shares the memory of its variable where it can."""
    for path, variable in paths.variables(state).items():
        yield path, np.asarray(paths.copies(variable)[0].read_value())


def copy_of(state: TrainState, memory: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns {path: copy} of every variable, in the memory of an earlier copy where it fits."""
    copy = {}
    for path, array in _arrays(state):
        if array.dtype.hasobject:
            raise UserError(f"the variable '{path}' holds text, but a checkpoint holds numbers.")
        target = memory.get(path)
        if target is None or (target.shape, target.dtype) != (array.shape, array.dtype):
            target = np.empty_like(array)
        np.copyto(target, array)
        copy[path] = target
    return copy


def read(state: TrainState, folder: Path, hint: str = "Use another --workdir.") -> dict[str, Any]:
    """Sets every variable of `state` from a checkpoint and returns its note.

    Raises:
      CorruptError: the checkpoint is damaged; the message says how.
      UserError: the checkpoint is of another model or optimizer; the message ends with `hint`.
    """
    manifest = manifest_of(folder)
    variables = paths.variables(state)
    saved = {path: f"{entry['dtype']}{entry['shape']}" for path, entry in manifest["variables"].items()}
    wanted = {path: f"{v.dtype.name}{v.shape.as_list()}" for path, v in variables.items()}
    for path, variable in variables.items():  # an adapted layer has variables as long as its data
        entry = manifest["variables"].get(path)
        if not variable.shape.is_fully_defined() and entry and variable.shape.is_compatible_with(entry["shape"]):
            wanted[path] = f"{variable.dtype.name}{entry['shape']}"
    _check_same(saved, wanted, folder, hint)
    named = paths.ambiguous(state)
    if differing := {*named} ^ {*manifest.get("named", named)}:
        raise UserError(
            f"{folder}: the layers {', '.join(sorted(differing))} were named by hand on one side and by Keras on the"
            f" other, so they need not be the same layers. Name them as before. {hint}"
        )
    for path, array in read_arrays(folder).items():
        paths.assign(variables[path], array)
    return manifest["note"]


def _check_same(saved: dict[str, str], wanted: dict[str, str], folder: Path, hint: str) -> None:
    """Raises UserError if dtypes or shapes differ; the message lists both sides of every difference."""
    differing = [
        f"{path}: {saved.get(path, 'absent')} in the checkpoint, {wanted.get(path, 'absent')} in the run"
        for path in sorted({*saved, *wanted})
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        raise UserError(f"{folder} is of another model or optimizer: {'; '.join(differing)}. {hint}")


def facts_of(folder: Path) -> dict[str, Any]:
    """Returns the facts that a checkpoint was saved with; {} if it has none, or is damaged."""
    try:
        return manifest_of(folder).get("facts", {})
    except CorruptError:
        return {}


def manifest_of(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint.

    Raises:
      CorruptError: it is damaged, is not one of a checkpoint, or has another step than the folder's name.
    """
    if why := unreachable(folder):
        raise UnreachableError(why)
    manifest = read_manifest(folder)
    kinds = {"step": int, "note": dict, "variables": dict}
    if wrong := [name for name, kind in kinds.items() if type(manifest.get(name)) is not kind]:
        raise CorruptError(f"{MANIFEST} has no {wrong[0]}")
    if type(manifest.get("facts", {})) is not dict:  # older checkpoints have none
        raise CorruptError(f"{MANIFEST} has no facts")
    if step_of(folder.name) not in (None, manifest["step"]):
        raise CorruptError(f"it is the checkpoint of step {manifest['step']} under the name of another step")
    return manifest


def is_whole(folder: Path) -> bool:
    """Returns whether a folder is an undamaged checkpoint."""
    try:
        return bool(manifest_of(folder)) and bool(read_arrays(folder))
    except CorruptError:
        return False


def named_in(folder: Path) -> list[str]:
    """Returns `paths.ambiguous` of the model of a checkpoint; [] for older checkpoints, which do not have it."""
    return [path.removeprefix("model/") for path in read_manifest(folder).get("named", [])]

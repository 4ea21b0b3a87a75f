"""Checkpoints that are whole or not there.

    checkpoints = Checkpoints(workdir / 'checkpoints', keep=3)
    checkpoints.save(state, {'wall_seconds': 12.3})     # checkpoints/step-00000469/
    note = checkpoints.restore(state)                   # the newest whole one; None if there is none

A checkpoint is written aside, flushed to disk and renamed; `last.json` and `best.json` name one and move after it. The
tensors are one TensorFlow bundle, keyed by path (`tf.train.load_checkpoint(folder + '/state')` reads it); a manifest
has the SHA-256 of each file.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from framework import paths
from framework.config import UserError
from framework.state import TrainState

_MANIFEST = "manifest.json"
_PREFIX = "step-"


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        names = [path.name for path in self.folder.glob(f"{_PREFIX}*") if (path / _MANIFEST).is_file()]
        return sorted(int(name.removeprefix(_PREFIX)) for name in names)

    def save(self, state: TrainState, note: dict[str, Any]) -> Path:
        """Writes the state of its own step; `note` is JSON that `restore` gives back. Older ones beyond `keep` go."""
        step = int(state.step)
        target = self._path(step)
        if not (target / _MANIFEST).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            aside = self.folder / f".{target.name}.tmp"
            aside.mkdir()
            write_state(state, note, aside)
            if target.exists():  # without a manifest: half deleted
                shutil.rmtree(target)
            aside.rename(target)
            _sync(self.folder)
        self._point("last", step)
        self._point_to_best(state)
        kept = {*self.steps()[-self._keep :], self.pointed("best")}
        for old in set(self.steps()) - kept:
            shutil.rmtree(self._path(old).rename(self.folder / f".{self._path(old).name}.tmp"))
        return target

    def restore(self, state: TrainState, which: str = "last", repair: bool = False) -> dict[str, Any] | None:
        """Sets every variable of `state` and returns the note.

        Args:
          state: of the same model and optimizer.
          which: 'last' falls back, loudly, past damaged checkpoints to the newest whole one; 'best' does not.
          repair: for who trains on: damaged ones are set aside as damaged-step-…, so that they are written anew and
            never count among the newest; a best pointer that a crash left behind is moved.

        Raises:
          UserError: the checkpoint is of another model (both sides are listed), or the best is missing or damaged.
        """
        if which == "best":
            step = self.pointed("best")
            damage = "there is none yet" if step is None else _damage(self._path(step))
            if step is None or damage:
                raise UserError(
                    f"{self.folder}: the best checkpoint cannot be used: {damage}. Use --config.export.checkpoint=last."
                )
            return _read(state, self._path(step))
        for step in reversed(self.steps()):
            damage = _damage(self._path(step))
            if not damage:
                note = _read(state, self._path(step))
                if repair:
                    self._point_to_best(state)
                return note
            logging.error("checkpoint %s is damaged (%s); falling back to the one before", self._path(step), damage)
            if repair:
                aside = self.folder / f"damaged-{self._path(step).name}"
                shutil.rmtree(aside, ignore_errors=True)
                self._path(step).rename(aside)
        return None

    def pointed(self, name: str) -> int | None:
        """The step that `last.json` or `best.json` names."""
        try:
            return int(json.loads((self.folder / f"{name}.json").read_text())["step"])
        except FileNotFoundError:
            return None

    def _point_to_best(self, state: TrainState) -> None:
        """The state itself says which step is the best; a pointer written later could be lost to a crash."""
        best = int(state.best.step)
        if best != self.pointed("best") and best in self.steps():
            self._point("best", best)

    def _point(self, name: str, step: int) -> None:
        write_json(self.folder / f"{name}.json", {"step": step, "checkpoint": self._path(step).name})

    def _path(self, step: int) -> Path:
        return self.folder / name_of(step)

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(f".{_PREFIX}*.tmp"):
            shutil.rmtree(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader, or a crash, sees the old file or the new one and nothing between."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync(path.parent)


def write_state(state: TrainState, note: dict[str, Any], folder: Path) -> None:
    """Writes the tensors and the manifest into an empty folder, flushed to disk."""
    variables = paths.variables(state)
    tf.raw_ops.SaveV2(
        prefix=str(folder / "state"),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[variable.read_value() for variable in variables.values()],
    )
    files = sorted(folder.iterdir())
    for file in files:
        _sync(file)
    manifest = {
        "step": int(state.step),
        "note": note,
        "variables": {path: _describe(variable) for path, variable in variables.items()},
        "sha256": {file.name: _sha256(file) for file in files},
    }
    write_json(folder / _MANIFEST, manifest)


def _read(state: TrainState, folder: Path, hint: str = "Use another --workdir.") -> dict[str, Any]:
    manifest = json.loads((folder / _MANIFEST).read_text())
    variables = paths.variables(state)
    _check_same(
        manifest["variables"], {path: _describe(variable) for path, variable in variables.items()}, folder, hint
    )
    tensors = tf.raw_ops.RestoreV2(
        prefix=str(folder / "state"),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        dtypes=[variable.dtype for variable in variables.values()],
    )
    for variable, tensor in zip(variables.values(), tensors, strict=True):
        variable.assign(tensor)
    return manifest["note"]


def _check_same(saved: dict[str, str], wanted: dict[str, str], folder: Path, hint: str) -> None:
    """Raises UserError with both sides of every difference."""
    differing = [
        f"{path}: {saved.get(path, 'absent')} in the checkpoint, {wanted.get(path, 'absent')} in the run"
        for path in sorted({*saved, *wanted})
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        raise UserError(f"{folder} is of another model or optimizer: {'; '.join(differing)}. {hint}")


def _describe(variable: tf.Variable) -> str:
    return f"{variable.dtype.name}{variable.shape.as_list()}"


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint's files; '' if nothing."""
    try:
        wanted = json.loads((folder / _MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        return f"{_MANIFEST}: {error}"
    for name, digest in wanted.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != digest:
            return f"{name} does not have its SHA-256"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(key: str, text: str) -> Path:
    """The checkpoint that a config key names: a checkpoint's own folder, or of a run folder the newest whole one.

    Raises:
      UserError: there is none, or it is damaged.
    """
    folder = Path(text)
    damages = {}
    for path in [folder] if (folder / _MANIFEST).is_file() else _newest_first(folder):
        damages[path] = _damage(path)
        if not damages[path]:
            return path
        logging.error("checkpoint %s is damaged (%s)", path, damages[path])
    if damages:
        raise UserError(
            f"{key}='{text}': {'; '.join(f'{path} is damaged ({damage})' for path, damage in damages.items())}."
        )
    raise UserError(
        f"{key}='{text}' is neither a checkpoint nor a run folder with one."
        f" Type e.g. --config.{key}=runs/first or --config.{key}=runs/first/checkpoints/{_PREFIX}00000469."
    )


def name_of(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"{_PREFIX}{step:08d}"


def is_whole(folder: Path) -> bool:
    """Whether a folder is an undamaged checkpoint."""
    return not _damage(folder)


def _newest_first(folder: Path) -> list[Path]:
    checkpoints = Checkpoints(folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder, 1)
    return [checkpoints._path(step) for step in reversed(checkpoints.steps())]


def restore_from(state: TrainState, folder: Path, hint: str) -> dict[str, Any]:
    """Sets every variable of `state` from a checkpoint outside of the run folder and returns the note.

    Raises:
      UserError: it is of another model or optimizer; ends with `hint`.
    """
    return _read(state, folder, hint)


def adopt(source: Path, folder: Path) -> None:
    """Copies a checkpoint into the folder of another run's checkpoints: whole or not at all."""
    manifest = json.loads((source / _MANIFEST).read_text())
    target = folder / name_of(manifest["step"])
    aside = folder / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in (*manifest["sha256"], _MANIFEST):
        shutil.copyfile(source / name, aside / name)
        _sync(aside / name)
    aside.rename(target)
    _sync(folder)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """{path in the state: values} of a checkpoint.

    Raises:
      UserError: it is damaged.
    """
    damage = _damage(folder)
    if damage:
        raise UserError(f"checkpoint {folder} is damaged ({damage}).")
    reader = tf.train.load_checkpoint(str(folder / "state"))
    return {path: reader.get_tensor(path) for path in json.loads((folder / _MANIFEST).read_text())["variables"]}

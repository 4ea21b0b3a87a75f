"""Checkpoints of other runs: `resume_from` and `init_from` name one, which is found, restored or copied.

source = find("resume_from", "runs/first")      # runs/first/checkpoints/step-00000469
note = restore_from(state, source, hint)
adopt(source, workdir / "checkpoints", facts)   # a copy among the run's own
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from framework.checkpoint.directory import Directory
from framework.checkpoint.snapshot import manifest_of, read
from framework.checkpoint.storage import MANIFEST, CorruptError, read_arrays, write_manifest
from framework.errors import UserError
from framework.files import remove, sync
from framework.folder import PREFIX, name_of
from framework.remote.address import is_address
from framework.remote.mirror import local_copy
from framework.state import TrainState


def find(key: str, text: str) -> Path:
    """Returns the checkpoint that a config key names.

    Args:
      key: the key, for errors.
      text: its value: the folder of a checkpoint, or a run folder, which stands for its newest undamaged checkpoint;
        or the address of one, which is copied to this machine.

    Raises:
      UserError: there is no checkpoint, or all are damaged.
    """
    folder = local_copy(text, f"--config.{key}") if is_address(text) else Path(text)
    damages = {}
    for path in [folder] if (folder / MANIFEST).is_file() else _newest_first(folder):
        try:
            manifest_of(path)
            read_arrays(path)
        except CorruptError as damage:
            logging.error("checkpoint %s is damaged (%s)", path, damage)
            damages[path] = damage
        else:
            return path
    if damages:
        raise UserError(
            f"{key}='{text}': {'; '.join(f'{path} is damaged ({damage})' for path, damage in damages.items())}."
        )
    raise UserError(
        f"{key}='{text}' is neither a checkpoint nor a run folder that has one."
        f" Type e.g. --config.{key}=runs/first or --config.{key}=runs/first/checkpoints/{PREFIX}00000469."
    )


def _newest_first(folder: Path) -> list[Path]:
    inner = folder / "checkpoints"
    directory = Directory(inner if os.path.lexists(inner) else folder)
    return [directory.path(step) for step in reversed(directory.steps())]


def restore_from(state: TrainState, folder: Path, hint: str) -> dict[str, Any]:
    """Sets every variable of `state` from a checkpoint of another run and returns its note.

    Raises:
      UserError: the checkpoint is of another model or optimizer; the message ends with `hint`.
    """
    return read(state, folder, hint)


def adopt(source: Path, folder: Path, facts: Mapping[str, Any]) -> None:
    """Copies a checkpoint into the folder of a run's own checkpoints, with that run's facts, completely or not at all.

    Args:
      source: the checkpoint.
      folder: the folder of the run's own checkpoints.
      facts: the facts of the run, in place of those that the checkpoint has.
    """
    manifest = manifest_of(source)
    target = folder / name_of(manifest["step"])
    aside = folder / f".{target.name}.tmp"
    remove(aside)
    shutil.copytree(source, aside)
    write_manifest(aside, {**manifest, "facts": dict(facts)})
    for path in aside.iterdir():
        sync(path)
    sync(aside)
    aside.rename(target)
    sync(folder)

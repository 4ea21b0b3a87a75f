"""Copies of what is at an address, made on this machine file by file, and made again where the address has changed.

    folder = local_copy("s3://bucket/cifar10", "--data_dir")    # all of it, for a source to read
    folder = view("s3://bucket/runs")                           # runs without the arrays of their checkpoints
    mirror(place, folder, wanted, rank)                         # what both do

A file is copied again when its size, time, ETag or whatever else the file system tells of it is another. It gets its
name when it is complete, so a killed process leaves no half of a file.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from absl import logging

from framework import folder
from framework.errors import UserError
from framework.files import held, read_json, remove, write_text
from framework.remote.address import READ, VIEWS, Entry, Place, Unreachable, folder_of, is_address

_ATTEMPTS = 3  # of a listing and the copies of its files: a run that is under way replaces and deletes some
_NOT_READ = (f"{folder.CURVES}/", f"{folder.EXPORTS}/")
_ARRAYS = ".bin"  # ends the names of the large files of a checkpoint


def local_copy(address: str, flag: str) -> Path:
    """Returns a folder of this machine with the files of an address, which are copied or up to date.

    Of a run folder, its curves and exports are left out.
    Processes of this machine that want the same copy wait for the one that makes it.

    Args:
      address: of a folder.
      flag: what it was typed at, for errors: '--data_dir'.

    Raises:
      UserError: there is nothing, it cannot be read, or the disk has no room for it.
    """
    return _copied(address, flag, folder_of(address, READ), lambda name: not name.startswith(_NOT_READ))


def view(address: str) -> Path:
    """Returns a folder of this machine with the runs at an address, without the arrays of checkpoints; only to look at.

    Raises:
      UserError: there is nothing, or it cannot be read.
    """
    return _copied(address, "--workdir", folder_of(address, VIEWS), lambda name: not is_of_arrays(name))


def looked_at(workdir: str) -> Path:
    """Returns the `view` of an address; of a folder, the folder itself."""
    return view(workdir) if is_address(workdir) else Path(workdir)


def is_of_arrays(name: str) -> bool:
    """Returns whether a file of a run folder, or of a folder of runs, holds the arrays of a checkpoint."""
    return f"{folder.CHECKPOINTS}/" in name and name.endswith(_ARRAYS)


def _copied(address: str, flag: str, target: Path, wanted: Callable[[str], bool]) -> Path:
    place = Place(address)
    target.parent.mkdir(parents=True, exist_ok=True)
    with held(
        target.with_name(f".{target.name}.lock"),
        lambda process: f"{flag}={address}: waiting for process {process}, which copies it",
        waits=True,
    ):
        try:
            count = mirror(place, target, wanted)
        except Unreachable as error:
            before = f"{flag}={target}, the copy that was made before" if target.is_dir() else "another address"
            raise UserError(f"{flag}={address} cannot be read: {error}. Type {before}.") from error
        except OSError as error:
            raise UserError(
                f"{flag}={address} cannot be copied: {error}. Set FRAMEWORK_CACHE to another disk."
            ) from error
    if not any(target.iterdir()):
        raise UserError(f"{flag}={address} has no files. Type another address.")
    logging.info("%s: %d files copied, the others are up to date in %s", address, count, target)
    return target


def mirror(
    place: Place,
    target: Path,
    wanted: Callable[[str], bool],
    rank: Callable[[str], int] | None = None,
    others: Iterable[str] = (),
) -> int:
    """Makes a folder hold the files of an address; returns how many were copied.

    Files that an earlier call copied and that are gone there are deleted; others that the folder has are left alone.

    Args:
      place: the address.
      target: the folder, which need not exist; one process at a time may be given it.
      wanted: of a name, whether the file is copied; of a checkpoint without a manifest, which is not whole, none is.
      rank: of a name, a number: files of higher numbers are copied later.
      others: names of files that the folder has, which are replaced, or deleted if they are gone there.

    Raises:
      Unreachable: the file system failed.
      UserError: there is no room for the files.
    """
    record = target.with_name(f".{target.name}.json")
    if not target.is_dir():
        remove(record)
    known = read_json(record, _to_keys, dict[str, str](), "all files are copied again")
    known = dict.fromkeys(others, "") | known
    copied = 0
    for attempt in range(_ATTEMPTS):
        listing = {name: entry for name, entry in place.listing().items() if wanted(name)}
        for name in without_manifest(listing):
            del listing[name]
        changed = [name for name, entry in listing.items() if not _is_there(target / name, entry, known.get(name))]
        _refuse_too_large(place, target, sum(listing[name].size or 0 for name in changed))
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name in sorted(changed, key=rank):
                _get(place, name, listing[name], target)
                known[name] = listing[name].key
                copied += 1
            for name in known.keys() - listing.keys():
                _delete(target, name)
            known = {name: entry.key for name, entry in listing.items()}
            return copied
        except FileNotFoundError as error:
            if attempt == _ATTEMPTS - 1:
                raise Unreachable(f"its files change while they are read ({error})") from error
        finally:
            if target.is_dir():
                write_text(record, json.dumps(known))
    raise AssertionError("the last attempt returns or raises")


def _to_keys(value: Any) -> dict[str, str]:
    return {str(name): str(key) for name, key in value.items()}


def without_manifest(names: Collection[str]) -> list[str]:
    """Returns the files of checkpoints whose manifest is not there: it is copied to an address at last."""
    parents = {name: PurePosixPath(name).parent for name in names}
    return [
        name
        for name, parent in parents.items()
        if parent.parent.name == folder.CHECKPOINTS
        and folder.step_of(parent.name) is not None
        and f"{parent}/{folder.MANIFEST}" not in names
    ]


def _is_there(path: Path, entry: Entry, key: str | None) -> bool:
    return key == entry.key and path.is_file() and entry.size in (None, path.stat().st_size)


def _get(place: Place, name: str, entry: Entry, target: Path) -> None:
    aside = target.with_name(f".{target.name}.part")
    place.get(name, aside)
    size = aside.stat().st_size
    if entry.size not in (None, size):
        raise FileNotFoundError(f"{name} has {size} bytes, not {entry.size}")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    aside.replace(target / name)


def _delete(target: Path, name: str) -> None:
    """Deletes a file, and the folders that are empty without it, such as that of a checkpoint."""
    remove(target / name)
    for parent in (target / name).relative_to(target).parents[:-1]:
        with contextlib.suppress(OSError):
            (target / parent).rmdir()


def _refuse_too_large(place: Place, target: Path, size: int) -> None:
    """Raises UserError if the disk of the cache has no room for so many bytes."""
    there = next(path for path in (target, *target.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise UserError(
            f"{place.address} has {size / 1e9:.3g} GB to copy, and the disk of {there} has {free / 1e9:.3g} GB free."
            " Set FRAMEWORK_CACHE to a folder on a larger one."
        )

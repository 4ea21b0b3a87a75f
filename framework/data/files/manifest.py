"""The manifest of prepared shards: what `framework.data.prepare` wrote, so that a reader recognises the files.

manifest.json: {"version": 1, "records": 50000, "shards": [{"name", "records", "bytes", "sha256"}, …],
                "classes": […], "skipped": {"records": 2, "first": ["cat/7.jpg: …"]}, "origin": "…"}
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from framework import files
from framework.data.sources import common_classes
from framework.errors import UserError
from framework.files import CorruptError

NAME = "manifest.json"
PLAN = ".plan.json"  # while the shards are being made
VERSION = 1


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a folder; None if it has none.

    Raises:
      UserError: the manifest is damaged, of another version or counts wrongly, or the shards are not complete yet.
    """
    path = folder / NAME
    try:
        value = files.load_json(path)
        if value["version"] != VERSION:
            raise UserError(f"{path} has version {value['version']}, not {VERSION}. Prepare the data again.")
        for shard in value["shards"]:
            str(shard["name"]), str(shard["sha256"]), int(shard["bytes"]), int(shard["records"])
        total, listed = int(value["records"]), sum(int(shard["records"]) for shard in value["shards"])
        if total != listed:
            raise UserError(f"{path} says {total} records, but its shards have {listed}. Prepare the data again.")
        value["classes"] = [str(name) for name in value.get("classes", ())]
        return value
    except FileNotFoundError:
        if (folder / PLAN).exists():
            raise UserError(f"{folder} is not complete. Type the command of framework.data.prepare again.") from None
        return None
    except (CorruptError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}). Prepare the data again.") from error


def check(shards: Sequence[Path], hashes: Sequence[str], count: Callable[[Path], int]) -> tuple[str, ...]:
    """Compares shards with the manifests of their folders, and returns the names of the classes; () without a manifest.

    Args:
      shards: the files.
      hashes: the SHA-256 of each.
      count: returns the number of records of a shard.

    Raises:
      UserError: a shard is not the one of its manifest, or is not listed, or a shard of a manifest is missing; or a
        label stands for another class in another folder.
    """
    classes: dict[str, tuple[str, ...]] = {}
    of_shard = dict(zip(shards, hashes, strict=True))
    for folder in sorted({shard.parent for shard in shards}):
        facts = read(folder)
        if facts is not None:
            classes[f"'{folder}'"] = tuple(facts["classes"])
            listed = {folder / entry["name"] for entry in facts["shards"]}
            if others := [shard for shard in shards if shard.parent == folder and shard not in listed]:
                raise UserError(f"{folder / NAME} does not list {others[0]}. Move the file to another folder.")
            for entry in facts["shards"]:
                shard = folder / entry["name"]
                _check_shard(shard, entry, of_shard.get(shard))
                if shard in of_shard and count(shard) != entry["records"]:
                    raise UserError(
                        f"{shard} has {count(shard)} records, but {folder / NAME} says {entry['records']}. Prepare the"
                        " data again."
                    )
    return common_classes(classes)


def _check_shard(shard: Path, entry: dict[str, Any], digest: str | None) -> None:
    path = shard.parent / NAME
    if not shard.is_file():
        raise UserError(f"the shard {shard} is missing, which {path} lists. Put the file back.")
    if digest not in (None, entry["sha256"]):
        size = shard.stat().st_size
        raise UserError(
            f"{shard} is not the shard that {path} lists: {entry['bytes']} bytes, SHA-256"
            f" {entry['sha256'][:12]}… there; {size} bytes, {str(digest)[:12]}… now. Put the shard back, or prepare the"
            " data again."
        )

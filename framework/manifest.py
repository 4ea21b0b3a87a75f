"""exports/<hook>/manifest.json: the SHA-256 of each version of an export, by which a server knows what it loads.

    manifest.add(folder, "2", manifest.digest(path))        # before the version 2 is put in place
    manifest.known(folder)                                  # {"1": "9f86…", "2": "60303…"}
    manifest.fault(folder / "2")                            # '', or why it is not the version that was exported
    manifest.versions(folder)                               # {1: folder / "1", 2: folder / "2"}

A SavedModel is a program. The hash tells a version that was changed, damaged or put there by other means than an
export; it does not guard against a person who can write the manifest too. Nothing here imports TensorFlow.
"""

import hashlib
from pathlib import Path
from typing import Any

from framework.files import CorruptError, read_bytes, read_json, write_json

MANIFEST = "manifest.json"
LARGEST = 2**63 - 1  # version that TensorFlow Serving sees; others in the folder it passes over in silence
_TRUST = "A SavedModel is a program: if you trust it, type --trust."


def number(name: str) -> int | None:
    """Returns the version that a folder of this name is to a server; None if it is none."""
    is_one = name.isascii() and name.isdecimal() and int(name) <= LARGEST
    return int(name) if is_one else None


def versions(folder: Path) -> dict[int, Path]:
    """Returns {number: folder} of the versions in exports/<hook>."""
    numbers = {path: number(path.name) for path in sorted(folder.glob("*")) if path.is_dir()}
    return {version: path for path, version in numbers.items() if version is not None}


def add(folder: Path, version: str, sha256: str) -> None:
    """Adds a version to the manifest of its folder, and leaves out versions that are gone.

    Args:
      folder: exports/<hook>.
      version: name of the version's folder in it, which need not be there yet.
      sha256: the `digest` of the version.

    Raises:
      OSError: the manifest cannot be written; the old one stays.
    """
    kept = {name: known for name, known in known(folder).items() if (folder / name).exists()}
    write_json(folder / MANIFEST, {**kept, version: sha256})


def known(folder: Path) -> dict[str, str]:
    """Returns {version: SHA-256} of the manifest; {} if there is none, and with a warning if it is damaged."""

    def take(value: Any) -> dict[str, str]:
        return {str(name): str(sha256) for name, sha256 in value.items()}

    return read_json(folder / MANIFEST, take, {}, "none of the versions beside it is known")


def fault(version: Path) -> str:
    """Returns why a server refuses the folder of a version, which is not what an export wrote; '' if it is."""
    expected = known(version.parent).get(version.name)
    if expected is None:
        return f"{MANIFEST} does not know it. {_TRUST}"
    if not expected or digest(version) != expected:  # '' is the hash of what could not be read
        return f"its files are not those of {MANIFEST}: half-written, or changed. {_TRUST}"
    return ""


def digest(artefact: Path) -> str:
    """Returns the SHA-256, in hex, of a file or of all names and contents in a folder.

    Returns '' if it cannot be read, or if the folder has a link to a folder: what lies there is loaded, but not hashed.
    """
    total = hashlib.sha256()
    try:
        entries = sorted((artefact, *artefact.rglob("*")))
        if any(path.is_symlink() and path.is_dir() for path in entries[1:]):
            return ""
        for path in (path for path in entries if not path.is_dir()):
            content = read_bytes(path)
            total.update(f"{path.relative_to(artefact).as_posix()} {len(content)}\n".encode())
            total.update(content)
    except (OSError, CorruptError):
        return ""
    return total.hexdigest()

"""exports/report.json: what the newest export of a run folder did, hook by hook, true at every moment.

write(folder, [begun("lite", 469)])         # before anything is written: a killed export is one that has not ended
write(folder, [report])
is_current(folder, ["lite"], 469)           # does what it tells of stand there, and is it of this step?
"""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from framework.errors import RunError
from framework.export.base import ExportReport
from framework.files import CorruptError, read_bytes, read_json, remove, write_json
from framework.folder import REPORT


def begun(hook: str, step: int) -> ExportReport:
    """The report of an export that has not ended."""
    return ExportReport(hook, step, "", False, "it has not ended", 0, {}, {}, {}, 0, 0.0)


def write(folder: Path, reports: Sequence[ExportReport]) -> None:
    """Writes the reports; if the disk has no room for them, the old ones go, because they are true no more.

    Raises:
      RunError: they could not be written.
    """
    path = folder / REPORT
    try:
        write_json(path, [dataclasses.asdict(report) for report in reports])
    except OSError as error:
        try:
            remove(path)
            gone = "there is none now"
        except OSError:
            gone = "the one that is there is of an earlier export"
        raise RunError(
            f"{path} could not be written: {error.strerror or error}; {gone}. Mend that and export again."
        ) from error


def is_current(folder: Path, hooks: Collection[str], step: int) -> bool:
    """Whether all of these hooks have passed for the state of this step, and what they wrote is still what it was."""

    def take(value: Any) -> bool:
        if {report["hook"] for report in value} != set(hooks):
            return False
        if not all(report["passed"] is True and report["step"] == step for report in value):
            return False
        for report in value:
            if "sha256" in report and digest(folder / report["path"]) != report["sha256"]:
                logging.warning("%s is not what was exported: it is exported anew", folder / report["path"])
                return False
        return True

    return read_json(folder / REPORT, take, False, "everything is exported anew")


def digest(artefact: Path) -> str:
    """SHA-256, in hex, of a file, or of the names and contents of all files in a folder; '' if it cannot be read."""
    whole = hashlib.sha256()
    try:
        for path in sorted(path for path in (artefact, *artefact.rglob("*")) if not path.is_dir()):
            content = read_bytes(path)
            whole.update(f"{path.relative_to(artefact).as_posix()} {len(content)}\n".encode())
            whole.update(content)
    except (OSError, CorruptError):
        return ""
    return whole.hexdigest()

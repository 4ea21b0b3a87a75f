"""exports/report.json and report.html: the reports of the newest export of a run folder, true at every moment.

write(folder, [begun("lite", 469)])         # before anything is written, for an export that is killed
write(folder, [report])
is_current(folder, ["lite"], 469)           # did these hooks export this step, and are their artefacts unchanged?
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from framework.errors import RunError
from framework.export.page import page
from framework.files import read_json, remove, write_json, write_text
from framework.folder import PAGE, REPORT
from framework.manifest import digest
from framework.pages.exports import ExportReport


def begun(hook: str, step: int) -> ExportReport:
    """Returns the report of an export that has not ended."""
    return ExportReport(hook, step, "", False, "it has not ended", 0, {}, {}, {}, 0, 0.0)


def write(folder: Path, reports: Sequence[ExportReport]) -> None:
    """Writes the reports; if the disk fails, removes the old report, which is no longer true.

    Raises:
      RunError: the reports could not be written.
    """
    path = folder / REPORT
    try:
        write_json(path, [dataclasses.asdict(report) for report in reports])
        write_text(folder / PAGE, page(reports))
    except OSError as error:
        try:
            remove(path)
            remove(folder / PAGE)
            left = "there is no report now"
        except OSError:
            left = "the report in its place is of an earlier export"
        raise RunError(
            f"{path} could not be written: {error.strerror or error}; {left}. Mend that and export again."
        ) from error


def is_current(
    folder: Path, hooks: Collection[str], step: int, averaged: Sequence[int] = (), weights: str = "model"
) -> bool:
    """Returns whether these hooks passed for the state of a step, and their artefacts are unchanged.

    Args:
      folder: exports/.
      hooks: their names.
      step: the step.
      averaged: the steps of the checkpoints whose mean the weights are.
      weights: 'model' or 'ema'.
    """

    def take(value: Any) -> bool:
        own = [report for report in value if report["hook"] in hooks]
        if {report["hook"] for report in own} != set(hooks):
            return False
        if any([*report.get("averaged", ())] != [*averaged] for report in own):
            return False
        if any(report.get("weights", weights) != weights for report in own):
            return False
        if not all(report["passed"] is True and report["step"] == step for report in own):
            return False
        for report in own:
            if "sha256" in report and digest(folder / report["path"]) != report["sha256"]:
                logging.warning("%s has changed since it was exported: it is exported again", folder / report["path"])
                return False
        return True

    return read_json(folder / REPORT, take, False, "everything is exported again")


def others(folder: Path, hooks: Collection[str], same: Mapping[str, Any]) -> list[ExportReport]:
    """Returns the reports of other hooks that passed, whose artefacts are unchanged, and that can be compared.

    Args:
      folder: exports/.
      hooks: the names that are left out.
      same: {attribute of a report: value} of reports that can be compared, such as the step.
    """

    def take(value: Any) -> list[ExportReport]:
        known = [ExportReport(**report) for report in value if report["hook"] not in hooks]
        return [
            report
            for report in known
            if report.passed
            and all(getattr(report, name) == value for name, value in same.items())
            and report.throughput  # reports of earlier versions have none
            and report.sha256 == digest(folder / report.path)
        ]

    return read_json(folder / REPORT, take, [], "its entries are left out")

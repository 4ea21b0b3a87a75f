"""The outcome of a run that ended, and the difference between two outcomes; for --mode=verify_resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from framework.checkpoint import other_runs, read_arrays
from framework.checkpoint.storage import read_manifest
from framework.run.own_hooks import NOTE_KEY
from framework.run.progress import TIMES

_COMPARED = ("status", "step", "updates", "skipped", "empty_terms", "final", "final_step", "best")  # of result.json


class DifferentError(Exception):
    """A killed run failed, or ended in other bits."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Holds what a run has left that is compared.

    Attributes:
      state: {path: value} of its last checkpoint.
      rows: the rows of its metrics.jsonl, without the speed.
      result: the entries of its result.json that do not depend on time.
      hooks: {name: state} of the experiment's hooks in its last checkpoint.
    """

    state: dict[str, np.ndarray]
    rows: list[dict[str, Any]]
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    hooks: dict[str, Any] = dataclasses.field(default_factory=dict)


def read(workdir: Path) -> Outcome:
    """Returns the outcome of a run; raises DifferentError if its checkpoint is not of its last step."""
    checkpoint = other_runs.find("resume_from", str(workdir))
    state = read_arrays(checkpoint)
    result = json.loads((workdir / "result.json").read_text())
    if int(state["step"]) != result["step"]:
        raise DifferentError(f"{workdir} ended at step {result['step']}, but its checkpoint is of {int(state['step'])}")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return Outcome(
        state,
        [{name: value for name, value in row.items() if name not in TIMES} for row in rows],
        {name: result.get(name) for name in _COMPARED},
        read_manifest(checkpoint)["note"].get(NOTE_KEY, {}),
    )


def difference(whole: Outcome, ended: Outcome) -> str:
    """Returns the first variables, row, result or hook that differ, as text; '' if nothing differs."""
    if whole.state.keys() != ended.state.keys():
        return f"the variables {', '.join(sorted(whole.state.keys() ^ ended.state.keys()))} are in one state alone"
    differing = [path for path, value in whole.state.items() if value.tobytes() != ended.state[path].tobytes()]
    if differing:
        shown = ", ".join(f"{path} ({_extent(whole.state[path], ended.state[path])})" for path in differing[:5])
        return f"{len(differing)} of {len(whole.state)} variables differ, first {shown}"
    for row, other in zip(whole.rows, ended.rows, strict=False):
        if row != other:
            return f"metrics.jsonl has {json.dumps(row)} uninterrupted, {json.dumps(other)} after kills"
    if len(whole.rows) != len(ended.rows):
        return f"metrics.jsonl has {len(whole.rows)} rows uninterrupted, {len(ended.rows)} after kills"
    for name, value in whole.result.items():
        if ended.result[name] != value:
            return f"result.json has {name}={value} uninterrupted, {ended.result[name]} after kills"
    for name in sorted(whole.hooks.keys() | ended.hooks.keys()):
        expected, kept = whole.hooks.get(name), ended.hooks.get(name)
        if kept != expected:
            return f"hook '{name}' has the state {expected} uninterrupted, {kept} after kills"
    return ""


def _extent(left: np.ndarray, right: np.ndarray) -> str:
    """Returns how many elements of two arrays differ, and the largest difference, as text."""
    left_bytes, right_bytes = (
        np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1) for array in (left, right)
    )
    count = np.count_nonzero((left_bytes != right_bytes).any(axis=1))
    gap = np.nan_to_num(np.abs(left.astype(np.float64) - right.astype(np.float64)), nan=0.0)
    return f"{count} of {left.size} elements, by {np.max(gap):.3g} at most"

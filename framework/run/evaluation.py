"""Evaluates a run: the pass over each split, then the experiment's evaluators; nothing that they move stays moved.

evaluate(run)             # {'test/loss': 0.07, 'test/accuracy': 0.98, 'digits/worst_recall': 0.91}
found = report(run)       # with what evaluators draw and write beside their numbers
write(found, writer, step)
with untouched(run):
    ...                   # compute the loss at will
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from framework.config import AVERAGED
from framework.evaluators import Report
from framework.run.reports import report_of
from framework.run.run import Run
from framework.run.snapshot import Snapshot
from framework.step.kept import Kept
from framework.writers import MultiWriter


def evaluate(run: Run, checkpoint: str | int | None = None) -> dict[str, float]:
    """Returns {'split/metric': value} over every evaluation split, each example once, and the evaluators' scalars.

    'split@ema/metric' is that of the averaged weights. Nothing that the loss or an evaluator moves stays moved.

    Args:
      run: as built.
      checkpoint: 'last', 'best' or the number of a step: the run takes that state of its folder first, and keeps it;
        with `checkpoint.average` above 1, the mean of so many. None evaluates the live state.

    Raises:
      UserError: there is no such checkpoint.
    """
    if checkpoint is not None:
        run.restore(checkpoint, average=run.resolved.checkpoint.average)
    return dict(report(run).scalars)


def report(run: Run) -> Report:
    """Evaluates the live state on every split and by every evaluator; names are '<split or evaluator>/<name>'.

    Nothing that the loss or an evaluator moves stays moved. A scalar that is not finite is a warning.

    Raises:
      UserError: an evaluator returned what cannot be shown, or not the scalar that the run goes by.
    """
    whole: dict[str, dict[str, Any]] = {"scalars": {}, "images": {}, "texts": {}}
    kept = Kept() if run.evaluators and run.replicas.strategy is None else None
    for split, block in run.eval_blocks.items():
        with run.weights("ema" if split.endswith(AVERAGED) else "model"):
            found = block(None if kept is None else functools.partial(kept.add, split))
        _warn_unless_finite(split, found, block.problem or "the sums are finite, such as those of no example")
        whole["scalars"] |= {f"{split}/{name}": value for name, value in found.items()}
        whole["images"] |= {f"{split}/{name}": picture.pixels[np.newaxis] for name, picture in block.pictures.items()}
    for name, own in _own_reports(run, kept):
        _warn_unless_finite(name, own.scalars, "as its evaluator computes")
        for kind, values in whole.items():
            values |= {f"{name}/{key}": value for key, value in getattr(own, kind).items()}
    return Report(**whole)


def write(found: Report, writer: MultiWriter, step: int) -> None:
    """Writes an evaluation: a row of its scalars, its images and its texts, all named 'eval/<split or evaluator>/…'."""
    writer.scalars(step, _named(found.scalars))
    if found.images:
        writer.images(step, _named(found.images))
    if found.texts:
        writer.texts(step, _named(found.texts))


@contextlib.contextmanager
def untouched(run: Run) -> Iterator[None]:
    """Puts back what the loss moves where it is not training, such as averages under training=True."""
    with contextlib.ExitStack() as stack:
        for block in run.eval_blocks.values():
            stack.enter_context(block.untouched())
        yield


def _own_reports(run: Run, kept: Kept | None) -> Iterator[tuple[str, Report]]:
    """Yields (name, report) of each evaluator of the experiment; `kept` is what they read without another pass."""
    if not run.evaluators:
        return
    snapshot = Snapshot(run.state)
    if kept is not None:
        kept.is_current = snapshot.is_unchanged
    run.kept = kept
    try:
        for name, evaluator in run.evaluators.items():
            yield name, report_of(run, name, evaluator, snapshot)
    finally:
        run.kept = None


def _warn_unless_finite(name: str, scalars: Mapping[str, float], reason: str) -> None:
    if bad := [f"{scalar} is {value}" for scalar, value in scalars.items() if not math.isfinite(value)]:
        logging.warning("evaluating '%s': %s: %s", name, ", ".join(bad), reason)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"eval/{name}": value for name, value in values.items()}

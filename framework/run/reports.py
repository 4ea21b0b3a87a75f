"""Calls an evaluator, and checks what it reports; the state is as it was afterwards.

report_of(run, "digits", evaluator, snapshot)
# Report(scalars={'worst_recall': 0.91}, …), pictures [n, height, width, channels]
"""

import contextlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.evaluators import Evaluator, Report, modes_of
from framework.experiment import user_code
from framework.experiment.returns import shown
from framework.run.run import Run
from framework.run.snapshot import Snapshot

_SHOWN = 3  # variables of one message
_EXAMPLE = 'evaluators.Report({"accuracy": 0.98}, images={…}, texts={…})'
_CHUNK_BITS = 22  # of a number that `all_workers` can carry


def report_of(run: Run, name: str, evaluator: Evaluator, snapshot: Snapshot) -> Report:
    """Returns what one evaluator reports, in the form that writers take.

    Args:
      snapshot: of the state of the run, which is put back.

    Raises:
      UserError: it returned what cannot be shown, or not the scalar that the run goes by.
    """
    where = f"evaluator '{name}'"
    with _put_back(snapshot, where), user_code.explained(run.workdir), user_code.named(where):
        returned = evaluator(run)
    if not isinstance(returned, Report):
        raise UserError(f"{where} returned {shown(returned)}. It must return {_EXAMPLE}.")
    checks = {"scalars": _scalar, "images": _pictures, "texts": _text}
    kinds: dict[str, dict[str, Any]] = {}
    for kind, check in checks.items():
        values = getattr(returned, kind)
        if not isinstance(values, Mapping) or not all(isinstance(key, str) and key for key in values):
            raise UserError(f"{where} returned {kind} that are not {{name: value}}. It must return {_EXAMPLE}.")
        kinds[kind] = {key: check(f"{where}: {kind}['{key}']", value) for key, value in values.items()}
    _of_chief(run, name, evaluator, kinds["scalars"])
    return Report(**kinds)


@contextlib.contextmanager
def _put_back(snapshot: Snapshot, where: str) -> Iterator[None]:
    """Restores all variables of the state that the context changes, bit for bit, and warns; also after an exception."""
    try:
        yield
    finally:
        if changed := snapshot.put_back():
            names = ", ".join(f"'{path}'" for path in changed[:_SHOWN])
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            logging.warning(
                "%s changed %s%s of the state; the old values are restored: an evaluation must not change the state",
                where,
                names,
                more,
            )


def _of_chief(run: Run, name: str, evaluator: Evaluator, scalars: dict[str, float]) -> None:
    """Replaces the scalars that the run goes by with those of the chief: all workers must stop at the same step."""
    declared = modes_of({name: evaluator})
    for key, goal in (
        ("early_stopping.metric", run.config.early_stopping.metric),
        ("checkpoint.best_metric", run.config.checkpoint.best_metric),
    ):
        scalar = goal.removeprefix(f"{name}/")
        if goal not in declared:
            continue
        if scalar not in scalars:
            raise UserError(
                f"evaluator '{name}' reports no scalar '{scalar}', which {key}='{goal}' goes by. It reported:"
                f" {', '.join(scalars) or 'none'}."
            )
        scalars[scalar] = _chief_value(run.replicas, scalars[scalar])


def _chief_value(replicas: Replicas, value: float) -> float:
    """The chief's bits of a number, which travel in parts that `all_workers` can carry."""
    if replicas.is_local:
        return value
    bits = struct.unpack("<Q", struct.pack("<d", value))[0] if replicas.is_chief else 0
    mask = 2**_CHUNK_BITS - 1
    places = range(0, 64, _CHUNK_BITS)
    agreed = sum(replicas.all_workers(bits >> place & mask, most=True) << place for place in places)
    return float(struct.unpack("<d", struct.pack("<Q", agreed))[0])


def _scalar(where: str, value: Any) -> float:
    array = np.asarray(value)
    if array.shape or array.dtype.kind not in "biuf":
        raise UserError(f"{where} is {_told(value)}, not a number. Write e.g. float(np.mean(…)).")
    return float(array)


def _pictures(where: str, value: Any) -> np.ndarray:
    """[n, height, width, channels] of uint8, or of float from 0 to 1."""
    array = np.asarray(value)
    wanted = "Pictures are [height, width], [height, width, channels] or [n, height, width, channels]"
    if array.ndim == 2:
        array = array[..., np.newaxis]
    array = array[np.newaxis] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise UserError(f"{where} is {_told(value)}. {wanted}, with 1, 3 or 4 channels.")
    if array.dtype == np.uint8:
        return array
    low, high = (array.min(), array.max()) if array.dtype.kind == "f" else (math.nan, math.nan)
    if not (low >= 0 and high <= 1):
        span = f", with values from {low:g} to {high:g}" if array.dtype.kind == "f" else ""
        raise UserError(f"{where} is {_told(value)}{span}. Pictures are uint8, or float from 0 to 1: divide, or clip.")
    return array


def _text(where: str, value: Any) -> str:
    """Markdown; each item of a list is a paragraph."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{where} is {_told(value)}, not a str or a list of them.")
    return "\n\n".join(items)


def _told(value: Any) -> str:
    """'float32 [28, 28, 7]' of an array, else what `shown` says."""
    is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    return f"{np.asarray(value).dtype} {list(value.shape)}" if is_array else shown(value)

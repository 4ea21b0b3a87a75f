"""Running export hooks: each writes its artefact, which is verified and put in its place.

    reports = export_all(hooks, model, held_out_batches, metrics, run_folder / "exports")

A hook writes its artefact beside its final place. The artefact is loaded by its own runtime and run on held-out
examples, and only one whose numbers agree with the live model's is moved into place.
"""

import contextlib
import logging as python_logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from framework.config import RunError, UserError
from framework.export import report
from framework.export.base import Arrays, Call, ExportHook, ExportReport
from framework.export.verify import Findings, verify
from framework.files import held, is_full_disk, remove, sync, unreachable
from framework.metrics import Metric

_FAILURE_CHARACTERS = 400


def export_all(
    hooks: Sequence[ExportHook],
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    folder: Path,
    step: int = 0,
    own_outputs: Call | None = None,
) -> list[ExportReport]:
    """Writes, verifies and puts in place one artefact per hook, and `report.json`; a failed one stops no other.

    Args:
      hooks: distinct names.
      model: the trained model, as the signatures' `fn` takes it.
      batches: held-out batches {name: [n, ...]} with "weight" [n]; rows of weight 0 are left out. All are
        held in memory.
      metrics: {name: metric}; each sees the 'serving_default' outputs and the whole batch.
      folder: exports/; made if missing.
      step: of the model, for the report.
      own_outputs: batch -> the outputs that the run's own evaluation gives to metrics. With it, a signature whose `fn`
        does something else than the run did (other preprocessing, say) fails; without it, `fn` is taken at its word.

    Returns:
      One report per hook, in order.

    Raises:
      UserError: two hooks of one name, a name that is no folder name, no held-out example.
      RunError: nothing can be written into `folder`, or the report cannot: when all hooks have had their turn.
    """
    names = [hook.name for hook in hooks]
    for name in names:
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"export hook name '{name}' is not a folder name. Use letters, digits and _.")
        if names.count(name) > 1:
            raise UserError(f"two export hooks are named '{name}'. Give one another name, e.g. name='{name}_2'.")
    held_out = [real for real in map(_real_rows, batches) if len(real["weight"])]
    if not held_out:
        raise UserError("there is no held-out example to verify exports on: every batch is empty or padding.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = unreachable(folder) or error.strerror or error
        raise RunError(f"{folder} cannot be made: {why}. Mend that and export again.") from error
    # One export at a time: two would write one artefact, or take one version.
    busy = "process {} is exporting to {}: waiting for it"
    with held(folder.with_name(f".{folder.name}.lock"), lambda holder: busy.format(holder, folder), waits=True):
        return _export_each(
            hooks, folder, step, lambda hook: _export(hook, model, held_out, metrics, folder, step, own_outputs)
        )


def _export_each(
    hooks: Sequence[ExportHook], folder: Path, step: int, export: Callable[[ExportHook], ExportReport]
) -> list[ExportReport]:
    """Keeps report.json true all the while: what has not ended has not passed."""
    reports = [report.begun(hook.name, step) for hook in hooks]
    with contextlib.suppress(RunError):  # said at the end, if it is so then
        report.write(folder, reports)
    for place, hook in enumerate(hooks):
        reports[place] = export(hook)
        if place + 1 < len(hooks):
            with contextlib.suppress(RunError):
                report.write(folder, reports)
    report.write(folder, reports)
    return reports


def _real_rows(batch: Mapping[str, Any]) -> Arrays:
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    is_real = arrays["weight"] != 0
    return {name: array[is_real] if array.shape[:1] == is_real.shape else array for name, array in arrays.items()}


def _export(
    hook: ExportHook,
    model: Any,
    batches: list[Arrays],
    metrics: Mapping[str, Metric],
    folder: Path,
    step: int,
    own_outputs: Call | None,
) -> ExportReport:
    start = time.perf_counter()
    partial, failed = folder / f".{hook.name}.partial", folder / f"{hook.name}.failed"
    target, path, size, sha256, found = folder / hook.name, partial, 0, "", Findings()
    try:
        remove(partial)
        remove(failed)
        partial.mkdir()
        target = hook.target(folder / hook.name)
        path = partial / target.name
        with _without_tensorflow_chatter():
            hook.write(model, path)
        size, sha256 = _size(path), report.digest(path)
        verify(found, hook, model, path, batches, metrics, own_outputs)
        if not found.failures:
            _put_in_place(path, target)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # one format that breaks, or wants to end the process, must not cost the others
        found.failures.append(_one_line(error))
        with contextlib.suppress(OSError):
            if is_full_disk(error):  # what is half written would take the room of the other hooks and the report
                remove(partial)
                partial.mkdir()
            (partial / "error.txt").write_text(traceback.format_exc())
    with contextlib.suppress(OSError):
        if found.failures:
            os.replace(partial, failed)
            target = failed / target.name if (failed / target.name).exists() else failed
        else:
            remove(partial)
    done = ExportReport(
        hook=hook.name,
        step=step,
        path=target.relative_to(folder).as_posix(),
        passed=not found.failures,
        failure="; ".join(found.failures),
        bytes=size,
        outputs=found.outputs,
        latency_ms=found.latency_ms,
        metrics=found.metrics,
        examples=found.examples,
        seconds=round(time.perf_counter() - start, 3),
        sha256="" if found.failures else sha256,
    )
    _log(done)
    return done


def _put_in_place(path: Path, target: Path) -> None:
    """Moves an artefact that is on disk as a whole; until then, what stood there stands."""
    for part in (path, *path.rglob("*")):
        sync(part)
    target.parent.mkdir(exist_ok=True)
    os.replace(path, target)
    sync(target.parent)


@contextlib.contextmanager
def _without_tensorflow_chatter() -> Iterator[None]:
    """Drops what TensorFlow's Python logs at level INFO while it saves: renamed inputs, temporary paths, durations."""

    def is_wanted(record: python_logging.LogRecord) -> bool:
        return record.levelno > python_logging.INFO or "tensorflow" not in Path(record.pathname).parts

    loggers = (logging.get_absl_logger(), tf.get_logger())
    for logger in loggers:
        logger.addFilter(is_wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_wanted)


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= _FAILURE_CHARACTERS else text[:_FAILURE_CHARACTERS] + "…"


def _log(done: ExportReport) -> None:
    if not done.passed:
        logging.error(
            "export %s FAILED: %s. It is kept in %s.failed/ for study; %s/ is as it was before.",
            done.hook,
            done.failure.rstrip("."),
            done.hook,
            done.hook,
        )
        return
    worst = max(done.outputs.values(), key=lambda output: output["max_error"] - output["bound"])
    logging.info(
        "export %s passed: %s, %s, max error %.2g (bound %.2g) over %d examples, p50 %.3g ms at batch 1, %.1f s",
        done.hook,
        done.path,
        f"{done.bytes / 1e3:.0f} kB" if done.bytes >= 1000 else f"{done.bytes} bytes",
        worst["max_error"],
        worst["bound"],
        done.examples,
        done.latency_ms["1"]["p50"],
        done.seconds,
    )

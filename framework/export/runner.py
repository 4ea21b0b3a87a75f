"""Exporting: each hook writes an artefact, which is verified and then put in place.

    reports = export_all(hooks, model, held_out_batches, metrics, run_folder / "exports")

A hook writes its artefact beside the final place. Only an artefact that agrees with the trained model is moved there.
"""

import contextlib
import gzip
import logging as python_logging
import math
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

from framework import manifest
from framework.errors import RunError, UserError, said_by_tensorflow
from framework.experiment import user_code
from framework.export import report
from framework.export.base import Arrays, Call, ExportHook
from framework.export.processes import Processes
from framework.export.verify import Findings, Trained, verify
from framework.files import held, is_full_disk, remove, sync, unreachable, write_text
from framework.metrics import Metric
from framework.pages.exports import ExportReport

_FAILURE_CHARACTERS = 400


def export_all(
    hooks: Sequence[ExportHook],
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    metrics: Mapping[str, Metric],
    folder: Path,
    step: int = 0,
    own_outputs: Call | None = None,
    averaged: tuple[int, ...] = (),
    training: Callable[[int], Iterable[Mapping[str, Any]]] | None = None,
    keeps_others: bool = False,
    is_fresh: bool = False,
    weights: str = "model",
    split: str = "",
) -> list[ExportReport]:
    """Writes, verifies and puts in place one artefact for each hook, and `report.json`; a failure stops no other hook.

    Args:
      hooks: hooks of distinct names.
      model: the trained model, as the `fn` of signatures takes it.
      batches: held-out batches {name: [n, ...]} with "weight" [n]; rows of weight 0 are left out. All stay in memory.
      metrics: {name: metric}; each gets the 'serving_default' outputs and the whole batch.
      folder: exports/; made if it is missing.
      step: the step of the model, for the report.
      own_outputs: batch -> the outputs that the run's own evaluation gives to metrics. With them, a signature fails
        whose `fn` differs from the run, by other preprocessing say; without them, `fn` is the reference itself.
      averaged: the steps of the checkpoints whose mean the weights are, for the report.
      training: number of examples -> batches of the training split with so many, for hooks with `representative`.
      keeps_others: whether the report keeps what earlier exports by other hooks have found: of the same step, averages
        and weights, on as many examples of the same split.
      is_fresh: whether each artefact whose hook has a `runtime` is loaded in a fresh process, or all in this one.
      weights: 'model', or 'ema' if the model has their moving average, for the report.
      split: the evaluation split of the batches, for the report.

    Returns:
      One report for each hook, in order.

    Raises:
      UserError: two hooks have one name, a name is not a folder name, or there is no held-out example.
      RunError: the folder cannot be made; or, after all hooks have run, the report cannot be written.
    """
    names = [hook.name for hook in hooks]
    for name in names:
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"export hook name '{name}' is not a folder name. Use letters, digits and _.")
        if names.count(name) > 1:
            raise UserError(f"two export hooks are named '{name}'. Give one another name, e.g. name='{name}_2'.")
    held_out = [batch for batch in map(_without_padding, batches) if len(batch["weight"])]
    if not held_out:
        raise UserError("there is no held-out example to verify exports on: every batch is empty or padding.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = unreachable(folder) or error.strerror or error
        raise RunError(f"{folder} cannot be made: {why}. Mend that and export again.") from error
    trained = Trained(model, held_out, metrics, own_outputs, averaged, training, weights, split)
    # One export at a time: two at once would write the same artefact, or take the same version.
    busy = "process {} is exporting to {}: waiting for it"
    with held(folder.with_name(f".{folder.name}.lock"), lambda holder: busy.format(holder, folder), waits=True):
        examples = sum(len(batch["weight"]) for batch in held_out)
        same = {"step": step, "averaged": [*averaged], "weights": weights, "split": split, "examples": examples}
        others = report.others(folder, names, same) if keeps_others else []
        with Processes() if is_fresh else contextlib.nullcontext() as processes:
            return _export_each(hooks, trained, folder, step, others, processes)


def _export_each(
    hooks: Sequence[ExportHook],
    trained: Trained,
    folder: Path,
    step: int,
    others: Sequence[ExportReport],
    processes: Processes | None,
) -> list[ExportReport]:
    """Runs the hooks, and keeps report.json true meanwhile: an export that has not ended has not passed."""
    reports = [report.begun(hook.name, step) for hook in hooks]
    with contextlib.suppress(RunError):  # the last write raises it, if it fails too
        report.write(folder, [*reports, *others])
    for place, hook in enumerate(hooks):
        reports[place] = _export(hook, trained, folder, step, processes)
        if place + 1 < len(hooks):
            with contextlib.suppress(RunError):
                report.write(folder, [*reports, *others])
    report.write(folder, [*reports, *others])
    return reports


def _without_padding(batch: Mapping[str, Any]) -> Arrays:
    """Returns the rows of a batch whose weight is not 0, as arrays."""
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    is_real = arrays["weight"] != 0
    return {name: array[is_real] if array.shape[:1] == is_real.shape else array for name, array in arrays.items()}


def _export(hook: ExportHook, trained: Trained, folder: Path, step: int, processes: Processes | None) -> ExportReport:
    """Runs one hook; its artefact ends in place, or below <hook>.failed/ with the reason."""
    start = time.perf_counter()
    partial = folder / f".{hook.name}.partial"
    failed = folder / f"{hook.name}.failed"
    target = folder / hook.name
    size = gzip_size = 0
    sha256 = ""
    findings = Findings()
    measured: dict[str, Any] = {}
    holds: list[str] = []
    try:
        holds = [*dict.fromkeys(signature.holds for signature in hook.signatures.values() if signature.holds)]
        remove(partial)
        remove(failed)
        partial.mkdir()
        target = hook.target(folder / hook.name)
        path = partial / target.name
        with _without_tensorflow_chatter():
            _write(hook, trained, path)
        size, gzip_size = _sizes(path)
        sha256 = manifest.digest(path)
        verify(findings, hook, path, trained, processes)
        if not findings.failures:
            measured = _measured(hook, trained)
            _put_in_place(path, target, getattr(hook, "beside", {}), sha256)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a format that breaks, or tries to end the process, must not stop the others
        findings.failures.append(_one_line(error))
        with contextlib.suppress(OSError):
            if is_full_disk(error):  # frees the room for the other hooks and the report
                remove(partial)
                partial.mkdir()
            (partial / "error.txt").write_text(traceback.format_exc())
    with contextlib.suppress(OSError):
        if findings.failures:
            os.replace(partial, failed)
            target = failed / target.name if (failed / target.name).exists() else failed
        else:
            remove(partial)
    done = ExportReport(
        hook=hook.name,
        step=step,
        path=target.relative_to(folder).as_posix(),
        passed=not findings.failures,
        failure="; ".join(findings.failures),
        bytes=size,
        gzip_bytes=gzip_size,
        outputs=findings.outputs,
        latency_ms=findings.latency_ms,
        throughput=findings.throughput,
        metrics=findings.metrics,
        examples=findings.examples,
        seconds=round(time.perf_counter() - start, 3),
        sha256="" if findings.failures else sha256,
        averaged=[*trained.averaged],
        weights=trained.weights,
        split=trained.split,
        holds=holds,
        measured=measured,
    )
    _log(done)
    return done


def _measured(hook: ExportHook, trained: Trained) -> dict[str, Any]:
    """Returns what a hook measures itself, for the report; {} if it measures nothing.

    Raises:
      UserError: it is no dict of what JSON has.
    """
    measure = getattr(hook, "measure", None)
    if measure is None:
        return {}
    found = measure(trained.model, trained.batches)
    if not isinstance(found, Mapping):
        raise UserError(
            f"measure returned a value of type {type(found).__name__}. Return {{name: number, text or dict}}."
        )
    return _as_json(found, "measure")


def _as_json(value: Any, place: str) -> Any:
    """Returns a measured value as JSON: numbers of NumPy and TensorFlow as Python's, those not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): _as_json(one, f"{place}: '{name}'") for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one, place) for one in value]
    if isinstance(value, np.generic | np.ndarray | tf.Tensor | tf.Variable):
        return _as_json(np.asarray(value).tolist(), place)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise UserError(f"{place} is of type {type(value).__name__}. Return numbers, texts, or dicts of them.")


def _put_in_place(path: Path, target: Path, beside: Mapping[str, str], sha256: str) -> None:
    """Moves an artefact to its place once all of it is on disk; until then, an earlier artefact stays.

    Args:
      path: the artefact.
      target: its place.
      beside: {file name: text} of files beside it, written unless they are there.
      sha256: hash of the artefact, which the manifest gets if the artefact is the folder of a version.
    """
    for entry in (path, *path.rglob("*")):
        sync(entry)
    target.parent.mkdir(exist_ok=True)
    for name, text in beside.items():
        if not (target.parent / name).exists():
            write_text(target.parent / name, text)
    if path.is_dir():  # a server may see the version as soon as it is in place, so its hash is there first
        manifest.add(target.parent, target.name, sha256)
    os.replace(path, target)
    sync(target.parent)


@contextlib.contextmanager
def _without_tensorflow_chatter() -> Iterator[None]:
    """Silences TensorFlow's INFO lines while it saves, which tell of renamed inputs, temporary paths and durations."""

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


def _write(hook: ExportHook, trained: Trained, path: Path) -> None:
    if wanted := getattr(hook, "representative", 0):
        batches = trained.training(wanted) if trained.training else ()
        # The protocol has this argument for hooks with `representative` alone.
        hook.write(trained.model, path, map(_without_padding, batches))  # type: ignore[call-arg]
    else:
        hook.write(trained.model, path)
    if complete := getattr(hook, "complete", None):
        complete(path, trained.batches)


def _sizes(path: Path) -> tuple[int, int]:
    """Returns the size of a file, or of the files of a folder together, in bytes, and the same by gzip."""
    files = [entry for entry in (path, *path.rglob("*")) if entry.is_file()]
    return sum(file.stat().st_size for file in files), sum(len(gzip.compress(file.read_bytes())) for file in files)


def _one_line(error: BaseException) -> str:
    kind = type(error).__name__
    said = said_by_tensorflow(str(error))  # also what a fresh process says of it
    text = said if isinstance(error, UserError | RunError) else f"{kind}: {said}" if said else kind
    return user_code.one_line(text, _FAILURE_CHARACTERS)


def _log(done: ExportReport) -> None:
    if not done.passed:
        logging.error(
            "export %s FAILED: %s. The artefact is kept in %s.failed/ for study; %s/ is as it was before.",
            done.hook,
            done.failure.rstrip("."),
            done.hook,
            done.hook,
        )
        return
    logging.info(
        "export %s passed: %s, %s, max error %.2g (bound %.2g) over %d examples, p50 %.3g ms at batch 1, %.1f s",
        done.hook,
        done.path,
        done.size,
        done.worst_output["max_error"],
        done.worst_output["bound"],
        done.examples,
        done.latency_ms["1"]["p50"],
        done.seconds,
    )
    for name, numbers in done.outputs.items():
        if lost := numbers.get("lost_columns"):
            logging.warning(
                "export %s: %d of the columns of output '%s' hold no more than their mean, because the range of the"
                " whole output is larger than theirs. If they matter, give them an output of their own",
                done.hook,
                lost,
                name,
            )
        if "batch_dependence" in numbers:
            logging.warning(
                "export %s: output '%s' of an example depends on the others of its batch: alone it differs by %.2g, of"
                " a range of %.2g. A server that puts requests together would answer other numbers",
                done.hook,
                name,
                numbers["batch_dependence"],
                numbers["range"],
            )

"""Running export hooks, and the one way in which what they write is verified.

    reports = export_all(hooks, model, held_out_batches, metrics, run_folder / "exports")

A hook writes its artefact beside its final place. The artefact is loaded by its own runtime and run on held-out
examples, and only one whose numbers agree with the live model's is moved into place.
"""

import contextlib
import dataclasses
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

from framework.errors import RunError, UserError
from framework.export import report
from framework.export.base import SERVING, Arrays, Call, ExportHook, ExportReport, Signature
from framework.files import held, is_full_disk, remove, sync, unreachable
from framework.metrics import Metric

LATENCY_BATCHES = (1, 32)

_WARM_UP_CALLS = 5
_TIMED_CALLS = 50
_FAILURE_CHARACTERS = 400
# A metric may differ by what ties within an output's bound can change; beyond it, the export does something else.
_METRIC_BOUND = 1e-3


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
    target, path, size, sha256, found = folder / hook.name, partial, 0, "", _Findings()
    try:
        remove(partial)
        remove(failed)
        partial.mkdir()
        target = hook.target(folder / hook.name)
        path = partial / target.name
        with _without_tensorflow_chatter():
            hook.write(model, path)
        size, sha256 = _size(path), report.digest(path)
        _verify(found, hook, model, path, batches, metrics, own_outputs)
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


@dataclasses.dataclass
class _Findings:
    """What verification has established so far; an exception half way keeps it."""

    failures: list[str] = dataclasses.field(default_factory=list)
    outputs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    metrics: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    examples: int = 0


def _verify(
    found: _Findings,
    hook: ExportHook,
    model: Any,
    path: Path,
    batches: list[Arrays],
    metrics: Mapping[str, Metric],
    own_outputs: Call | None,
) -> None:
    """Compares the artefact at `path` with the live `model` on all batches, and again at the latency batch sizes."""
    for name, signature in hook.signatures.items():
        _check_inputs(name, signature, batches[0])
    artefact = hook.load(path)
    with _arithmetic(hook, model):
        live = {name: _live(signature, model) for name, signature in hook.signatures.items()}
    loaded = {name: _picking(signature, artefact[name]) for name, signature in hook.signatures.items()}
    states = {name: {"trained": metric.empty(), "exported": metric.empty()} for name, metric in metrics.items()}
    differences: dict[str, _Difference] = {}
    for batch in batches:
        reference, exported = _run(live, batch), _run(loaded, batch)
        _add(differences, reference, exported, len(batch["weight"]))
        with _arithmetic(hook, model):
            trained = own_outputs(batch) if own_outputs else reference[SERVING]
        for kind, outputs in (("trained", trained), ("exported", exported[SERVING])):
            for name, metric in metrics.items():
                states[name][kind] = metric.merge(states[name][kind], _updated(name, metric, outputs, batch))
        found.examples += len(batch["weight"])
    for name, difference in differences.items():
        found.outputs[name] = difference.summary(hook.bound)
        found.failures += difference.failures(name, hook.bound)
    for name, metric in metrics.items():
        found.metrics[name] = {kind: _finite(metric.result(state)) for kind, state in states[name].items()}
        found.failures += _metric_failures(name, **found.metrics[name])
    agrees = not found.failures
    for size in LATENCY_BATCHES:
        probe = {name: np.take(array, np.arange(size), axis=0, mode="wrap") for name, array in batches[0].items()}
        if agrees:  # a converter may have baked a batch size in: these are checked as well
            probed: dict[str, _Difference] = {}
            _add(probed, _run(live, probe), _run(loaded, probe), size)
            for name, difference in probed.items():
                difference.max_reference = differences[name].max_reference
                found.failures += difference.failures(f"{name} at batch {size}", hook.bound)
        found.latency_ms[str(size)] = _latency(loaded[SERVING], probe)


def _arithmetic(hook: ExportHook, model: Any) -> contextlib.AbstractContextManager[None]:
    """What the model is compared in: the hook's own, if it says so, or that of training."""
    own = getattr(hook, "arithmetic", None)
    return contextlib.nullcontext() if own is None else own(model)


def _metric_failures(name: str, trained: float | None, exported: float | None) -> list[str]:
    if trained is None or exported is None:
        same = trained == exported
    else:
        same = abs(trained - exported) <= _METRIC_BOUND * max(1.0, abs(trained))
    return [] if same else [f"metric '{name}' is {exported} once exported, but {trained} in the run's own evaluation"]


def _check_inputs(name: str, signature: Signature, batch: Arrays) -> None:
    for key, spec in signature.inputs.items():
        if key not in batch:
            raise UserError(
                f"signature '{name}' takes '{key}', which the held-out batches do not have: {', '.join(sorted(batch))}."
            )
        array = batch[key]
        if tf.as_dtype(array.dtype) != spec.dtype or not spec.shape.is_compatible_with(array.shape):
            raise UserError(
                f"signature '{name}' takes '{key}' as {spec.dtype.name} {spec.shape}, but the held-out batches hold"
                f" {tf.as_dtype(array.dtype).name} {array.shape}."
            )


def _live(signature: Signature, model: Any) -> Call:
    function = signature.trace(model)

    def call(batch: Arrays) -> Arrays:
        outputs = function(**{name: tf.constant(batch[name]) for name in signature.inputs})
        return {name: output.numpy() for name, output in outputs.items()}

    return call


def _picking(signature: Signature, call: Call) -> Call:
    """`call` for whole batches: it is given the signature's inputs alone."""
    return lambda batch: call({name: batch[name] for name in signature.inputs})


def _run(calls: Mapping[str, Call], batch: Arrays) -> dict[str, Arrays]:
    return {name: call(batch) for name, call in calls.items()}


def _updated(name: str, metric: Metric, outputs: Arrays, batch: Arrays) -> Any:
    try:
        return metric.update(outputs, batch)
    except KeyError as error:
        raise UserError(
            f"metric '{name}' needs {error}, which is neither an output of '{SERVING}' ({', '.join(outputs)}) nor in"
            f" the batches ({', '.join(batch)}). Return it from the signature's fn."
        ) from error


class _Difference:
    """How far one output of the artefact is from the live model's, gathered batch by batch."""

    def __init__(self, dtype: np.dtype) -> None:
        self.is_floating = tf.as_dtype(dtype).is_floating
        self.errors: list[np.ndarray] = []  # of the values that are finite on both sides
        self.gaps: list[np.ndarray] = []  # reference top-1 minus top-2 where the argmax differs
        self.max_reference = 0.0
        self.nonfinite = self.reference_nans = self.values = self.rows = 0

    def add(self, reference: np.ndarray, exported: np.ndarray) -> None:
        self.values += reference.size
        if not self.is_floating:
            self.errors.append((reference != exported).astype(np.float64).ravel())
            return
        reference, exported = reference.astype(np.float64), exported.astype(np.float64)
        finite = np.isfinite(reference) & np.isfinite(exported)
        nan = np.isnan(reference)
        same = (reference == exported) | (nan & np.isnan(exported))
        self.reference_nans += int(nan.sum())
        self.nonfinite += int((~finite & ~same).sum())
        self.errors.append(np.abs(reference[finite] - exported[finite]))
        self.max_reference = max(self.max_reference, np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
        if reference.ndim > 1 and reference.shape[-1] > 1:
            self._add_argmax(reference, exported)

    def _add_argmax(self, reference: np.ndarray, exported: np.ndarray) -> None:
        self.rows += reference.size // reference.shape[-1]
        comparable = ~(np.isnan(reference) | np.isnan(exported)).any(axis=-1)
        reference, exported = reference[comparable], exported[comparable]
        reference = reference[reference.argmax(axis=-1) != exported.argmax(axis=-1)]
        second, first = np.moveaxis(np.partition(reference, -2, axis=-1)[..., -2:], -1, 0)
        self.gaps.append(first - second)

    def bound(self, relative: float) -> float:
        return relative * max(1.0, self.max_reference) if self.is_floating else 0.0

    def summary(self, relative: float) -> dict[str, float]:
        errors, bound = np.concatenate(self.errors), self.bound(relative)
        return {
            "max_error": float(errors.max(initial=0.0)),
            "p99_error": float(np.percentile(errors, 99)) if errors.size else 0.0,
            "bound": bound,
            "max_reference": float(self.max_reference),
            "argmax_mismatches": int(sum((gaps > bound).sum() for gaps in self.gaps)),
            "nonfinite": self.nonfinite,
        }

    def failures(self, name: str, relative: float) -> list[str]:
        summary = self.summary(relative)
        error, bound, mismatches = summary["max_error"], summary["bound"], summary["argmax_mismatches"]
        texts = []
        if self.reference_nans:
            texts.append(f"{name}: {self.reference_nans} of {self.values} values of the trained model are NaN")
        if self.nonfinite:
            unlike = "values are NaN or infinite unlike the trained model's"
            texts.append(f"{name}: {self.nonfinite} of {self.values} {unlike}")
        if error > bound:
            texts.append(f"{name}: max error {error:.3g} exceeds the bound {bound:.3g}")
        if mismatches:
            texts.append(
                f"{name}: argmax differs in {mismatches} of {self.rows} rows, ties within {bound:.3g} not counted"
            )
        return texts


def _add(
    differences: dict[str, _Difference], reference: dict[str, Arrays], exported: dict[str, Arrays], size: int
) -> None:
    """Adds one batch of `size` rows of every signature to `differences`, by output."""
    for signature, outputs in reference.items():
        if exported[signature].keys() != outputs.keys():
            raise UserError(
                f"signature '{signature}' returns {', '.join(sorted(exported[signature]))} once exported, but"
                f" {', '.join(sorted(outputs))} from the trained model."
            )
        for key, array in outputs.items():
            name = f"{signature}/{key}" if len(reference) > 1 else key
            other = exported[signature][key]
            if array.shape[:1] != (size,):
                raise UserError(f"output '{name}' has shape {array.shape} for a batch of {size}: put the batch first.")
            if (other.shape, other.dtype) != (array.shape, array.dtype):
                raise UserError(
                    f"output '{name}' is {other.dtype} {other.shape} once exported, but {array.dtype} {array.shape}"
                    " from the trained model."
                )
            differences.setdefault(name, _Difference(array.dtype)).add(array, other)


def _latency(call: Call, batch: Arrays) -> dict[str, float]:
    for _ in range(_WARM_UP_CALLS):
        call(batch)
    milliseconds = []
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        call(batch)
        milliseconds.append((time.perf_counter() - start) * 1e3)
    return {"p50": float(np.percentile(milliseconds, 50)), "p99": float(np.percentile(milliseconds, 99))}


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


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

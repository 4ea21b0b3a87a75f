"""Verifying an export: the artefact is loaded in its own runtime and compared with the trained model.

trained = Trained(model, held_out_batches, metrics)
findings = Findings()
verify(findings, hook, path, trained)
findings.failures                       # [] if outputs and metrics agree within the bound of the hook
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from framework import precision
from framework.errors import UserError
from framework.export.base import SERVING, Arrays, Call, ExportHook, Signature, first_rows
from framework.export.bounds import Bounds
from framework.export.difference import Difference, add, output_name
from framework.export.processes import Processes, load_here
from framework.metrics import Metric, Picture, results

LATENCY_BATCHES = (1, 32)
# Ties within the bound of an exact format may change a metric by so much; a larger change is another function.
_METRIC_BOUND = 1e-3
# Part of the range by which an example alone may differ from itself in a batch: half precision rounds to less.
_ALONE = 0.05


@dataclasses.dataclass(frozen=True)
class Trained:
    """The trained model, and the examples and metrics by which its exports are compared with it.

    Attributes:
      model: the model, as the `fn` of signatures takes it.
      batches: held-out batches {name: [n, ...]} without padding.
      metrics: {name: metric}.
      own_outputs: batch -> the outputs that the run's own evaluation gives to metrics; None for those of the signature.
      averaged: the steps of the checkpoints whose mean the weights are; () if they are no mean.
      training: number of examples -> batches of the training split with so many; None if there are none.
      weights: 'model', or 'ema' for the moving average that the model has for the export.
      split: the evaluation split of the batches.
    """

    model: Any
    batches: Sequence[Arrays]
    metrics: Mapping[str, Metric]
    own_outputs: Call | None = None
    averaged: tuple[int, ...] = ()
    training: Callable[[int], Iterable[Mapping[str, Any]]] | None = None
    weights: str = "model"
    split: str = ""


@dataclasses.dataclass
class Findings:
    """The results of a verification, filled in as it proceeds, so that an exception keeps the earlier ones."""

    failures: list[str] = dataclasses.field(default_factory=list)
    outputs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    throughput: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    examples: int = 0


def verify(
    findings: Findings, hook: ExportHook, path: Path, trained: Trained, processes: Processes | None = None
) -> None:
    """Compares the artefact at `path` with the trained model on all batches, and again at the latency batch sizes.

    Args:
      findings: filled in.
      hook: the hook that wrote it.
      path: the artefact.
      trained: what it is compared with.
      processes: where it is loaded, if the hook has a runtime; None is this process.

    Raises:
      UserError: the bound of the hook is no bound, or the batches do not have the inputs of a signature.
    """
    if not isinstance(hook.bound, Bounds) and not 0 <= hook.bound < math.inf:
        raise UserError(f"bound={hook.bound} is out of range. Use a number of 0 or more, or export.Bounds.")
    for name, signature in hook.signatures.items():
        signature.check(name, trained.batches[0], "held-out")
    runtime = getattr(hook, "runtime", None)
    artefact = load_here(hook.load(path)) if runtime is None or processes is None else processes.load(runtime, path)
    with _arithmetic(hook, trained.model):
        # XLA leaves out roundings to half precision between operations: its programs are compared with one.
        by_xla = getattr(hook, "jit_compile", False) and bool(precision.halved(trained.model))
        live = {name: _live_call(signature, trained.model, by_xla) for name, signature in hook.signatures.items()}
    loaded = {name: _with_inputs(signature, artefact.calls[name]) for name, signature in hook.signatures.items()}
    metrics = trained.metrics if hook.signatures[SERVING].has_metrics else {}
    states = {name: {"trained": metric.empty(), "exported": metric.empty()} for name, metric in metrics.items()}
    differences: dict[str, Difference] = {}
    in_first_batch: dict[str, Arrays] = {}
    for batch in trained.batches:
        reference = _run(live, batch)
        exported = _run(loaded, batch)
        in_first_batch = in_first_batch or exported
        add(differences, reference, exported, len(batch["weight"]))
        with _arithmetic(hook, trained.model):
            measured = trained.own_outputs(batch) if metrics and trained.own_outputs else reference[SERVING]
        for kind, outputs in (("trained", measured), ("exported", exported[SERVING])):
            for name, metric in metrics.items():
                states[name][kind] = metric.merge(states[name][kind], _updated(name, metric, outputs, batch))
        findings.examples += len(batch["weight"])
    for name, difference in differences.items():
        findings.outputs[name] = difference.summary(hook.bound)
        findings.failures += difference.failures(name, hook.bound)
    for name, metric in metrics.items():
        numbers = {kind: _numbers(name, metric, state) for kind, state in states[name].items()}
        for full in numbers["trained"]:
            findings.metrics[full] = {kind: of_kind[full] for kind, of_kind in numbers.items()}
            findings.failures += _metric_failures(full, hook.bound, **findings.metrics[full])
    agrees = not findings.failures
    for size in LATENCY_BATCHES:
        probe = first_rows(trained.batches[0], size)
        if agrees:  # a converter may have fixed the batch size, so outputs are compared at these sizes too
            probed: dict[str, Difference] = {}
            is_exact = not isinstance(hook.bound, Bounds)
            own = {name: first_rows(outputs, size) for name, outputs in in_first_batch.items()}
            answers = _run(loaded, probe)
            add(probed, _run(live, probe) if is_exact else own, answers, size)
            if is_exact and size == 1:
                _note_dependence(findings, own, answers)
            for name, difference in probed.items():
                difference.measure_as(differences[name])
                findings.failures += difference.failures(f"{name} at batch {size}", hook.bound, is_whole=False)
        findings.latency_ms[str(size)] = artefact.timed(SERVING, hook.signatures[SERVING].inputs_of(probe))
        findings.throughput[str(size)] = 1e3 * size / findings.latency_ms[str(size)]["p50"]


def _note_dependence(findings: Findings, batched: Mapping[str, Arrays], alone: Mapping[str, Arrays]) -> None:
    """Notes floating outputs of an example alone that differ from those that it has among others of a batch."""
    for signature, outputs in alone.items():
        for key, array in outputs.items():
            numbers, other = findings.outputs[output_name(signature, key, len(alone))], batched[signature][key]
            if not numbers["range"] or array.shape != other.shape:
                continue
            with np.errstate(invalid="ignore"):  # infinity minus infinity
                errors = np.abs(array.astype(np.float64) - other.astype(np.float64))
            largest = float(np.max(errors, where=~np.isnan(errors), initial=0.0))
            if largest > _ALONE * numbers["range"]:
                numbers["batch_dependence"] = largest


def _arithmetic(hook: ExportHook, model: Any) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which the model computes for the comparison: that of the hook, else that of training."""
    own = getattr(hook, "arithmetic", None)
    return contextlib.nullcontext() if own is None else own(model)


def _metric_failures(name: str, allowed: float | Bounds, trained: float | None, exported: float | None) -> list[str]:
    bound = allowed.metric if isinstance(allowed, Bounds) else _METRIC_BOUND
    if trained is None or exported is None:
        same = trained == exported
    else:
        # The small number makes up for rounding: 0.99 and 0.98 differ by 0.01.
        same = abs(trained - exported) <= (bound + 1e-9) * max(1.0, abs(trained))
    return [] if same else [f"metric '{name}' is {exported} once exported, but {trained} in the run's own evaluation"]


def _live_call(signature: Signature, model: Any, by_xla: bool) -> Call:
    """Returns the signature on the trained model, as an XLA program or a graph, as a function of NumPy batches."""
    function = signature.trace(model, by_xla)

    def call(batch: Arrays) -> Arrays:
        inputs = signature.inputs_of(batch)
        outputs = function(**{name: tf.constant(array) for name, array in inputs.items()})
        return {name: output.numpy() for name, output in outputs.items()}

    return call


def _with_inputs(signature: Signature, call: Call) -> Call:
    """Returns a function of a whole batch, which gives `call` the inputs of the signature alone."""
    return lambda batch: call(signature.inputs_of(batch))


def _run(calls: Mapping[str, Call], batch: Arrays) -> dict[str, Arrays]:
    return {name: call(batch) for name, call in calls.items()}


def _updated(name: str, metric: Metric, outputs: Arrays, batch: Arrays) -> Any:
    """Returns the state of a metric for one batch."""
    try:
        return metric.update(outputs, batch)
    except KeyError as error:
        raise UserError(
            f"metric '{name}' needs {error}, which is neither an output of '{SERVING}' ({', '.join(outputs)}) nor in"
            f" the batches ({', '.join(batch)}). Return it from the signature's fn."
        ) from error


def _numbers(name: str, metric: Metric, state: Any) -> dict[str, float | None]:
    """Returns the numbers of a metric by name, None if not finite; pictures are not compared."""
    shown = results.of(metric, name, np.asarray(state, np.float64))
    return {full: _finite(value) for full, value in shown.items() if not isinstance(value, Picture)}


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None

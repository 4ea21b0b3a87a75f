"""The one way in which what an export hook writes is verified."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from framework.config import UserError
from framework.export.base import SERVING, Arrays, Call, ExportHook, Signature
from framework.export.difference import Difference, add
from framework.metrics import Metric

LATENCY_BATCHES = (1, 32)
_WARM_UP_CALLS = 5
_TIMED_CALLS = 50
# A metric may differ by what ties within an output's bound can change; beyond it, the export does something else.
_METRIC_BOUND = 1e-3


@dataclasses.dataclass
class Findings:
    """What verification has established so far; an exception half way keeps it."""

    failures: list[str] = dataclasses.field(default_factory=list)
    outputs: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    metrics: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    examples: int = 0


def verify(
    found: Findings,
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
    differences: dict[str, Difference] = {}
    for batch in batches:
        reference, exported = _run(live, batch), _run(loaded, batch)
        add(differences, reference, exported, len(batch["weight"]))
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
            probed: dict[str, Difference] = {}
            add(probed, _run(live, probe), _run(loaded, probe), size)
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

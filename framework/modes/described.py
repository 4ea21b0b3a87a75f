"""What `--mode=check` prints of a run before it runs anything: config, batch, parameters and schedule.

for section in SECTIONS:
    print("\n".join(section(run)))
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from framework import optim, paths
from framework.config import flatten
from framework.config.keys import KEYS
from framework.data.batches import Batches
from framework.data.bucketed import ROW
from framework.run.own_hooks import own_hooks
from framework.run.run import Run
from framework.step.penalties import shown


def config(run: Run) -> Iterator[str]:
    """Yields all keys with their values, and durations in steps."""
    yield "Config (* differs from the default; durations with their number of steps)"
    resolved = flatten(ConfigDict(run.resolved.to_dict()))
    for key, value in flatten(run.config).items():
        steps = f" = {resolved[key]}" if value and resolved[key] != value else ""
        differs = key in KEYS and value != KEYS[key].default
        default = f"  (default {KEYS[key].default!r})" if differs else ""
        yield f"{'*' if differs else ' '} {key:<32} {value!r}{steps}{default}"


def batch(run: Run) -> Iterator[str]:
    """Yields the training data, its first batch, the outputs of the loss and the evaluation splits."""
    placement = "resident on the device" if run.data.is_resident else "streamed"
    yield f"Training data: {_examples(run.data)} from {run.data.origin['source']}, {placement}"
    for row in run.data.origin.get("buckets", []):
        lengths = ", ".join(f"{name} {length}" for name, length in row.items() if name not in ROW)
        yield f"  bucket ({lengths}): {row['examples']:,} examples, {row['batches']:,} batches of {row['size']}"
    for name, tensor in run.data.at(0).items():
        values = tensor.numpy()
        is_number = np.issubdtype(values.dtype, np.number)
        extent = f"  {values.min():.6g} … {values.max():.6g}" if is_number else ""
        yield f"  {name:<24} {tensor.dtype.name:<8} {tensor.shape.as_list()}{extent}"
    yield f"Outputs of the loss (terms: {', '.join(shown(run.probe.terms))})"
    for name, spec in run.probe.outputs.items():
        yield f"  {name:<24} {spec.dtype.name:<8} {spec.shape.as_list()}"
    for split, batches in run.eval_data.items():
        yield f"Evaluation split '{split}': {_examples(batches)} from {batches.origin['source']}"


def _examples(batches: Batches) -> str:
    """Returns the number of examples as text; a pipeline may not know how many it has."""
    count = batches.origin["examples"]
    return "examples" if count is None else f"{count:,} examples"


def parameters(run: Run) -> Iterator[str]:
    """Yields the variables of the model with the mean and the spread of their values."""
    variables = paths.variables(run.model)
    trained = paths.trainable(run.model)
    yield f"Parameters: {_count(trained):,} trainable, {_count(variables) - _count(trained):,} not"
    for path, variable in variables.items():
        values = variable.numpy()
        kind = "" if path in trained else "  not trainable"
        yield (
            f"  {path:<32} {variable.dtype.name:<8} {variable.shape.as_list()!s:<16} {values.size:>11,}"
            f"  mean {values.mean():+.3g}, sd {values.std():.3g}{kind}"
        )


def schedule(run: Run) -> Iterator[str]:
    """Yields learning rates over the run, what is pruned, clustered or rounded, and the hooks."""
    total = run.total_steps
    for name, schedule in run.schedules.items():
        of = "" if name == "model" else f" of '{name}'"
        yield f"Schedule '{run.resolved.schedule.name}'{of} over {total:,} steps"
        for update in optim.sampled_updates(total):
            yield f"  update {update:>9,}  learning rate {float(schedule(update)):.6g}"
    yield from _pruning(run)
    yield from _clusters(run)
    yield from _quantization(run)
    # What training refuses at its start is refused here, unless its weights are those of another run.
    optim.prepare_schedules(run.state.schedule, run.modes)
    if not (run.resolved.init_from or run.resolved.resume_from):
        run.refuse_useless_start()
    for hook in own_hooks(run).hooks:
        yield f"Hook '{hook.name}' {f'every {hook.every} steps' if hook.every else 'at the end'}"


def _pruning(run: Run) -> Iterator[str]:
    pruner, trained = run.state.prune, paths.trainable(run.model)
    if pruner is None:
        return
    now, last = pruner.sparsities(), pruner.last_sparsities()
    taken = " (of the initial weights, not those of init_from)" if run.resolved.init_from else ""
    keeps = run.resolved.prune.schedule == "keep"
    then = "which stay" if keeps else f"and at the last masks (after update {pruner.end:,})"
    yield f"Pruning: {len(now)} variables; zeros now{taken}, {then}"
    for path in now:
        later = "" if keeps else f"  {last[path]:.3f}"
        yield f"  {path:<32} {trained[path].shape.num_elements():>11,}  {now[path]:.3f}{later}"


def _clusters(run: Run) -> Iterator[str]:
    clusterer = run.state.cluster
    if clusterer is None:
        return
    yield (
        f"Clusters: {len(clusterer.indices)} variables of at most {clusterer.clusters} values each, found after update"
        f" {clusterer.begin:,}"
    )
    for path, index in clusterer.indices.items():
        yield f"  {path:<32} {index.shape.num_elements():>11,}"


def _quantization(run: Run) -> Iterator[str]:
    quantizer = run.state.quantize
    if quantizer is None:
        return
    yield (
        f"Quantisation: {len(quantizer.kernels)} kernels and {len(quantizer.points)} ranges of activations, from update"
        f" {quantizer.begin:,} on"
    )
    yield f"  kernels of {', '.join(quantizer.kernels)}"
    yield f"  trained in float: {', '.join(quantizer.in_float) or 'none'}"


def _count(variables: dict[str, tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in variables.values())


SECTIONS = (config, batch, parameters, schedule)

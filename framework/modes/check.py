"""--mode=check: runs the whole pipeline without training, and prints its parts.

It prints the config, one real batch, shapes and dtypes, parameters, the schedule and an estimate of memory. Then it
takes and undoes the first step, checks the transform, the loss and the metrics, and exports the untrained model through
every export hook.
"""

import functools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from framework import optim, paths
from framework.config import flatten
from framework.config.keys import KEYS
from framework.data.batches import Batches
from framework.data.bucketed import ROW
from framework.export.runner import export_all
from framework.folder import EXPORTS
from framework.modes.export import describe
from framework.run.evaluation import untouched
from framework.run.exporting import held_out, training
from framework.run.own_hooks import own_hooks
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.additivity import check_additive
from framework.step.examples_apart import check_apart
from framework.step.padding import check_metrics, padded
from framework.step.penalties import shown
from framework.step.size import bytes_of


def main(run: Run, overrides: Sequence[str]) -> int:
    """Prints the report; returns 1 if the first step, the loss, a metric or a dry export fails. Keeps no file."""
    for section in (_config, _batch, _parameters, _schedule, _memory):
        print("\n".join(section(run)), end="\n\n")
    return max(_first_step(run), _transform(run), _loss(run), _metrics(run), _exports(run))


def _config(run: Run) -> Iterator[str]:
    yield "Config (* differs from the default; durations with their number of steps)"
    resolved = flatten(ConfigDict(run.resolved.to_dict()))
    for key, value in flatten(run.config).items():
        steps = f" = {resolved[key]}" if value and resolved[key] != value else ""
        differs = key in KEYS and value != KEYS[key].default
        default = f"  (default {KEYS[key].default!r})" if differs else ""
        yield f"{'*' if differs else ' '} {key:<32} {value!r}{steps}{default}"


def _batch(run: Run) -> Iterator[str]:
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


def _first_step(run: Run) -> int:
    """Takes the first step, with schedule, metrics and optimizer, and restores the state; returns the exit status.

    Raises:
      UserError: a mistake that only a whole step shows, e.g. parameters that the loss does not depend on.
    """
    print("First step, taken and undone")
    if run.config.runtime.strategy == "parameter_server":
        print("  not taken: under runtime.strategy='parameter_server' workers take the steps\n")
        return 0
    mode = compile_choice.candidates(run.resolved, run.probe, run.replicas)[0]
    restore = compile_choice.saved(run.state)
    try:
        gradients = run.train_block.inspect(mode)
        row = run.train_block.compiled_by(mode)(1).row(0)
    finally:
        restore()
    zero = [path for path, gradient in gradients.items() if not np.any(gradient)]
    problems = _nonfinite(run, row["loss"], gradients)
    for name, value in row.items():
        print(f"  {name:<24} {value:.6g}")
    for line in _guesses(run):
        print(f"  {line}")
    if zero:
        print(f"  gradients that are exactly 0 over this batch: {', '.join(zero)}")
    for problem in problems:
        print(f"  FAILED: {problem}")
    print()
    return 1 if problems else 0


def _nonfinite(run: Run, loss: float, gradients: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the problems of a first step whose loss or gradients are not finite."""
    problems = [] if math.isfinite(loss) else [f"the loss is {loss}: training would not begin"]
    scale = run.state.loss_scale
    bad = [path for path, gradient in gradients.items() if not np.all(np.isfinite(gradient))]
    if bad and not (scale is not None and scale.is_dynamic):  # a dynamic scale may start too high, and goes down
        problems.append(f"gradients that are not finite: {', '.join(bad)}")
    return problems


def _guesses(run: Run) -> Iterator[str]:
    """Yields the loss of a uniform guess, for each output that has a number for each class of a label."""
    for name, output in run.probe.outputs.items():
        classes = output.shape[-1] if output.shape.rank and output.dtype.is_floating else None
        for label, spec in run.probe.batch.items():
            is_label = spec.dtype.is_integer and output.shape[:-1].as_list() == spec.shape.as_list()
            if is_label and classes and classes > 1:
                cost = f"costs ln({classes}) = {math.log(classes):.4g}"
                yield f"a guess of '{label}' among the {classes} classes of '{name}' {cost}"


def _transform(run: Run) -> int:
    print("Parts of a batch")
    problems = check_apart(run.data)
    if problems is None:
        print("  the transform cannot be given a part of the batch\n")
        return 0
    return _verdict(problems, "the transform makes of them what it makes of the whole batch")


def _loss(run: Run) -> int:
    print("Additivity of the loss")
    if not run.replicas.is_local:
        print("  not checked: the replicas are in several processes\n")
        return 0
    with untouched(run):
        problems = check_additive(run.loss, run.model, padded(run.data), run.resolved)
    if problems is None:
        print("  cannot be computed on a part of the batch\n")
        return 0
    return _verdict(problems, "additive: it is the sum over the examples of the batch")


def _metrics(run: Run) -> int:
    if not run.metrics or not run.replicas.is_local:
        return 0
    print("Padding in metrics")
    with untouched(run):
        problems = check_metrics(run.loss, run.model, run.metrics, padded(run.data), run.resolved)
    return _verdict(problems, "rows of weight 0 do not count")


def _verdict(problems: Sequence[str], good: str) -> int:
    """Prints the problems, or that all is good; returns the exit status."""
    lines = [f"FAILED: {problem}" for problem in problems] or [good]
    print("\n".join(f"  {line}" for line in lines), end="\n\n")
    return 1 if problems else 0


def _parameters(run: Run) -> Iterator[str]:
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


def _pruning(run: Run) -> Iterator[str]:
    pruner, trained = run.state.prune, paths.trainable(run.model)
    if pruner is None:
        return
    now, last = pruner.sparsities(), pruner.last_sparsities()
    taken = " (of the initial weights, not those of init_from)" if run.resolved.init_from else ""
    yield f"Pruning: {len(now)} variables; zeros now{taken}, and at the last masks (after update {pruner.end:,})"
    for path in now:
        yield f"  {path:<32} {trained[path].shape.num_elements():>11,}  {now[path]:.3f}  {last[path]:.3f}"


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
    yield f"  in float: {', '.join(quantizer.in_float) or 'none'}"


def _schedule(run: Run) -> Iterator[str]:
    total = run.total_steps
    for name, schedule in run.schedules.items():
        of = "" if name == "model" else f" of '{name}'"
        yield f"Schedule '{run.resolved.schedule.name}'{of} over {total:,} steps"
        for update in optim.sampled_updates(total):
            yield f"  update {update:>9,}  learning rate {float(schedule(update)):.6g}"
    yield from _pruning(run)
    yield from _clusters(run)
    yield from _quantization(run)
    # What training refuses at its start is refused here.
    optim.prepare_schedules(run.state.schedule, run.modes)
    for hook in own_hooks(run).hooks:
        yield f"Hook '{hook.name}' {f'every {hook.every} steps' if hook.every else 'at the end'}"


def _memory(run: Run) -> Iterator[str]:
    trained = paths.trainable(run.model)
    sizes = {
        "state (weights, slots, counters)": sum(bytes_of(v) for v in paths.variables(run.state).values()),
        "gradients": sum(bytes_of(v) for v in trained.values()),
        "activations of one batch, at most": sum(
            bytes_of(tensor)
            for operation in run.probe.graph.get_operations()
            if operation.type != "Placeholder"  # inputs of the graph: the resident examples, the variables
            for tensor in operation.outputs
        ),
        "resident examples": sum(d.origin["bytes"] for d in (run.data, *run.eval_data.values()) if d.is_resident),
    }
    yield f"Memory, estimated: {sum(sizes.values()) / 2**20:,.1f} MiB"
    for name, size in sizes.items():
        yield f"  {name:<34} {size / 2**20:>10,.1f} MiB"


def _exports(run: Run) -> int:
    if not run.exports:
        print("Exports: none declared")
        return 0
    print("Dry export of the untrained model")
    with tempfile.TemporaryDirectory() as folder:
        reports = export_all(
            run.exports,
            run.model,
            list(held_out(run)),
            run.metrics,
            Path(folder, EXPORTS),
            training=functools.partial(training, run),
        )
    for report in reports:
        print(f"  {report.hook:<14} {describe(report)}")
    return 0 if all(report.passed for report in reports) else 1


def _count(variables: dict[str, tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in variables.values())

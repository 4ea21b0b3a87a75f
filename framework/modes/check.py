"""--mode=check: does everything that a run does but train, and prints the parts of the run.

It prints the config, one real batch, shapes and dtypes, parameters, the schedule, and the memory beside what is free.
It looks for evaluation data in the training data, takes and undoes the first step, checks the transform, the loss and
the metrics, and exports the untrained model through every export hook. `rehearsal.py` does the rest: a checkpoint, an
evaluation, the hooks, and a forecast.
"""

import functools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from framework import paths
from framework.data.overlap import overlap
from framework.distribute.memory import free_memory
from framework.export.runner import export_all
from framework.folder import EXPORTS
from framework.modes import described, rehearsal
from framework.modes.export import describe
from framework.pages.exports import ExportReport
from framework.run.evaluation import untouched
from framework.run.exporting import held_out, training
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.additivity import check_additive
from framework.step.examples_apart import check_apart
from framework.step.padding import check_metrics, padded
from framework.step.size import bytes_of

_MOST_SHARED = 0.01  # of the examples of a split; data sets have a few examples twice
_TOO_LITTLE = "{} {:,.1f} MiB more. Use a smaller --config.data.batch_size or model, or end other programs."


def main(run: Run, overrides: Sequence[str]) -> int:
    """Prints the report; returns 1 if anything that it tries fails or does not fit. Keeps no file."""
    for section in described.SECTIONS:
        print("\n".join(section(run)), end="\n\n")
    statuses = [part(run) for part in (_memory, _apart, _first_step, _transform, _loss, _metrics)]
    reports = _exports(run)
    statuses += [int(not report.passed) for report in reports]
    return max(*statuses, rehearsal.main(run, sum(report.bytes for report in reports)))


def _memory(run: Run) -> int:
    """Prints what the run will hold, and fails if it does not fit into what is free."""
    state = sum(bytes_of(variable) for variable in paths.variables(run.state).values())
    gradients = sum(bytes_of(variable) for variable in paths.trainable(run.model).values())
    activations = sum(
        bytes_of(tensor)
        for operation in run.probe.graph.get_operations()
        if operation.type != "Placeholder"  # inputs of the graph: the resident examples, the variables
        for tensor in operation.outputs
    )
    examples = sum(d.origin["bytes"] for d in (run.data, *run.eval_data.values()) if d.is_resident)
    sizes = {
        "state (weights, slots, counters)": state,
        "gradients": gradients,
        "activations of one batch, at most": activations,
        "resident examples": examples,
        "copy of the state for a save": state,
    }
    print(f"Memory, estimated: {sum(sizes.values()) / 2**20:,.1f} MiB")
    free = free_memory()
    for name, size in (*sizes.items(), *([] if free is None else [("free now, the state being there", free)])):
        print(f"  {name:<34} {size / 2**20:>10,.1f} MiB")
    # State and examples are there already. Gradients and activations lie on an accelerator, if there is one.
    on_host = not tf.config.list_physical_devices("GPU")
    least = state + on_host * gradients
    is_short = free is not None and least > free
    if is_short:
        print(f"  FAILED: {_TOO_LITTLE}".format("the run needs at least", least / 2**20))
    elif free is not None and least + on_host * activations > free:
        print(f"  perhaps too little: {_TOO_LITTLE}".format("a step may need", (least + activations) / 2**20))
    print()
    return int(is_short)


def _apart(run: Run) -> int:
    """Looks for examples of the evaluation splits in the training data; returns the exit status."""
    print("Evaluation data in the training data")
    status = 0
    for split, batches in run.eval_data.items():
        found = overlap(run.data, batches)
        if found is None:
            print(f"  {split}: not compared: other fields, dtypes or shapes, or a tf.data pipeline")
            continue
        counts = f"{found.shared:,} of {found.looked_at:,} examples of '{split}' among {found.among:,} for training"
        counts += "" if found.among == found.of else f" (of {found.of:,}; the time was up)"
        print(f"  {counts}" + (f", e.g. {found.first[0]} there is {found.first[1]}" if found.first else ""))
        if found.numbers:
            print(f"  compared without what numbers the examples: {', '.join(found.numbers)}")
        if found.repeated:
            print(f"  {found.repeated:,} of these are more than once in '{split}' itself, and may be equal by nature")
        if found.share > _MOST_SHARED and not split.startswith("train"):
            print(f"  FAILED: '{split}' tests what was trained on. Split first, or name it 'train…' if that is meant.")
            status = 1
    print()
    return status


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


def _exports(run: Run) -> Sequence[ExportReport]:
    if not run.exports:
        print("Exports: none declared\n")
        return []
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
    print()
    return reports

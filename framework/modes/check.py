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

from framework.export.runner import export_all
from framework.folder import EXPORTS
from framework.modes import described
from framework.modes.export import describe
from framework.run.evaluation import untouched
from framework.run.exporting import held_out, training
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.additivity import check_additive
from framework.step.examples_apart import check_apart
from framework.step.padding import check_metrics, padded


def main(run: Run, overrides: Sequence[str]) -> int:
    """Prints the report; returns 1 if the first step, the loss, a metric or a dry export fails. Keeps no file."""
    for section in described.SECTIONS:
        print("\n".join(section(run)), end="\n\n")
    return max(_first_step(run), _transform(run), _loss(run), _metrics(run), _exports(run))


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

"""--mode=evaluate: evaluates a checkpoint of a run on every evaluation split."""

import textwrap
from collections.abc import Sequence

from framework.run import evaluation, lookback
from framework.run.run import Run


def main(run: Run, overrides: Sequence[str], checkpoint: str | int = "last") -> int:
    """Prints one line for each metric of a checkpoint ('last', 'best' or a step), and the texts of evaluators."""
    run.restore(checkpoint, average=run.resolved.checkpoint.average)
    run.recall()
    print(f"{run.typed_workdir}, step {int(run.state.step)}")
    for line in lookback.lines(run):
        print(f"  {line}")
    report = evaluation.report(run)
    for name, value in report.scalars.items():
        print(f"  {name:<24} {value:.6g}")
    for name, text in report.texts.items():
        print(f"  {name}\n{textwrap.indent(str(text), '    ')}")
    if report.images:
        print(f"  Pictures, which are written while training: {', '.join(report.images)}")
    return 0

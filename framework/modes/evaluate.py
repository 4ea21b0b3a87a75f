"""--mode=evaluate: a checkpoint of a run on every evaluation split."""

from collections.abc import Sequence

from framework import lookback
from framework.loop import evaluate
from framework.run import Run


def main(run: Run, overrides: Sequence[str], checkpoint: str | int = "last") -> int:
    """Prints one line a metric of `checkpoint`: 'last', 'best' or that of a step."""
    run.restore(checkpoint)
    run.recall()
    print(f"{run.workdir}, step {int(run.state.step)}")
    for line in lookback.lines(run):
        print(f"  {line}")
    for name, value in evaluate(run).items():
        print(f"  {name:<24} {value:.6g}")
    return 0

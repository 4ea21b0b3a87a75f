"""--mode=evaluate: a checkpoint of a run on every evaluation split."""

from collections.abc import Sequence

from framework.run import lookback
from framework.run.evaluation import evaluate
from framework.run.run import Run


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

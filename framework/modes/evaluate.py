"""--mode=evaluate: the newest checkpoint of a run on every evaluation split."""

from collections.abc import Sequence

from framework.loop import evaluate
from framework.run import Run


def main(run: Run, overrides: Sequence[str]) -> int:
    """Prints one line a metric."""
    print(f"{run.workdir}, step {int(run.state.step)}")
    for name, value in evaluate(run).items():
        print(f"  {name:<24} {value:.6g}")
    return 0

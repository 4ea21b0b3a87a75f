"""--mode=evaluate: the newest checkpoint of a run on every evaluation split."""

from collections.abc import Sequence

from framework.config import UserError
from framework.loop import evaluate
from framework.run import Run


def main(run: Run, overrides: Sequence[str]) -> int:
    """Prints one line a metric."""
    step = restore(run)
    print(f"{run.workdir}, step {step}")
    for name, value in evaluate(run).items():
        print(f"  {name:<24} {value:.6g}")
    return 0


def restore(run: Run, which: str = "last") -> int:
    """Restores a checkpoint of the run folder and returns its step.

    Raises:
      UserError: there is none.
    """
    if run.checkpoints.restore(run.state, which) is None:
        raise UserError(f"--workdir={run.workdir} has no checkpoint. Train first: --mode=train.")
    return int(run.state.step)

"""Evaluates every split of a run once; nothing that the loss moves stays moved.

evaluate(run)             # {'test/loss': 0.07, 'test/accuracy': 0.98}
with untouched(run):
    ...                   # compute the loss at will
"""

import contextlib
import math
from collections.abc import Iterator

from absl import logging

from framework.config import AVERAGED
from framework.run.run import Run


def evaluate(run: Run, checkpoint: str | int | None = None) -> dict[str, float]:
    """{'split/metric': value} over every evaluation split, each example once.

    'split@ema/metric' is that of the averaged weights. Nothing that the loss moves stays moved.

    Args:
      run: as built.
      checkpoint: 'last', 'best' or the number of a step: the run takes that state of its folder first, and keeps it.
        None evaluates the live state.

    Raises:
      UserError: there is no such checkpoint.
    """
    if checkpoint is not None:
        run.restore(checkpoint)
    results: dict[str, float] = {}
    for split, block in run.eval_blocks.items():
        with run.weights("ema" if split.endswith(AVERAGED) else "model"):
            found = block()
        if bad := [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]:
            logging.warning(
                "evaluating '%s': %s: %s",
                split,
                ", ".join(bad),
                block.problem or "the sums are finite, such as those of no example",
            )
        results |= {f"{split}/{name}": value for name, value in found.items()}
    return results


@contextlib.contextmanager
def untouched(run: Run) -> Iterator[None]:
    """Puts back what the loss moves where it is not training, such as averages under training=True."""
    with contextlib.ExitStack() as stack:
        for block in run.eval_blocks.values():
            stack.enter_context(block.untouched())
        yield

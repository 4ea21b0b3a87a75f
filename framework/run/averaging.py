"""Which checkpoints of a run `checkpoint.average` takes the mean of.

steps = chosen(run.checkpoints, 'last', 5, {})
steps = chosen(run.checkpoints, 'best', 5, ranking(workdir, 'test/loss', 'min'))
"""

from collections.abc import Mapping
from pathlib import Path

from framework import folder
from framework.checkpoint.checkpoints import Checkpoints
from framework.errors import UserError
from framework.files import rows


def chosen(checkpoints: Checkpoints, which: str | int, count: int, ranks: Mapping[int, float]) -> tuple[int, ...]:
    """Returns the steps of `count` checkpoints, in order.

    Args:
      checkpoints: those of the run.
      which: 'last' for the newest; a step for its checkpoint and the newest before it; 'best' for the best by `ranks`.
      count: how many.
      ranks: {step: number}, of steps that were evaluated; smaller is better.

    Raises:
      UserError: there are fewer.
    """
    steps = checkpoints.steps()
    if which == "best":
        steps = sorted((step for step in steps if step in ranks), key=lambda step: ranks[step], reverse=True)
    elif isinstance(which, int):
        steps = [step for step in steps if step <= which] if which in steps else []
    if len(steps) < count:
        of = {"last": "", "best": " that were evaluated by checkpoint.best_metric"}.get(str(which), f" up to {which}")
        raise UserError(
            f"checkpoint.average={count}, but {checkpoints.folder} has {len(steps)} checkpoints{of}:"
            f" {', '.join(map(str, sorted(steps))) or 'none'}. Type --config.checkpoint.average={max(1, len(steps))},"
            f" or train with --config.checkpoint.keep={count}."
        )
    return tuple(sorted(steps[-count:]))


def ranking(workdir: Path, metric: str, mode: str) -> dict[int, float]:
    """Returns {step: number, smaller is better} of the evaluations in metrics.jsonl that have a metric.

    Args:
      workdir: the run folder.
      metric: '<split>/<metric>'; '' for none.
      mode: 'min' or 'max'.

    Raises:
      UserError: there is no metric.
    """
    if not metric:
        raise UserError(
            "checkpoint.average of the best checkpoints needs checkpoint.best_metric, and the run was trained without."
            " Use --checkpoint=last."
        )
    name, sign = f"eval/{metric}", -1 if mode == "max" else 1
    values = {row["step"]: row[name] for row in rows(workdir / folder.METRICS) if row.get(name) is not None}
    return {step: sign * value for step, value in values.items()}

"""The writers of a run: metrics.jsonl, the console, TensorBoard, and what the experiment's `make_writers` adds.

with writers_of(run, start) as writer:
    writer.open(run.workdir, start)
    writer.scalars(400, {'loss': 0.2134})
"""

import math

from framework.errors import UserError
from framework.experiment import user_code
from framework.experiment.returns import checked, shown
from framework.folder import CURVES, METRICS
from framework.run.run import Run
from framework.writers import AsyncWriter, Console, Jsonl, MultiWriter, TensorBoard, Writer
from framework.writers.base import OwnWriter


def writers_of(run: Run, start: int) -> MultiWriter:
    """Returns the writers of the chief, for a run that goes on at step `start`; other workers write nothing.

    Raises:
      UserError: `make_writers` returned something else than writers.
    """
    if not run.replicas.is_chief:
        return MultiWriter([])
    own = _own_writers(run)
    epoch = run.data.steps_per_epoch if math.isfinite(run.data.steps_per_epoch) else None
    style = run.resolved.log.console
    return MultiWriter(
        [
            Jsonl(run.workdir / METRICS, start),
            Console(run.total_steps, start, steps_per_epoch=epoch, style=style),
            *own,
            # Last, or its thread would hold the interpreter while the others need it.
            AsyncWriter(TensorBoard(run.workdir / CURVES, start)),
        ],
        run.resolved.checkpoint.on_error,
    )


def _own_writers(run: Run) -> list[Writer]:
    if "make_writers" not in run.experiment.functions:
        return []
    with user_code.explained(run.workdir):
        writers = checked(run.experiment.functions)["make_writers"](run.resolved)
    for writer in writers:
        if not isinstance(writer, Writer):
            raise UserError(
                f"make_writers returned a list with {shown(writer)}. A writer is an object of a class that derives from"
                " framework.writers.Writer."
            )
    return [OwnWriter(writer, run.workdir) for writer in writers]

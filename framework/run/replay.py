"""Replays a step of a trained run, bit for bit, and shows its numbers, gradients and examples.

    run = framework.build('experiments/mnist_mlp.py', workdir='runs/mnist', from_workdir=True)
    shown = replay_step(run, 120, eager=True)
    shown.scalars, shown.logged           # {'loss': 0.2134, …}, what metrics.jsonl has of that step
    shown.gradient_norms['dense/kernel'], shown.indices['index'], shown.finding

The re-run starts at the newest checkpoint before the step, or from scratch. It writes nothing and needs no lock. Hooks
do not act; a schedule with a state observes the evaluations on the way.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from framework import optim, paths
from framework.checkpoint.start import set_out
from framework.errors import UserError
from framework.files import rows
from framework.folder import FAILURE, METRICS, step_of
from framework.run.build import build_run
from framework.run.evaluation import evaluate
from framework.run.interval import PREFIX
from framework.run.progress import PADDING, TIMES
from framework.run.run import Run
from framework.step.block import Block
from framework.step.diagnose import look
from framework.step.forward import total
from framework.step.gradients import Gradients


@dataclasses.dataclass(frozen=True)
class ReplayedStep:
    """All that is known of a step.

    Attributes:
      step: its number, as in metrics.jsonl; the first is 1.
      start: the step of the checkpoint that the re-run began at; 0 for scratch.
      outcome: 'applied', or why the weights stayed as they were.
      scalars: all that a step reports.
      logged: the row of the step in metrics.jsonl without means, None for a value that was not finite; {} if none.
      gradient_norms: {path: L2 norm} of the gradients, unscaled and not clipped.
      weight_norms: {path: L2 norm} of the variables before the step.
      indices: {'source', 'index', 'weight'}, each [batch]; {} for batches that have a state.
      eager: loss and gradient norm of an eager run of the step with the same batch and draws; {} if not asked for.
      finding: the first thing that was not finite in the eager run; '' if nothing was.
    """

    step: int
    start: int
    outcome: str
    scalars: dict[str, float]
    logged: dict[str, float | None]
    gradient_norms: dict[str, float]
    weight_norms: dict[str, float]
    indices: dict[str, np.ndarray]
    eager: dict[str, float]
    finding: str

    @property
    def differing(self) -> list[str]:
        """Names of the logged numbers that are not exactly the replayed ones."""
        replayed = {name: value if math.isfinite(value) else None for name, value in self.scalars.items()}
        return [name for name, value in self.logged.items() if replayed.get(name, math.nan) != value]


def replay_step(run: Run, step: int, eager: bool = False) -> ReplayedStep:
    """Replays a step of a run folder.

    Args:
      run: of that folder. Afterwards its state is the one after the step.
      step: from 1 to the last step that was trained, or that the run failed at.
      eager: whether to run the step eagerly too, and look at the outputs and gradients of every layer.

    Raises:
      UserError: there is no such step, or a checkpoint is of another model.
    """
    _check_step(run, step)
    start = _go_back(run, step - 1)
    block = run.train_block
    for length in _lengths(run, step - 1):
        if block(length).is_halted and int(run.state.step) < step - 1:
            raise UserError(
                f"--step={step}: the re-run from step {start} cannot pass step {int(run.state.step) + 1}, which is not"
                " finite, although the run did: its config or experiment file is another one."
            )
    weights = {path: _norm(variable) for path, variable in _trained(run).items()}
    gradients = {path: _norm(gradient) for path, gradient in block.inspect(block.compiled.mode).items()}
    looked = look(block) if eager else None
    updates, is_listed = int(run.state.updates), _is_listed(run, step - 1)
    shown = block(1)
    return ReplayedStep(
        step=step,
        start=start,
        outcome=_outcome(run, shown, updates, is_listed),
        scalars=shown.row(0),
        logged=_logged(run, step),
        gradient_norms=gradients,
        weight_norms=weights,
        indices=run.data.indices(step - 1) if hasattr(run.data, "indices") else {},
        eager=_eager(run, looked.gradients) if looked else {},
        finding=looked.finding if looked else "",
    )


def _lengths(run: Run, end: int) -> Iterator[int]:
    """Yields the steps of each next block up to step `end`; a schedule with a state sees the evaluations on the way."""
    every = run.resolved.eval.every if run.state.schedule is not None else 0
    optim.prepare_schedules(run.state.schedule, run.modes)
    while (step := int(run.state.step)) < end:
        until_evaluated = every - step % every if every else end
        yield min(run.train_block.block_steps, end - step, until_evaluated)
        if every and int(run.state.step) % every == 0:
            optim.observe(run.state.schedule, evaluate(run))


def _go_back(run: Run, step: int) -> int:
    """Sets the run to the newest checkpoint up to `step`, or to its start; returns the step reached."""
    # The newest skip list counts: an earlier checkpoint does not know yet which steps the run left out.
    run.checkpoints.restore(run.state)
    listed = None if run.state.skip_list is None else run.state.skip_list.numpy()
    if run.checkpoints.restore(run.state, until=step) is None:
        untrained = paths.variables(build_run(run.experiment, run.config, run.workdir, time.monotonic()).state)
        for path, variable in paths.variables(run.state).items():
            paths.assign(variable, paths.copies(untrained[path])[0])
        set_out(run.state, run.resolved)
        if int(run.state.step) > step:
            raise UserError(
                f"--step={step + 1} is of the run that this one went on from at step {int(run.state.step)}:"
                f" {run.resolved.resume_from}. Use the --workdir of that one."
            )
    run.refresh()
    start = int(run.state.step)
    run.refuse_altered()
    if run.state.skip_list is not None:
        run.state.skip_list.assign(listed)
    return start


def _check_step(run: Run, step: int) -> None:
    if not 1 <= step <= run.total_steps:
        raise UserError(f"--step={step} is out of range: {run.workdir} has steps 1 to {run.total_steps}.")
    failed = map(step_of, (path.name for path in (run.workdir / FAILURE).glob("*")))
    logged = [row["step"] for row in _rows(run)]
    last = max([0, *run.checkpoints.steps(), *logged, *(step + 1 for step in failed if step is not None)])
    if step > last:
        raise UserError(
            f"--step={step} was not trained yet: {run.workdir} has come to step {last}."
            f" {f'Use --step={last}' if last else 'Train first: --mode=train'}."
        )


def _rows(run: Run) -> list[dict[str, Any]]:
    """Returns the rows of steps in metrics.jsonl, without evaluations and without a torn last line."""
    return [row for row in rows(run.workdir / METRICS) if "loss" in row]


def _logged(run: Run, step: int) -> dict[str, float | None]:
    row: dict[str, Any] = next((row for row in _rows(run) if row["step"] == step), {})
    # A mean is of many steps, and so is the padding.
    own = {name: value for name, value in row.items() if not name.startswith(PREFIX)}
    return {name: value for name, value in own.items() if name not in ("step", PADDING, *TIMES)}


def _is_listed(run: Run, step: int) -> bool:
    return run.state.skip_list is not None and step in run.state.skip_list.numpy()


def _outcome(run: Run, block: Block, updates: int, is_listed: bool) -> str:
    if int(run.state.updates) > updates:
        return "applied"
    if is_listed:
        return "left out: it is on the skip list"
    if int(run.state.step) == block.first_step:
        return f"not taken: it is not finite, and train.on_nonfinite='{run.resolved.train.on_nonfinite}'"
    return "skipped: it is not finite"


def _trained(run: Run) -> dict[str, tf.Variable]:
    """Returns {path: variable}, with the paths of `TrainBlock.inspect`."""
    return {
        path if name == "model" else f"{name}/{path}": variable
        for name, optimizer in run.state.optimizers.items()
        for path, variable in optimizer.trained.items()
    }


def _norm(value: tf.Variable | np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(value).astype(np.float64)))


def _eager(run: Run, eager: Gradients) -> dict[str, float]:
    values = {"loss": float(total(eager.terms))}
    for name in run.state.optimizers:
        own = "" if name == "model" else f"{name}/"
        gradients = [gradient for path, gradient in eager.gradients.items() if path.startswith(own)]
        values[f"gradient_norm/{name}" if own else "gradient_norm"] = float(optim.global_norm(gradients))
    return values

"""--mode=overfit: trains a fresh model on one batch, and names what does not learn if the loss stays.

    python launch.py --config=experiments/mnist_mlp.py --mode=overfit --steps=200

The batch is that of step 0, made once, so that augmentation does not change it; dropout and other draws of the model
stay. Step, optimizer and groups are the experiment's. The schedule of the whole run is passed through in the steps.
Nothing is written.

The batch counts as learned if the loss, without penalties of weights, comes near zero: its mean over the last twentieth
of the steps is at most a tenth of the first loss. Losses with a floor, such as those of smoothed labels, cannot. So it
is also learned if the loss has fallen to at most half, the norm of the gradients to at most a tenth of its greatest
value, no layer is dead, and each parameter has a gradient and has moved. It is never learned if all labels of the batch
are the same, because such a loss falls without the inputs.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from framework import paths
from framework.data.one_batch import OneBatch
from framework.run.fresh import advice, fresh_run, refuse_unsuited
from framework.run.run import Run
from framework.step.block import TrainBlock
from framework.step.learning import Signs, constant_labels, look
from framework.step.metric_row import mean, term_key
from framework.step.penalties import is_penalty

STEPS = 200
_NEAR_ZERO, _HALF, _FLAT = 0.1, 0.5, 0.1  # shares of the first loss, and of the greatest norm of the gradients
_LINES = 10  # that show the loss as it falls
_LOWER = (10, 100)  # by which a rate is divided that may be too high
_RISE = 0.5  # of the first loss
_SHOWN = 4  # names of one line
_HIDDEN = ("loss", "skipped", "empty_terms", "parameter_norm", "update_norm")  # numbers of a row


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the steps on one batch have shown.

    Attributes:
      rows: the numbers of each step.
      losses, norms: float64 [steps], of the loss without penalties and of the gradients, each before its update.
      failed_at: the step that is not finite, at which the trial ended; 0 if there is none.
      still: parameters that have the bits that they began with.
      block: with the state at the end.
    """

    rows: Sequence[dict[str, float]]
    losses: np.ndarray
    norms: np.ndarray
    failed_at: int
    still: list[str]
    block: TrainBlock

    @functools.cached_property
    def signs(self) -> Signs:
        """Signs of what does not learn, of the state at the end; an eager step."""
        return look(self.block)

    @property
    def last(self) -> float:
        """The mean of the loss over the last steps."""
        return float(self.losses[-self.last_steps :].mean())

    @property
    def last_steps(self) -> int:
        """How many steps are a twentieth."""
        return max(1, len(self.losses) // 20)

    @property
    def is_near_zero(self) -> bool:
        """Whether the loss has come near zero."""
        return not self.failed_at and 0 <= self.last <= _NEAR_ZERO * self.losses[0]

    @property
    def is_at_floor(self) -> bool:
        """Whether the loss has come near a floor above zero, by all parameters."""
        norms = self.norms[np.isfinite(self.norms)]  # without those of steps that float16 skipped
        has_fallen = self.last <= self.losses[0] - (1 - _HALF) * abs(self.losses[0])
        if self.failed_at or not has_fallen or not len(norms) or self.still:
            return False
        if norms[-max(1, len(norms) // 20) :].mean() > _FLAT * norms.max():
            return False
        return not (self.signs.dead or self.signs.constant or self.signs.without_gradient)

    @property
    def is_learned(self) -> bool:
        return self.is_near_zero or self.is_at_floor


def main(run: Run, overrides: Sequence[str], steps: int = STEPS) -> int:
    """Prints how the loss falls and a verdict; returns 1 if the batch is not learned, or proves nothing.

    Raises:
      UserError: the run has no single loss that could fall.
    """
    refuse_unsuited(run, "overfit")
    batch, rates = OneBatch(run.data), _rates(run, steps)
    print(f"One batch of {batch.batch_size}, {steps} steps, learning rates {rates[0]:.3g} … {max(rates):.3g}")
    print(f"  of the schedule of {run.total_steps:,} updates, passed through in them")
    trial = _train(run, batch, rates)
    for line in _shown(trial):
        print(line)
    labels = constant_labels(run.loss, run.model, batch.at(0), run.resolved.train.precision)
    mean = f" (mean of the last {trial.last_steps} steps)" if trial.last_steps > 1 else ""
    fell = f"the loss went from {trial.losses[0]:.6g} to {trial.last:.6g}{mean}"
    if labels:
        print(f"proves nothing: {fell}, but {', '.join(labels)} is the same in all examples of the batch.")
        print("  Look at make_data: are the examples shuffled, and is the label read from the right place?")
        return 1
    if trial.is_learned:
        near = (
            "a tenth of it at most" if trial.is_near_zero else "near its floor: half of it at most, with flat gradients"
        )
        print(f"learned: {fell}, {near}")
        return 0
    print(f"NOT learned: {fell}{f', and step {trial.failed_at} is not finite' if trial.failed_at else ''}")
    for line in [*_reasons(run, trial, batch, rates)] or [_nothing(rates)]:
        print(f"  {line}")
    return 1


def _rates(run: Run, steps: int) -> list[float]:
    """Returns the learning rates of the whole run at `steps` updates that are evenly apart."""
    (schedule,) = run.schedules.values()
    updates = [number * run.total_steps // steps for number in range(steps)]
    return [float(schedule(tf.constant(update, tf.int64))) for update in updates]


def _train(run: Run, batch: OneBatch, rates: Sequence[float]) -> Trial:
    """Trains a fresh run on the batch, a step for each rate."""
    fresh = fresh_run(run, rates, batch)
    block, trained = fresh.train_block, _trained(fresh)
    before = {path: value.numpy().tobytes() for path, value in trained.items()}
    rows: list[dict[str, float]] = []
    losses: list[float] = []
    failed_at = 0
    while len(rows) < len(rates) and not failed_at:
        done = block(min(block.block_steps, len(rates) - len(rows)))
        for index, row in enumerate(done.rows):
            numbers = done.layout.unpack(row)
            terms = [name for name in done.layout.terms if not is_penalty(name)]
            losses.append(sum(mean(numbers[term_key(name)]) for name in terms))
            rows.append(done.row(index))
        bad = [index for index, loss in enumerate(losses) if not np.isfinite(loss)]
        if done.is_halted or bad:
            failed_at = bad[0] + 1 if bad else len(rows)
    keep = slice(0, max(1, failed_at - 1) if failed_at else len(rows))
    return Trial(
        rows=rows[keep],
        losses=np.array(losses[keep]),
        norms=np.array([row["gradient_norm"] for row in rows[keep]]),
        failed_at=failed_at,
        still=[path for path, value in trained.items() if value.numpy().tobytes() == before[path]],
        block=block,
    )


def _trained(run: Run) -> dict[str, tf.Variable]:
    (optimizer,) = run.state.optimizers.values()
    return {path: paths.copies(variable)[0] for path, variable in optimizer.trained.items()}


def _shown(trial: Trial) -> Iterator[str]:
    """Yields some of the steps, with loss, rate and metrics."""
    count = len(trial.rows)
    for index in sorted({0, count - 1, *(count * line // _LINES for line in range(1, _LINES))}):
        rest = {name: value for name, value in trial.rows[index].items() if name not in _HIDDEN}
        row = {"loss": float(trial.losses[index]), **rest}
        yield f"  step {index + 1:>5}  " + "  ".join(f"{name} {value:.4g}" for name, value in row.items())


def _reasons(run: Run, trial: Trial, batch: OneBatch, rates: Sequence[float]) -> Iterator[str]:
    """Yields what is wrong, the likeliest first."""
    if not any(rates):
        yield f"the learning rate is 0 at each step. {advice(run, 1e-3)}, or find one by --mode=lr_find."
        return
    first, highest = trial.losses[0], trial.losses.max()
    if trial.failed_at or trial.last > first or highest > first + _RISE * abs(first):
        yield f"the loss rose to {highest:.6g}" + (", and further" if trial.failed_at else "")
        for factor in _LOWER:
            lower = _train(run, batch, [rate / factor for rate in rates])
            if lower.is_learned:
                hint = f"{advice(run, max(rates) / factor)}, or find one by --mode=lr_find."
                yield f"the learning rate is too high: 1/{factor} of it takes the loss to {lower.last:.6g}. {hint}"
                return
    yield from _signs(trial)
    if len(trial.losses) > 1 and trial.last < 0.9 * trial.losses[len(trial.losses) // 2]:
        yield f"the loss was still falling: more steps may help, e.g. --steps={4 * len(rates)}, or a higher rate"


def _nothing(rates: Sequence[float]) -> str:
    """Returns what to try where nothing is found that does not learn."""
    return (
        f"every layer and parameter learns, but not enough in {len(rates)} steps. Try more of them, e.g."
        f" --steps={4 * len(rates)}, or a higher learning rate; --mode=lr_find looks for one."
    )


def _signs(trial: Trial) -> Iterator[str]:
    """Yields what of the model does not learn."""
    signs = trial.signs
    if signs.dead:
        yield f"the outputs are 0 for every example of {_listed(signs.dead)}: with a ReLU before it, no gradient passes"
    if signs.constant:
        yield f"the outputs are the same for every example of {_listed(signs.constant)}: nothing of the input arrives"
    if signs.without_gradient:
        yield f"the gradient is exactly 0 of {_listed(signs.without_gradient)}"
    if trial.still:
        yield f"not moved: {_listed(trial.still)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

"""--mode=lr_find: finds a learning rate by the range test, in which the rate grows with each step.

    python launch.py --config=experiments/mnist_mlp.py --mode=lr_find --steps=200 --low=1e-7 --high=10

A fresh model trains on the real training data, with the step, the optimizer and the groups of the experiment; factors
of groups stay, the schedule does not count. From step to step the rate grows by the same factor. The loss is smoothed
by an exponential mean of 0.9, without the bias of its start. The test ends where the smoothed loss is above four times
its least value and above its first, or is not finite.

The suggestion is the rate at which the smoothed loss falls fastest, over 0.4 of a tenfold of the rate, up to its least
value; but at most a tenth of the rate at which the test ended. The test is that of Smith (Cyclical Learning Rates for
Training Neural Networks, 2015). A page with the curve goes to --out.

What a test finds depends on its steps in each tenfold of the rate. With fewer than 20 the rate has grown too far
before the mean of the losses shows what it does, and the suggestion is too high: fewer are refused.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from framework.errors import UserError
from framework.files import write_text
from framework.pages import charts, html
from framework.run.fresh import advice, fresh_run, refuse_unsuited
from framework.run.run import Run

STEPS, LOW, HIGH = 200, 1e-7, 10.0
_FEWEST = 20  # steps in each tenfold of the rate
_SMOOTHING, _DIVERGED, _SAFE = 0.9, 4.0, 10.0
_SIDE = 0.2  # a slope is taken over the steps around a step: on each side, up to 10^0.2 times the rate
_MOST_SKIPPED = 4  # times the steps: a test of which most steps are skipped ends
_ROUNDED = 1e-9  # a smaller fall is none; of the largest smoothed loss
_LINES = 10  # that show the loss over the rates
_SUFFIX = ".html"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a range test has found.

    Attributes:
      rates, smoothed: float64 [steps], up to the end of the test; losses: the same, of the batches as they were.
      ended: the rate at which the test ended because the loss diverged; None if it did not.
      steepest: the rate at which the smoothed loss falls fastest; None if it never falls.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    ended: float | None
    steepest: float | None

    @property
    def suggestion(self) -> float | None:
        """The rate to use; None if the loss never falls."""
        if self.steepest is None or self.ended is None:
            return self.steepest
        return min(self.steepest, self.ended / _SAFE)


def main(
    run: Run,
    overrides: Sequence[str],
    steps: int = STEPS,
    low: float = LOW,
    high: float = HIGH,
    out: str = "lr_find.html",
) -> int:
    """Prints the losses and the suggestion, writes the page; returns 1 if the loss falls at no rate.

    Raises:
      UserError: the rates or the page are no such, or the run is none that can be judged in this way.
    """
    refuse_unsuited(run, "lr_find")
    page = Path(out)
    if page.suffix != _SUFFIX:
        raise UserError(f"--out={out} is no page. Type e.g. --out=lr_find.html.")
    if not 0 < low < high < math.inf:
        raise UserError(f"--low={low:g} and --high={high:g} are no range. Type e.g. --low=1e-7 --high=10.")
    tenfolds = max(1.0, math.log10(high / low))
    if steps < (fewest := math.ceil(_FEWEST * tenfolds - 1e-9)):
        raise UserError(
            f"--steps={steps} are too few from --low={low:g} to --high={high:g}: the suggestion would be too high. A"
            f" range test takes at least {_FEWEST} steps in each tenfold of the rate. Type --steps={fewest}, or a"
            " narrower range."
        )
    rates = np.geomspace(low, high, steps)
    print(f"Learning rates from {low:g} to {high:g} in {steps} steps of the training data")
    found = judge(rates, losses_at(run, rates))
    for line in _lines(found):
        print(f"  {line}")
    try:
        write_text(page, _page(run, found))
    except OSError as error:
        raise UserError(
            f"--out={out} cannot be written: {error.strerror}. Type a file in a folder of yours."
        ) from error
    print(f"The picture is in {page}.")
    if found.suggestion is None:
        print("The loss falls at no rate. Look for what does not learn: --mode=overfit")
        return 1
    print(f"{advice(run, found.suggestion)}")
    return 0


def losses_at(run: Run, rates: np.ndarray) -> np.ndarray:
    """Returns the loss of each update of a fresh run, before the update by the rate; up to where training would end.

    A step whose gradients overflow float16 is skipped, and the next step has its rate: its loss is left out.

    Raises:
      UserError: a step of the experiment's own applies no update by the schedule.
    """
    fresh = fresh_run(run, rates.tolist())
    block = fresh.train_block
    losses: list[float] = []
    taken, skipped = 0, 0.0
    while len(losses) < len(rates) and taken < _MOST_SKIPPED * len(rates):
        done = block(min(block.block_steps, len(rates) - len(losses)))
        rows = [done.row(index) for index in range(len(done.rows))]
        taken += len(rows)
        for row in rows:
            if row["skipped"] == skipped or not math.isfinite(row["loss"]):
                losses.append(row["loss"])
            skipped = row["skipped"]
        if not any(row["gradient_norm"] for row in rows):
            raise UserError(
                f"--mode=lr_find: make_step of {run.experiment.path} does not call tools.apply, so no rate of the"
                " schedule is used and there is none to find."
            )
        if done.is_halted or judge(rates[: len(losses)], np.array(losses)).ended is not None:
            break
    # A block that halted at a loss which is finite has weights that are not: the next loss would be none.
    return np.array([*losses, math.nan] if done.is_halted and np.isfinite(losses).all() else losses)[: len(rates)]


def judge(rates: np.ndarray, losses: np.ndarray) -> Finding:
    """Returns what the losses at the first rates say.

    Args:
      rates: float64 [steps], each the same factor above the one before.
      losses: float64 [at most steps].
    """
    smoothed: list[float] = []
    mean, ended = 0.0, None
    for index, loss in enumerate(losses):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * float(loss)
        value = mean / (1 - _SMOOTHING ** (index + 1))
        if not math.isfinite(value) or (smoothed and value > max(_DIVERGED * min(smoothed), smoothed[0])):
            ended = float(rates[index])
            break
        smoothed.append(value)
    curve = np.array(smoothed)
    side = max(1, round(_SIDE / math.log10(rates[1] / rates[0]))) if len(rates) > 1 else 1
    # The first values are means of few losses: what falls there is noise.
    slopes = {
        index: curve[min(index + side, len(curve) - 1)] - curve[index - side]
        for index in range(min(2 * side, len(curve)), 1 + int(curve.argmin()) if len(curve) else 0)
    }
    best = min(slopes, key=lambda index: slopes[index], default=None)
    steepest = float(rates[best]) if best is not None and slopes[best] < -_ROUNDED * np.abs(curve).max() else None
    return Finding(rates[: len(curve)], losses[: len(curve)], curve, ended, steepest)


def _lines(found: Finding) -> Iterator[str]:
    """Yields some of the steps, and where the curve bends."""
    count = len(found.rates)
    for index in sorted({0, count - 1, *(count * line // _LINES for line in range(1, _LINES))} if count else ()):
        yield (
            f"step {index + 1:>5}  learning_rate {found.rates[index]:<9.3g}  loss {found.losses[index]:<10.4g}"
            f"  smoothed {found.smoothed[index]:.4g}"
        )
    yield "the loss did not diverge" if found.ended is None else f"the loss diverged at {found.ended:.3g}"
    if found.steepest is not None:
        yield f"it fell fastest at {found.steepest:.3g}"
    if found.suggestion is not None and found.suggestion != found.steepest:
        yield f"suggested is a tenth of the rate at which it diverged, {found.suggestion:.3g}"


def _page(run: Run, found: Finding) -> str:
    """Returns the page with the curve."""
    points = list(zip(found.rates.tolist(), found.smoothed.tolist(), strict=True))
    top, bottom = found.smoothed.max(initial=0.0), found.smoothed.min(initial=0.0)
    raw = [(rate, loss) for rate, loss in zip(found.rates.tolist(), found.losses.tolist(), strict=True) if loss <= top]
    series = [charts.Series("loss of each batch", [raw], is_pale=True), charts.Series("smoothed", [points])]
    if found.suggestion is not None:
        mark = [(found.suggestion, bottom), (found.suggestion, top)]
        series.append(charts.Series(f"suggested: {found.suggestion:.3g}", [mark]))
    if found.ended is not None:
        series.append(charts.Series(f"diverged: {found.ended:.3g}", [], lost=[found.ended], colour="#c00"))
    figure = charts.curves("loss over the learning rate", series, is_linear=True, over_decades=True)
    name = run.experiment.name
    words = "".join(f"<p>{html.safe(line)}</p>\n" for line in _lines(found) if not line.startswith("step "))
    body = f'<h1>{html.safe(name)}</h1>\n<div style="max-width: 50em">{figure}</div>\n{words}'
    return html.document(f"learning rates of {name}", body, charts.STYLE)

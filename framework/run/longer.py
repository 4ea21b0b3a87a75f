"""Training longer: the same command with another train.duration, if every update so far would have been the same.

    check(run)              # of a run just restored; UserError if the new duration would have changed the run so far

The learning rates of all updates so far must agree bit for bit, those of groups with an end of their own too, and so
must the periods of rows and evaluations, the turns of masks, the begin of clusters, and what Lookahead did. Saves
and histograms may come at other steps. An experiment may read its duration in make_schedule only.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict, FrozenConfigDict

from framework import config, optim
from framework.config import DURATIONS, flatten, typed
from framework.config.overrides import restored
from framework.data.bucketed import epoch_of
from framework.errors import UserError
from framework.experiment import load
from framework.experiment.returns import checked
from framework.optim import Schedule
from framework.run import stored_config
from framework.run.build import check_schedules
from framework.run.run import Run

_PERIODS = ("log.every", "eval.every")  # they decide what a run writes, beside its weights
_MASKS = ("prune.begin", "prune.end", "prune.every")
_CLUSTERS = ("cluster.begin",)
_RANGES = ("quantize.begin", "quantize.freeze")


def check(run: Run) -> None:
    """Raises UserError if the folder holds a run of another duration, and this run does not continue it exactly."""
    stored = stored_config.read(run.workdir)
    step = int(run.state.step)
    if stored is None or not step or not stored.is_longer(run.config):
        return
    before = config.locked(restored(run.config.copy_and_resolve_references().unlock(), stored.values))
    old = config.resolve(before, run.data.steps_per_epoch, epoch_of(run.data))
    what = f"train.duration={typed(run.config.train.duration)} instead of {typed(before.train.duration)}"
    elsewhere = f"Use another folder; there, --config.resume_from={run.workdir} continues this run."
    _refuse_ended(run, step, what, elsewhere)
    _refuse_readers(run, what, elsewhere)
    _refuse_other_periods(run, old, what)
    _refuse_other_slow_weights(run, old, what, elsewhere)
    _refuse_other_rates(run, old, what, elsewhere)


def _refuse_ended(run: Run, step: int, what: str, elsewhere: str) -> None:
    """Raises UserError if there is nothing left to train."""
    if run.total_steps <= step:
        raise UserError(f"{what} ends at step {run.total_steps}, but {run.workdir} is at step {step} already.")
    stopping = run.resolved.early_stopping
    if stopping.metric and int(run.state.early.waited) >= stopping.patience:
        raise UserError(
            f"{what} trains nothing: the run stopped early at step {step} (early_stopping.patience="
            f"{stopping.patience}). {elsewhere}"
        )


def _refuse_readers(run: Run, what: str, elsewhere: str) -> None:
    """Raises UserError if a function of the experiment reads the duration that no comparison here covers."""
    for function in load.readers(run.experiment.path, "train", "duration"):
        if function not in ("get_config", "check_config", "make_schedule"):
            raise UserError(
                f"{what}: {function} of {run.experiment.path} reads cfg.train.duration, so the steps so far may have"
                f" been different. {elsewhere}"
            )


def _refuse_other_periods(run: Run, old: FrozenConfigDict, what: str) -> None:
    """Raises UserError if rows, evaluations, masks, clusters or rounding would come at other steps than under `old`."""
    was, now = _flat(old), _flat(run.resolved)
    masks = _MASKS if run.state.prune is not None and run.resolved.prune.schedule != "keep" else ()
    clusters = _CLUSTERS if run.state.cluster is not None else ()
    ranges = _RANGES if run.state.quantize is not None else ()
    for key in (*_PERIODS, *masks, *clusters, *ranges):
        if was[key] != now[key]:
            raise UserError(
                f"{what} changes {key} from {was[key]} to {now[key]} steps. Type --config.{key}='{was[key]} steps' too."
            )


def _refuse_other_slow_weights(run: Run, old: FrozenConfigDict, what: str, elsewhere: str) -> None:
    """Raises UserError if Lookahead would have moved the weights in another way under the config `old`."""
    if run.state.lookahead is None:
        return
    power, step = run.resolved.lookahead.power, int(run.state.step)
    if power and int(run.state.updates):
        raise UserError(
            f"{what} changes how far Lookahead moved the slow weights so far: by a share of the whole duration to the"
            f" power of lookahead.power={power:g}. {elsewhere}"
        )
    if step >= old.train.duration:
        raise UserError(
            f"{what}: at step {step}, the last of the shorter run, Lookahead replaced the weights by the slow ones."
            f" {elsewhere}"
        )


def _refuse_other_rates(run: Run, old: FrozenConfigDict, what: str, elsewhere: str) -> None:
    """Raises UserError if an update so far had another learning rate under the config `old`."""
    updates = int(run.state.updates)
    if run.state.schedule is not None:
        raise UserError(
            f"{what}: the learning rate follows evaluations (make_schedule returned a schedule with variables), and a"
            f" longer run need not have one at step {int(run.state.step)}. {elsewhere}"
        )
    make_schedule = checked(run.experiment.functions).get("make_schedule", optim.make_schedule)
    returned = make_schedule(old, old.train.duration)
    earlier = check_schedules(returned, run.model, old.train.duration)
    for name, schedule in run.schedules.items():
        own = "" if name == "model" else f" of {name}"
        for whose, was, now in ((own, earlier[name], schedule), *_of_groups(run, old, earlier[name], schedule)):
            update = first_difference(was, now, updates)
            if update is None:
                continue
            rates = [float(rate(tf.constant(update, tf.int64))) for rate in (was, now)]
            raise UserError(
                f"{what} changes the learning rate of update {update}{whose}"
                f" from {rates[0]!r} to {rates[1]!r}, and {updates} updates are made.{_hint(run, old)} {elsewhere}"
            )


def _of_groups(
    run: Run, old: FrozenConfigDict, earlier: Schedule, schedule: Schedule
) -> Iterator[tuple[str, Schedule, Schedule]]:
    """Yields whose schedules they are, then and now, of each group of parameters that ends before the run does."""
    groups = zip(
        optim.parse_groups(old.optimizer.groups), optim.parse_groups(run.resolved.optimizer.groups), strict=True
    )
    for was, now in groups:
        if was.until:
            yield (
                f" of optimizer.groups '{now.pattern}'",
                optim.shortened(earlier, was, old.train.duration),
                optim.shortened(schedule, now, run.resolved.train.duration),
            )


def _hint(run: Run, old: FrozenConfigDict) -> str:
    """Returns a sentence with the durations of the schedule that must be typed in steps to stay what they were."""
    was, now = _flat(old), _flat(run.resolved)
    kept = [key for key in DURATIONS if key.startswith("schedule.") and was[key] != now[key]]
    typed = " ".join(f"--config.{key}='{was[key]} steps'" for key in kept)
    return f" If nothing else changes it, type {typed} too." if typed else ""


def _flat(resolved: FrozenConfigDict) -> dict[str, Any]:
    return flatten(ConfigDict(resolved.to_dict()))


def first_difference(before: Schedule, after: Schedule, updates: int) -> int | None:
    """Returns the first update below `updates` whose rate differs between two schedules, in any bit; or None."""

    def bits(schedule: Schedule, update: tf.Tensor) -> tf.Tensor:
        return tf.bitcast(tf.cast(schedule(update), tf.float64), tf.int64)

    @tf.function(autograph=False)
    def search(end: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def body(update: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return update + 1, tf.not_equal(bits(before, update), bits(after, update))

        start = tf.constant(0, tf.int64), tf.constant(False)
        return tf.while_loop(lambda u, differs: (u < end) & ~differs, body, start, parallel_iterations=1)

    passed, differs = search(tf.constant(updates, tf.int64))
    return int(passed) - 1 if bool(differs) else None

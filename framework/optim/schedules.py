"""Learning-rate schedules: pure functions of the update.

    schedule = make_schedule(config, total_steps)     # schedule(469) -> float64 scalar
    rate = learning_rate(schedule, updates, tf.float32)

Rates are computed in float64 and cast once, to the precision of the run.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework.errors import UserError

# update (int or int64 scalar, 0 for the first) -> learning rate (float64 scalar)
Schedule = Callable[[Any], tf.Tensor]

# Where cosines meet may be a whole update up to rounding; this much of an update later is surely past it.
_ROUNDING = 1e-6


def make_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """The schedule of `config.schedule` with its warm-up.

    Args:
      config: as `config.resolve` returns it: durations are numbers of updates, 0 for none.
      total_steps: length of the run; where cosine, polynomial and one_cycle end.

    Raises:
      UserError: a schedule without a length that it needs.
    """
    settings = config.schedule
    peak, warmup, start = settings.learning_rate, settings.warmup, settings.start_fraction
    if settings.name == "one_cycle":
        return one_cycle(peak, warmup, total_steps, start, settings.final_fraction)
    after = _after_warmup(settings, total_steps - warmup)
    return warmed_up(after, peak, warmup, start) if warmup else after


def _after_warmup(settings: ConfigDict, steps: int) -> Schedule:
    """The schedule by name; its update 0 is the first after the warm-up, its end `steps` later."""
    peak = settings.learning_rate
    if settings.name == "constant":
        return constant(peak)
    if settings.name == "cosine":
        return cosine(peak, steps, settings.final_fraction)
    if settings.name == "piecewise":
        return piecewise(peak, [boundary - settings.warmup for boundary in settings.boundaries], settings.factors)
    if settings.name == "polynomial":
        return polynomial(peak, steps, settings.power, settings.final_fraction)
    if settings.name == "restarts":
        if not settings.period:
            raise UserError(
                "schedule.name='restarts' needs schedule.period, the length of the first cosine."
                " Type e.g. --config.schedule.period='1 epoch'."
            )
        return restarts(peak, settings.period, settings.period_factor, settings.peak_factor, settings.final_fraction)
    timescale = settings.timescale or settings.warmup
    if not timescale:
        raise UserError(
            "schedule.name='inverse_sqrt' needs schedule.timescale or schedule.warmup."
            " Type e.g. --config.schedule.warmup='1 epoch'."
        )
    return inverse_sqrt(peak, timescale)


def constant(peak: float) -> Schedule:
    """The same rate at every update."""
    return lambda update: tf.constant(peak, tf.float64)


def cosine(peak: float, steps: int, final_fraction: float = 0.0) -> Schedule:
    """Half a cosine from the peak to `final_fraction` of it, constant afterwards (Loshchilov and Hutter, 2017)."""

    def schedule(update: Any) -> tf.Tensor:
        return peak * ((1 - final_fraction) * _half_cosine(_done(update, steps)) + final_fraction)

    return schedule


def polynomial(peak: float, steps: int, power: float = 1.0, final_fraction: float = 0.0) -> Schedule:
    """From the peak to `final_fraction` of it as (1 - share of `steps` done) ** power, constant afterwards."""

    def schedule(update: Any) -> tf.Tensor:
        # Not 1 - done, which XLA rounds to less than 0 at the end, where its power is NaN.
        left = tf.maximum(steps - tf.cast(update, tf.float64), 0) / steps
        return peak * ((1 - final_fraction) * tf.pow(left, tf.constant(power, tf.float64)) + final_fraction)

    return schedule


def restarts(
    peak: float, period: int, period_factor: float = 1.0, peak_factor: float = 1.0, final_fraction: float = 0.0
) -> Schedule:
    """Half cosines one after the other, for as long as the run lasts (SGDR: Loshchilov and Hutter, 2017).

    Cosine i takes `period * period_factor**i` updates and falls from `peak * peak_factor**i`; as in tf_keras,
    `final_fraction` is of the first peak.
    """
    growth = math.log(period_factor)

    def schedule(update: Any) -> tf.Tensor:
        update = tf.cast(update, tf.float64)
        # The sum of the first i lengths is period * (period_factor**i - 1) / (period_factor - 1).
        if growth:
            index = tf.floor(tf.math.log1p((update + _ROUNDING) / period * (period_factor - 1)) / growth)
            first = period * tf.math.expm1(index * growth) / (period_factor - 1)
        else:
            index = tf.floor((update + _ROUNDING) / period)
            first = period * index
        done = tf.maximum(update - first, 0) / (period * tf.exp(index * growth))
        height = tf.pow(tf.constant(peak_factor, tf.float64), index)
        return peak * ((1 - final_fraction) * height * _half_cosine(done) + final_fraction)

    return schedule


def inverse_sqrt(peak: float, timescale: int) -> Schedule:
    """peak * sqrt(t / (t + update)); after a warm-up of t from 0 it is Noam's schedule (Vaswani et al., 2017)."""
    return lambda update: peak * tf.sqrt(timescale / (timescale + tf.cast(update, tf.float64)))


def one_cycle(
    peak: float, warmup: int, steps: int, start_fraction: float = 0.0, final_fraction: float = 0.0
) -> Schedule:
    """Half a cosine up over `warmup` updates, half a cosine down over the rest of `steps` (Smith and Topin, 2018)."""
    down = cosine(peak, steps - warmup, final_fraction)
    if not warmup:
        return down

    def schedule(update: Any) -> tf.Tensor:
        update = tf.cast(update, tf.int64)
        rising = peak * (1 - (1 - start_fraction) * _half_cosine(_done(update, warmup)))
        return tf.where(update < warmup, rising, down(tf.maximum(update - warmup, 0)))

    return schedule


def piecewise(peak: float, boundaries: Sequence[int], factors: Sequence[float]) -> Schedule:
    """`peak`, then `peak * factors[i]` from the update after `boundaries[i]` on, as in tf_keras."""

    def schedule(update: Any) -> tf.Tensor:
        rates = tf.constant([peak, *(peak * factor for factor in factors)], tf.float64)
        passed = tf.cast(update, tf.int64) > tf.constant(boundaries, tf.int64)
        return tf.gather(rates, tf.reduce_sum(tf.cast(passed, tf.int32)))

    return schedule


def warmed_up(after: Schedule, peak: float, steps: int, start_fraction: float = 0.0) -> Schedule:
    """Linear from `start_fraction * peak` to `peak` over `steps` updates, then `after`, counted from there."""

    def schedule(update: Any) -> tf.Tensor:
        update = tf.cast(update, tf.int64)
        rising = peak * (start_fraction + (1 - start_fraction) * _done(update, steps))
        return tf.where(update < steps, rising, after(tf.maximum(update - steps, 0)))

    return schedule


def _done(update: Any, steps: int) -> tf.Tensor:
    """Share of `steps` that is done before `update`, at most 1."""
    return tf.minimum(tf.cast(update, tf.float64), steps) / steps


def _half_cosine(done: tf.Tensor) -> tf.Tensor:
    """From 1 at done=0 to 0 at done=1."""
    return 0.5 * (1 + tf.cos(math.pi * done))


def learning_rate(
    schedule: Schedule, updates: tf.Variable, dtype: tf.DType, factor: float = 1.0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """`factor` times `schedule` in the form that tf_keras optimizers take.

    Args:
      schedule: of the run.
      updates: int64 scalar; updates of the run, which the rate follows. An optimizer that is applied at some of them
        only, or twice in one, counts otherwise.
      dtype: of the rate.
      factor: of the group of parameters.
    """
    return _KerasSchedule(schedule, updates, dtype, factor)


class _KerasSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule: Schedule, updates: tf.Variable, dtype: tf.DType, factor: float) -> None:
        self._schedule, self._updates, self._dtype, self._factor = schedule, updates, dtype, factor

    def __call__(self, step: Any) -> tf.Tensor:
        return tf.cast(self._schedule(self._updates) * self._factor, self._dtype)

    def get_config(self) -> dict[str, Any]:
        raise TypeError("a schedule is rebuilt from its config, not serialized")

"""Learning-rate schedules: pure functions of the update, and `ReduceOnPlateau`, which observes evaluations.

    schedule = make_schedule(config, total_steps)     # schedule(469) -> float64 scalar
    rate = learning_rate(schedule, updates, tf.float32)

Rates are computed in float64 and cast once, to the precision of the run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import paths
from framework.errors import UserError, near

# update (int or int64 scalar, 0 for the first) -> learning rate (float64 scalar)
Schedule = Callable[[Any], tf.Tensor]

# Two cosines may meet at a whole update, up to rounding; this much of an update later is surely in the second.
_ROUNDING = 1e-6


def make_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """Returns the schedule of `config.schedule` with its warm-up.

    Args:
      config: as `config.resolve` returns it: durations are numbers of updates, 0 for none.
      total_steps: length of the run, at which cosine, polynomial and one_cycle end.

    Raises:
      UserError: the schedule needs a length that is not set.
    """
    settings = config.schedule
    peak, warmup, start = settings.learning_rate, settings.warmup, settings.start_fraction
    if settings.name == "one_cycle":
        return one_cycle(peak, warmup, total_steps, start, settings.final_fraction)
    after = _after_warmup(settings, total_steps - warmup)
    return warmed_up(after, peak, warmup, start) if warmup else after


def _after_warmup(settings: ConfigDict, steps: int) -> Schedule:
    """Returns the schedule after the warm-up: its update 0 is the first one there, its end is `steps` later."""
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
    """Returns the schedule with the same rate at every update."""
    return lambda update: tf.constant(peak, tf.float64)


def cosine(peak: float, steps: int, final_fraction: float = 0.0) -> Schedule:
    """Returns half a cosine from the peak to `final_fraction` of it, then constant (Loshchilov and Hutter, 2017)."""

    def schedule(update: Any) -> tf.Tensor:
        return peak * ((1 - final_fraction) * _half_cosine(_done(update, steps)) + final_fraction)

    return schedule


def polynomial(peak: float, steps: int, power: float = 1.0, final_fraction: float = 0.0) -> Schedule:
    """Returns a fall from the peak to `final_fraction` of it as (1 - share of `steps` done) ** power, then constant."""

    def schedule(update: Any) -> tf.Tensor:
        # Not 1 - done, which XLA rounds to less than 0 at the end, where its power is NaN.
        left = tf.maximum(steps - tf.cast(update, tf.float64), 0) / steps
        return peak * ((1 - final_fraction) * tf.pow(left, tf.constant(power, tf.float64)) + final_fraction)

    return schedule


def restarts(
    peak: float, period: int, period_factor: float = 1.0, peak_factor: float = 1.0, final_fraction: float = 0.0
) -> Schedule:
    """Returns half cosines one after the other, to the end of the run (SGDR: Loshchilov and Hutter, 2017).

    Cosine i takes `period * period_factor**i` updates and falls from `peak * peak_factor**i`; `final_fraction` is a
    share of the first peak, as in tf_keras.
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
    """Returns peak * sqrt(t / (t + update)); after a warm-up of t from 0, Noam's schedule (Vaswani et al., 2017)."""
    return lambda update: peak * tf.sqrt(timescale / (timescale + tf.cast(update, tf.float64)))


def one_cycle(
    peak: float, warmup: int, steps: int, start_fraction: float = 0.0, final_fraction: float = 0.0
) -> Schedule:
    """Returns half a cosine up over `warmup` updates, one down over the rest of `steps` (Smith and Topin, 2018)."""
    down = cosine(peak, steps - warmup, final_fraction)
    if not warmup:
        return down

    def schedule(update: Any) -> tf.Tensor:
        update = tf.cast(update, tf.int64)
        rising = peak * (1 - (1 - start_fraction) * _half_cosine(_done(update, warmup)))
        return tf.where(update < warmup, rising, down(tf.maximum(update - warmup, 0)))

    return schedule


def piecewise(peak: float, boundaries: Sequence[int], factors: Sequence[float]) -> Schedule:
    """Returns `peak`, then `peak * factors[i]` from the update after `boundaries[i]` on, as in tf_keras."""

    def schedule(update: Any) -> tf.Tensor:
        rates = tf.constant([peak, *(peak * factor for factor in factors)], tf.float64)
        passed = tf.cast(update, tf.int64) > tf.constant(boundaries, tf.int64)
        return tf.gather(rates, tf.reduce_sum(tf.cast(passed, tf.int32)))

    return schedule


def warmed_up(after: Schedule, peak: float, steps: int, start_fraction: float = 0.0) -> Schedule:
    """Returns a line from `start_fraction * peak` to `peak` over `steps` updates, then `after`, counted from there."""

    def schedule(update: Any) -> tf.Tensor:
        update = tf.cast(update, tf.int64)
        rising = peak * (start_fraction + (1 - start_fraction) * _done(update, steps))
        return tf.where(update < steps, rising, after(tf.maximum(update - steps, 0)))

    return schedule


def compressed(schedule: Schedule, steps: int, total: int) -> Schedule:
    """Returns a schedule that passes through the `total` updates of `schedule` in `steps` updates, and then is 0."""

    def fast(update: Any) -> tf.Tensor:
        update = tf.cast(update, tf.int64)
        rate = tf.convert_to_tensor(schedule(tf.minimum(update, steps - 1) * total // steps))
        return tf.where(update < steps, rate, tf.zeros([], rate.dtype))

    return fast


class ReduceOnPlateau(tf.Module):
    """Multiplies the rate by `factor` each time that `patience` evaluations in a row have not been better.

        def make_schedule(cfg, total_steps):
            return optim.ReduceOnPlateau(optim.make_schedule(cfg, total_steps), "test/loss", patience=5)

    The rate is scale * schedule(update), where the scale begins at 1; below `min_rate` it stays what it was. Better is
    smaller for losses, and as the metric says for metrics. A value that is not finite is never better.

    Args:
      schedule: the rate without reductions.
      metric: of an evaluation, '<split>/<metric>'.
      factor: above 0 and below 1.
      patience: evaluations, at least 1.
      min_rate: reductions end at this rate; a smaller rate of `schedule` itself stays.
      min_delta: a value is better if it gains more than this.

    Attributes:
      scale: float64 scalar variable.
      best: float64 scalar variable, the best value so far; NaN before the first.
      waited: int64 scalar variable, evaluations since the best or since the last reduction.
    """

    def __init__(
        self,
        schedule: Schedule,
        metric: str,
        factor: float = 0.1,
        patience: int = 10,
        min_rate: float = 0.0,
        min_delta: float = 0.0,
    ) -> None:
        super().__init__()
        if hasattr(schedule, "observe"):
            raise UserError(f"ReduceOnPlateau({type(schedule).__name__}): the schedule in it would observe nothing.")
        for name, value, is_right, wanted in (
            ("factor", factor, 0 < factor < 1, "above 0 and below 1"),
            ("patience", patience, patience >= 1, "at least 1"),
            ("min_rate", min_rate, min_rate >= 0, "at least 0"),
            ("min_delta", min_delta, min_delta >= 0, "at least 0"),
        ):
            if not is_right:
                raise UserError(f"ReduceOnPlateau({name}={value!r}): {name} must be {wanted}.")
        self._schedule, self._metric = schedule, metric
        self._factor, self._patience, self._min_rate, self._min_delta = factor, patience, min_rate, min_delta
        self._mode = ""
        self.scale = tf.Variable(1.0, trainable=False, dtype=tf.float64)
        self.best = tf.Variable(math.nan, trainable=False, dtype=tf.float64)
        self.waited = tf.Variable(0, trainable=False, dtype=tf.int64)

    def __call__(self, update: Any) -> tf.Tensor:
        rate = self._schedule(update)
        rate = tf.cast(rate, tf.float64) if tf.is_tensor(rate) else tf.constant(rate, tf.float64)
        return tf.minimum(rate, tf.maximum(self.scale * rate, tf.constant(self._min_rate, tf.float64)))

    def prepare(self, modes: Mapping[str, str]) -> None:
        """Takes from {metric: 'min' or 'max'} which values are better; raises UserError if the metric is not in it."""
        if self._metric not in modes:
            raise UserError(
                f"ReduceOnPlateau(metric='{self._metric}'): no evaluation reports it.{near(self._metric, modes)}"
                f" Evaluated: {', '.join(modes)}."
            )
        self._mode = modes[self._metric]

    def observe(self, results: Mapping[str, float]) -> None:
        """Takes the results of an evaluation, {'<split>/<metric>': value}."""
        value, best = results[self._metric], float(paths.copies(self.best)[0])
        gain = value - best if self._mode == "max" else best - value
        if math.isfinite(value) and (math.isnan(best) or gain > self._min_delta):
            paths.assign(self.best, value)
            paths.assign(self.waited, 0)
            return
        waited = int(paths.copies(self.waited)[0]) + 1
        if waited == self._patience:
            paths.assign(self.scale, float(paths.copies(self.scale)[0]) * self._factor)
        paths.assign(self.waited, waited % self._patience)


def _done(update: Any, steps: int) -> tf.Tensor:
    """Returns the share of `steps` that is done before `update`, at most 1."""
    return tf.minimum(tf.cast(update, tf.float64), steps) / steps


def _half_cosine(done: tf.Tensor) -> tf.Tensor:
    """Returns 1 at done=0, falling to 0 at done=1."""
    return 0.5 * (1 + tf.cos(math.pi * done))


def learning_rate(
    schedule: Schedule, updates: tf.Variable, dtype: tf.DType, factor: float = 1.0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns `factor` times `schedule` in the form that tf_keras optimizers take.

    Args:
      schedule: of the run.
      updates: int64 scalar, the updates of the run. The rate follows them, not the counter of the optimizer, which
        counts otherwise if the optimizer is applied at some updates only, or twice in one.
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

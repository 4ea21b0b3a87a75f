"""Learning-rate schedules, pure functions of the update, and the optimizers they drive.

    schedule = make_schedule(config, total_steps)     # schedule(469) -> float64 scalar
    optimizer = make_optimizer(config, learning_rate(schedule, tf.float32))

Rates are computed in float64 and cast once, to the precision of the run.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

# update (int or int64 scalar, 0 for the first) -> learning rate (float64 scalar)
Schedule = Callable[[Any], tf.Tensor]


def make_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """The schedule of `config.schedule`, resolved to steps, with its linear warm-up.

    Args:
      config: as `config.resolve` returns it.
      total_steps: length of the run; where a cosine ends.
    """
    settings = config.schedule
    if settings.name == "constant":
        after = constant(settings.learning_rate)
    elif settings.name == "cosine":
        after = cosine(settings.learning_rate, total_steps - settings.warmup, settings.final_fraction)
    else:
        boundaries = [boundary - settings.warmup for boundary in settings.boundaries]
        after = piecewise(settings.learning_rate, boundaries, settings.factors)
    return warmed_up(after, settings.learning_rate, settings.warmup) if settings.warmup else after


def constant(learning_rate: float) -> Schedule:
    """The same rate at every update."""
    return lambda update: tf.constant(learning_rate, tf.float64)


def cosine(learning_rate: float, steps: int, final_fraction: float = 0.0) -> Schedule:
    """Half a cosine from the peak to `final_fraction` of it, constant afterwards (Loshchilov and Hutter, 2017)."""

    def schedule(update: Any) -> tf.Tensor:
        done = tf.minimum(tf.cast(update, tf.float64), steps) / steps
        share = 0.5 * (1 + tf.cos(math.pi * done))
        return learning_rate * ((1 - final_fraction) * share + final_fraction)

    return schedule


def piecewise(learning_rate: float, boundaries: Any, factors: Any) -> Schedule:
    """`learning_rate`, then `learning_rate * factors[i]` from the update after `boundaries[i]` on, as in tf_keras."""

    def schedule(update: Any) -> tf.Tensor:
        rates = tf.constant([learning_rate, *(learning_rate * factor for factor in factors)], tf.float64)
        passed = tf.cast(update, tf.int64) > tf.constant([int(boundary) for boundary in boundaries], tf.int64)
        return tf.gather(rates, tf.reduce_sum(tf.cast(passed, tf.int32)))

    return schedule


def warmed_up(after: Schedule, learning_rate: float, steps: int) -> Schedule:
    """Linear from 0 to `learning_rate` over `steps` updates, then `after`, counted from there."""

    def schedule(update: Any) -> tf.Tensor:
        update = tf.cast(update, tf.int64)
        rising = learning_rate * tf.cast(update, tf.float64) / steps
        return tf.where(update < steps, rising, after(tf.maximum(update - steps, 0)))

    return schedule


def learning_rate(schedule: Schedule, dtype: tf.DType) -> keras.optimizers.schedules.LearningRateSchedule:
    """`schedule` in the form that tf_keras optimizers take, cast to `dtype`."""
    return _KerasSchedule(schedule, dtype)


class _KerasSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule: Schedule, dtype: tf.DType) -> None:
        self._schedule, self._dtype = schedule, dtype

    def __call__(self, step: Any) -> tf.Tensor:
        return tf.cast(self._schedule(step), self._dtype)

    def get_config(self) -> dict[str, Any]:
        raise TypeError("a schedule is rebuilt from its config, not serialized")


def make_optimizer(
    config: ConfigDict, learning_rate: keras.optimizers.schedules.LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """The tf_keras optimizer of `config.optimizer`."""
    settings = config.optimizer
    # tf_keras turns a Python float into a float32 before it casts it; a NumPy float64 keeps its value.
    number = np.float64 if config.train.precision == "float64" else float
    # tf_keras would compile its own update; ours is part of a compiled step already.
    common = {"learning_rate": learning_rate, "jit_compile": False}
    if settings.name == "sgd":
        return keras.optimizers.SGD(momentum=number(settings.momentum), nesterov=settings.nesterov, **common)
    moments = {name: number(settings[name]) for name in ("beta_1", "beta_2", "epsilon")}
    if settings.name == "adam":
        return keras.optimizers.Adam(**moments, **common)
    return keras.optimizers.AdamW(weight_decay=number(settings.weight_decay), **moments, **common)

"""Checks an experiment's schedule before the first step.

    schedules = {name: checked_schedule(schedule, total_steps, name) for name, schedule in schedules.items()}

A schedule may return a Python number, a NumPy number or a scalar tensor; anything else is refused in one line.
"""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.experiment import user_code
from framework.experiment.returns import shown
from framework.optim.schedules import Schedule
from framework.trace.assigned import assigned

_CLOSE = 1e-5  # of a rate computed again, relative
_SHARES = (1, 2, 5, 10, 25, 50, 75, 90)  # of a run, in percent: updates at which the rate is computed at the start


def checked_schedule(schedule: Schedule, total_steps: int, name: str = "model") -> Schedule:
    """Returns a schedule with the rates of `schedule` as scalar tensors, whatever kind of number `schedule` returns.

    Args:
      schedule: update, an int64 scalar -> learning rate; it is traced once, and computed at some updates of the run.
      total_steps: length of the run.
      name: of the model, for errors.

    Raises:
      UserError: the schedule cannot be traced, assigns a variable, returns no scalar number, a rate that is not finite
        or below 0, or another rate each time.
    """
    of = "the schedule" if name == "model" else f"the schedule of '{name}'"

    def rate(update: Any) -> tf.Tensor:
        return _scalar(schedule(update), of)

    with user_code.explained():
        traced = tf.function(rate, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int64))
    if moved := assigned(traced.graph, schedule) if isinstance(schedule, tf.Module) else ():
        raise UserError(
            f"{of} assigns its variable '{moved[0].name}' as it is called. A step reads the variables of a schedule;"
            " assign them in observe(results), which is called after each evaluation."
        )
    for update in sampled_updates(total_steps):
        value = float(traced(tf.constant(update, tf.int64)))
        if not 0 <= value < math.inf:
            raise UserError(
                f"{of} gives a learning rate of {value:g} at update {update} of {total_steps}."
                " A rate is a finite number of at least 0: mend make_schedule."
            )
        if abs(float(rate(tf.constant(update, tf.int64))) - value) > _CLOSE * value:
            raise UserError(
                f"{of} is not a function of the update: called again with {update}, it gives another learning rate."
                " A compiled step runs its Python once, when it is traced: compute the rate from the update alone."
            )
    return rate


def sampled_updates(total_steps: int) -> list[int]:
    """Returns updates, from 0, at which to look at a schedule: the first, the last and some between."""
    return sorted({0, min(1, total_steps - 1), *(total_steps * share // 100 for share in _SHARES), total_steps - 1})


def _scalar(value: Any, of: str) -> tf.Tensor:
    """Returns a rate as a floating scalar; a floating tensor is returned as it is."""
    wanted = "It must return a number, the learning rate: a float or a scalar tensor."
    if not tf.is_tensor(value):
        if not isinstance(value, int | float | np.number | np.ndarray):
            raise UserError(f"{of} returned {shown(value)}. {wanted}")
        value = tf.convert_to_tensor(value, None if isinstance(value, np.number | np.ndarray) else tf.float64)
    if value.shape.rank != 0:
        raise UserError(f"{of} returned a value of shape {value.shape}. {wanted}")
    return value if value.dtype.is_floating else tf.cast(value, tf.float64)

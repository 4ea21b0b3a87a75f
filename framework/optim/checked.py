"""What an experiment's schedule returns, looked at before the first step.

    schedules = {name: checked_schedule(schedule, total_steps, name) for name, schedule in schedules.items()}

A rate may be a Python or NumPy number or a scalar tensor. What else a schedule does is told in one line at the start.
"""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.experiment import user_code
from framework.experiment.returns import shown
from framework.optim.schedules import Schedule

_CLOSE = 1e-5  # of a rate computed again, relative
_SHARES = (1, 2, 5, 10, 25, 50, 75, 90)  # of a run, in percent: updates at which the rate is computed at the start


def checked_schedule(schedule: Schedule, total_steps: int, name: str = "model") -> Schedule:
    """`schedule`, whose rates are scalar tensors whatever kind of number it returns.

    Args:
      schedule: update, an int64 scalar -> learning rate; traced once, and computed at some updates of the run.
      total_steps: length of the run.
      name: of the model that it is of, for errors.

    Raises:
      UserError: it cannot be traced, a rate is no scalar number, not finite or below 0, or it is another each time.
    """
    of = "the schedule" if name == "model" else f"the schedule of '{name}'"

    def rate(update: Any) -> tf.Tensor:
        return _scalar(schedule(update), of)

    with user_code.explained():
        traced = tf.function(rate, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int64))
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
    """Updates, from 0, at which a schedule over so many steps is looked at: the first, the last and some between."""
    return sorted({0, min(1, total_steps - 1), *(total_steps * share // 100 for share in _SHARES), total_steps - 1})


def _scalar(value: Any, of: str) -> tf.Tensor:
    """A rate as a floating scalar; a floating tensor is left as it is."""
    wanted = "It must return a number, the learning rate: a float or a scalar tensor."
    if not tf.is_tensor(value):
        if not isinstance(value, int | float | np.number | np.ndarray):
            raise UserError(f"{of} returned {shown(value)}. {wanted}")
        value = tf.convert_to_tensor(value, None if isinstance(value, np.number | np.ndarray) else tf.float64)
    if value.shape.rank != 0:
        raise UserError(f"{of} returned a value of shape {value.shape}. {wanted}")
    return value if value.dtype.is_floating else tf.cast(value, tf.float64)

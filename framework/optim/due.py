"""Changes variables when that is due, at next to no cost in the steps in which it is not.

    if_due(tf.equal(updates % 100, 0), lambda: mask.assign(made()))

A conditional has a cost in each step. The executor of a graph passes over every operation of a branch that is not
taken, and XLA copies the variables that a branch may change.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def if_due(is_due: tf.Tensor, change: Callable[[], Any], is_masked: bool) -> None:
    """Calls a function that changes variables if `is_due`, a bool scalar.

    Args:
      is_masked: the step is an XLA program, see `Optimizer.apply`. Then the condition is a loop of one turn or none,
        which changes variables in place.
    """
    if is_masked:
        tf.while_loop(lambda goes_on: goes_on, lambda goes_on: (_done(change),), (is_due,))
    else:
        tf.cond(is_due, rarely(change), nothing)


def rarely(change: Callable[[], Any]) -> Callable[[], tf.Tensor]:
    """Returns a branch of a conditional that calls `change`; of one operation, whatever it has inside."""

    def branch() -> tf.Tensor:
        return _done(change)

    if tf.executing_eagerly():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def nothing() -> tf.Tensor:
    """Is a branch of a conditional that changes nothing."""
    return tf.constant(False)


def _done(change: Callable[[], Any]) -> tf.Tensor:
    change()
    return tf.constant(False)

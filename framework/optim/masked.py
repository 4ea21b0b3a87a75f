"""Writes a variable or leaves it, as a tensor says: how an optimizer that `is_maskable` leaves out a step.

assign_if(variable, value, allowed)
"""

import tensorflow as tf


def assign_if(variable: tf.Variable, value: tf.Tensor, allowed: tf.Tensor | None) -> None:
    """Assigns `value` if `allowed`, a bool scalar, is None or True; else writes what is there already."""
    variable.assign(value if allowed is None else tf.where(allowed, value, variable))

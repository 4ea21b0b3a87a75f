"""The scopes in which a step is traced."""

import contextlib
from typing import Any

import tensorflow as tf

from framework import precision, rng


def scopes(precision_name: str, key: Any, step: tf.Tensor) -> Any:
    """Returns the precision and randomness scopes of one step, as one context.

    Args:
      precision_name: config.train.precision.
      key: of the run, see `rng.key`.
      step: int64 scalar; the step counter.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(precision.scope(precision_name))
    stack.enter_context(rng.scope(key, step))
    return stack

"""How an update is written, or not: a conditional around it, or a choice inside it."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from framework.distribute.replicas import Replicas
from framework.optim import Optimizer


def apply_if(
    condition: tf.Tensor, optimizer: Optimizer, gradients: Mapping[str, Any], replicas: Replicas, is_masked: bool
) -> None:
    """Applies gradients on every replica if `condition` holds, else leaves weights and slots as they are.

    Args:
      condition: bool scalar.
      is_masked: choose between new and old weights in the pass over them, if the optimizer can, instead of around it.
    """
    if is_masked and optimizer.is_maskable:
        optimizer.apply(gradients, condition)
    else:
        when(condition, lambda: replicas.broadcast(optimizer.apply, gradients), lambda: None)


def when(condition: tf.Tensor, do: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Runs one of two functions that change variables and return nothing."""

    def branch(function: Callable[[], None]) -> Callable[[], tf.Tensor]:
        def call() -> tf.Tensor:
            function()
            return tf.zeros([])  # branches of tf.cond must return something

        return call

    tf.cond(condition, branch(do), branch(otherwise))

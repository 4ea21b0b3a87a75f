"""From gradients to new weights: finite, norm, clip, apply.

    applied = apply(optimizer, gradients, config.clip, allowed, replicas)
    applied.is_finite, applied.gradient_norm

Nothing else in the framework changes a weight.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf
from ml_collections import ConfigDict

from framework.distribute.replicas import Replicas
from framework.optim import Optimizer, clip, global_norm


class Applied(NamedTuple):
    """What `apply` did.

    Attributes:
      is_finite: bool scalar; the norm is a number, so each gradient is.
      gradient_norm: of all gradients, before clipping.
    """

    is_finite: tf.Tensor
    gradient_norm: tf.Tensor


def apply(
    optimizer: Optimizer,
    gradients: Mapping[str, tf.Tensor],
    settings: ConfigDict,
    allowed: tf.Tensor,
    replicas: Replicas,
    masked: bool = False,
) -> Applied:
    """Clips and applies one update, or changes nothing.

    Args:
      gradients: {path: gradient} of the whole global batch, unscaled; those of `optimizer.trained`.
      settings: config.clip.
      allowed: bool scalar; False changes nothing, as gradients that are not finite do.
      replicas: each applies the same update to its copy of the weights.
      masked: whether to choose between new and old weights in the pass over them, where the optimizer can, instead of
        around it.
    """
    variables = optimizer.trained
    norm = global_norm(gradients.values())
    is_finite = tf.math.is_finite(norm)
    clipped = clip(gradients, variables, settings, norm)
    if masked and optimizer.is_maskable:
        optimizer.apply(clipped, is_finite & allowed)
    else:
        when(is_finite & allowed, lambda: replicas.broadcast(optimizer.apply, clipped), lambda: None)
    return Applied(is_finite, norm)


def when(condition: tf.Tensor, do: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Runs one of two functions that change variables and return nothing."""

    def branch(function: Callable[[], None]) -> Callable[[], tf.Tensor]:
        def call() -> tf.Tensor:
            function()
            return tf.zeros([])  # branches of tf.cond must return something

        return call

    tf.cond(condition, branch(do), branch(otherwise))

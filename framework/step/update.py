"""From gradients to new weights: finite, norm, clip, apply.

    applied = apply(optimizer, gradients, config.clip, allowed, replicas)
    applied.is_finite, applied.gradient_norm

Nothing else in the framework changes a weight.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf
from ml_collections import ConfigDict

from framework.optim import Optimizer, clip, global_norm
from framework.replicas import Replicas


class Applied(NamedTuple):
    """What `apply` did.

    Attributes:
      is_finite: bool scalar; the norms of gradients and weights are numbers, so each of these is. A weight that is not
        may leave no trace in the loss: fused kernels of some CPUs make relu(NaN) 0.
      gradient_norm: of all gradients, before clipping.
      parameter_norm: of the weights at which they were taken.
      update_norm: of what was added to the weights; 0 if nothing was.
    """

    is_finite: tf.Tensor
    gradient_norm: tf.Tensor
    parameter_norm: tf.Tensor
    update_norm: tf.Tensor


def apply(
    optimizer: Optimizer,
    gradients: Mapping[str, tf.Tensor],
    settings: ConfigDict,
    allowed: tf.Tensor,
    replicas: Replicas,
) -> Applied:
    """Clips and applies one update, or changes nothing.

    Args:
      gradients: {path: gradient} of the whole global batch, unscaled; those of `optimizer.trained`.
      settings: config.clip.
      allowed: bool scalar; False changes nothing, as gradients that are not finite do.
      replicas: each applies the same update to its copy of the weights.
    """
    variables = optimizer.trained
    norm = global_norm(gradients.values())
    before = [variable.read_value() for variable in variables.values()]
    parameter_norm = global_norm(before)
    is_finite = tf.math.is_finite(norm) & tf.math.is_finite(parameter_norm)

    def update() -> tf.Tensor:
        clipped = clip(gradients, variables, settings, norm)
        replicas.spread(optimizer.apply, clipped)
        return global_norm([v.read_value() - old for v, old in zip(variables.values(), before, strict=True)])

    update_norm = tf.cond(is_finite & allowed, update, lambda: tf.zeros([], norm.dtype))
    return Applied(is_finite, norm, parameter_norm, update_norm)


def when(condition: tf.Tensor, do: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Runs one of two functions that change variables and return nothing."""

    def branch(function: Callable[[], None]) -> Callable[[], tf.Tensor]:
        def call() -> tf.Tensor:
            function()
            return tf.zeros([])  # branches of tf.cond must return something

        return call

    tf.cond(condition, branch(do), branch(otherwise))

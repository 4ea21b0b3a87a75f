"""Muon: momentum whose update of each matrix is made nearly orthogonal.

    optimizer = Muon(learning_rate=rate, momentum=0.6, nesterov=True, steps=3, rescales=True)

Sources: Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon); rescaled filters are those of airbench94_muon
(Jordan, 2024, https://github.com/KellerJordan/cifar10-airbench).
"""

import math
from typing import Any

import tensorflow as tf

from framework import compat
from framework.optim.masked import assign_if
from framework.optim.sgd import Sgd

# x <- a x + b (x xᵀ) x + c (x xᵀ)² x moves all singular values between 0 and 1 towards 1, the small ones fast.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPSILON = 1e-7  # added to the norm of an update, which may be 0


class Muon(Sgd):
    """Momentum for matrices, each of whose updates has singular values near 1; `Sgd` for vectors and scalars.

    The matrix of a kernel [..., outputs] is [all other axes, outputs], for filters [outputs, in * k * k] transposed.
    The momentum is m <- momentum * m + gradient, without the learning rate; a `decay` is decoupled.

    Args:
      steps: of the Newton-Schulz iteration; after 5, singular values are between about 0.7 and 1.2.
      dtype: of the iteration, 'bfloat16'; '' for the dtype of the weights.
      rescales: before each update, multiply a matrix by the number that makes its norm sqrt(outputs). Its norm has no
        effect if normalisation follows, such as BatchNormalization.
      settings: of `Sgd`.
    """

    def __init__(self, steps: int = 5, dtype: str = "", rescales: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.steps, self.dtype, self.rescales = steps, dtype, rescales

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Changes `variable`, of any shape, and its momentum by one gradient."""
        if variable.shape.rank < 2:
            super().update_step(gradient, variable)
            return
        rate, momentum = (tf.cast(x, variable.dtype) for x in (self.learning_rate, self.momentum))
        gradient, weights = tf.convert_to_tensor(gradient), variable.read_value()
        slot = self.momentums[compat.slot_index(self, variable)]
        average = slot * momentum + gradient
        direction = average * momentum + gradient if self.nesterov else average
        if self.rescales:
            weights = rescaled(weights)
        if self.decay and compat.is_decayed(self, variable):
            weights -= weights * tf.cast(self.decay, variable.dtype) * rate
        weights -= rate * orthogonal(direction, self.steps, self.dtype)
        assign_if(slot, average, self.allowed)
        assign_if(variable, weights, self.allowed)


def orthogonal(kernel: tf.Tensor, steps: int, dtype: str = "") -> tf.Tensor:
    """Returns a kernel [..., outputs] with the singular vectors of its matrix, and singular values near 1.

    Args:
      kernel: of rank 2 or more; zeros stay zeros.
      steps: of the iteration.
      dtype: of the iteration; '' for that of the kernel.
    """
    matrix = tf.reshape(kernel, [-1, kernel.shape[-1]])
    x = tf.cast(matrix / (tf.norm(matrix) + _EPSILON), dtype or kernel.dtype)
    is_tall = x.shape[0] > x.shape[1]  # the product of x with itself is made on its shorter side
    for _ in range(steps):
        square = tf.matmul(x, x, transpose_a=is_tall, transpose_b=not is_tall)
        factor = _B * square + _C * tf.matmul(square, square)
        x = _A * x + (tf.matmul(x, factor) if is_tall else tf.matmul(factor, x))
    return tf.reshape(tf.cast(x, kernel.dtype), kernel.shape)


def rescaled(kernel: tf.Tensor) -> tf.Tensor:
    """Returns a kernel [..., outputs] times the number that makes its norm sqrt(outputs); zeros stay zeros."""
    norm = tf.norm(kernel)
    return kernel * tf.where(norm > 0, tf.constant(math.sqrt(kernel.shape[-1]), kernel.dtype) / norm, 1)

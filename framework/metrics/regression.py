"""Metrics of predicted numbers: root mean squared error, mean absolute error, share of explained variance.

Where the weight is 0, predictions and targets may be NaN or infinite.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from framework.metrics.base import Mean, Sums, Tensors
from framework.metrics.inputs import predicted


@dataclasses.dataclass(frozen=True)
class _OfNumbers:
    """Keys of a metric of predicted numbers.

    Attributes:
      predictions: key in outputs: [batch, ...].
      target: key in batch: of the same shape.
      weight: key in batch: of the same shape, or [batch]; see `Accuracy`.
    """

    predictions: str = "predictions"
    target: str = "target"
    weight: str | None = None


@dataclasses.dataclass(frozen=True)
class MeanAbsoluteError(_OfNumbers, Mean):
    """Weighted mean of |prediction - target|, in the unit of the targets."""

    mode = "min"

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        predictions, targets, weight = predicted(self, outputs, batch)
        return tf.abs(predictions - targets), weight


@dataclasses.dataclass(frozen=True)
class RootMeanSquaredError(_OfNumbers, Mean):
    """Root of the weighted mean of (prediction - target)**2 over all examples, in the unit of the targets."""

    mode = "min"

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        predictions, targets, weight = predicted(self, outputs, batch)
        return tf.square(predictions - targets), weight

    def result(self, state: np.ndarray) -> float:
        return math.sqrt(max(0.0, mean)) if (mean := super().result(state)) == mean else math.nan


@dataclasses.dataclass(frozen=True)
class R2(_OfNumbers, Sums):
    """Share of the targets' variance that the predictions explain: 1 - sum of (y - p)**2 / sum of (y - mean of y)**2.

    1 is perfect, 0 as good as predicting the mean, below 0 worse than that; NaN if all targets are equal. The state is
    (weight, sum of y, sum of y**2, sum of (y - p)**2) in float64, which targets far from 0 need: 2000 ± 1 in float32
    would lose their variance.
    """

    logged: str = "interval"

    def empty(self) -> np.ndarray:
        return np.zeros(4)

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        predictions, y, weight = (tf.cast(tensor, tf.float64) for tensor in predicted(self, outputs, batch))
        sums = [tf.ones_like(y), y, tf.square(y), tf.square(y - predictions)]
        return tf.stack([tf.reduce_sum(weight * number) for number in sums])

    def result(self, state: np.ndarray) -> float:
        weight, total, squares, errors = map(float, state)
        variance = squares - total**2 / weight if weight else 0.0
        return 1 - errors / variance if variance > 1e-12 * squares else math.nan

"""What a metric is, and weighted means."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from framework.errors import UserError

Tensors = Mapping[str, Any]


class Metric(Protocol):
    """A quantity that is computed from sums over examples.

    A state is a floating vector of fixed length. Over the parts of a batch (replicas, micro-batches) states are added;
    over steps they go through `merge`, which is the place for a metric that forgets. A maximum has no sum: it is right
    on one device in one micro-batch alone.

    Attributes:
      mode: 'max' or 'min', which results are better.
    """

    mode: str

    def empty(self) -> np.ndarray:
        """The state of no examples: float64 [n]."""
        ...

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        """The state of one batch: floating [n]. Reads the loss's outputs and the batch with its 'weight'."""
        ...

    def merge(self, total: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The state of all that either has seen."""
        ...

    def result(self, state: np.ndarray) -> float:
        """The number to report; NaN for no examples."""
        ...


class Mean:
    """Base of weighted means; the state is (sum, weight). Subclasses give `values`."""

    mode = "max"

    def empty(self) -> np.ndarray:
        return np.zeros(2)

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """Value and weight of each example (or token), of the same shape; numbers or bools of any dtype."""
        raise UserError(f"{type(self).__name__} must define values(outputs, batch).")

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        """float32 [2], or float64 if values or weights are. A value of weight 0 may be NaN or infinite."""
        values, weight = (tf.convert_to_tensor(part) for part in self.values(outputs, batch))
        if not values.shape.is_compatible_with(weight.shape):
            raise UserError(
                f"{type(self).__name__}: values have shape {values.shape} and weights {weight.shape}, but each value"
                " has its weight."
            )
        # Never in a dtype of integers, which would cut weights of 0.5 off, nor in half precision.
        dtype = tf.float64 if tf.float64 in (values.dtype, weight.dtype) else tf.float32
        values, weight = tf.cast(tf.ensure_shape(values, weight.shape), dtype), tf.cast(weight, dtype)
        return tf.stack([tf.reduce_sum(tf.math.multiply_no_nan(values, weight)), tf.reduce_sum(weight)])

    def merge(self, total: np.ndarray, state: np.ndarray) -> np.ndarray:
        return total + np.asarray(state, np.float64)

    def result(self, state: np.ndarray) -> float:
        return float(state[0] / state[1]) if state[1] else float("nan")

"""Metrics as data that merges: states are sums, so batches, replicas and steps add up exactly.

    accuracy = Accuracy()
    state = accuracy.update({'logits': logits}, batch)        # traced: the state of this batch alone
    total = accuracy.merge(total, state)                      # over steps, on the host, in float64
    accuracy.result(total)                                    # 0.9785

The same states come out of training steps, evaluation passes and exported models.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from framework.config import UserError

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
        """Value and weight of each example (or token), floating, of the same shape."""
        raise TypeError(f"{type(self).__name__} must define values(outputs, batch)")

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        values, weight = self.values(outputs, batch)
        if not values.shape.is_compatible_with(weight.shape):
            raise UserError(
                f"{type(self).__name__}: values have shape {values.shape} and weights {weight.shape}, but each value"
                " has its weight."
            )
        weight = tf.cast(weight, values.dtype)
        return tf.stack([tf.reduce_sum(values * weight), tf.reduce_sum(weight)])

    def merge(self, total: np.ndarray, state: np.ndarray) -> np.ndarray:
        return total + np.asarray(state, np.float64)

    def result(self, state: np.ndarray) -> float:
        return float(state[0] / state[1]) if state[1] else float("nan")


@dataclasses.dataclass(frozen=True)
class Accuracy(Mean):
    """Share of examples whose largest logit is the label's.

    Attributes:
      logits, label: keys in outputs [..., classes] and batch [...].
    """

    logits: str = "logits"
    label: str = "label"

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        logits = tf.convert_to_tensor(outputs[self.logits])
        guess = tf.argmax(logits, axis=-1, output_type=tf.int32)
        # Counted in float32 at least: sums of ones are exact up to 2**24 examples a batch.
        dtype = tf.float64 if logits.dtype == tf.float64 else tf.float32
        return tf.cast(guess == tf.cast(batch[self.label], tf.int32), dtype), tf.cast(batch["weight"], dtype)

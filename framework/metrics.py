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


@dataclasses.dataclass(frozen=True)
class Accuracy(Mean):
    """Share of examples whose class the logits say: of several the largest, of a single one whether it is above 0.

    A label that is no class, such as 2 beside one logit or 0.9, makes the accuracy NaN; so does a logit that is NaN.

    Attributes:
      logits: key in outputs: [..., classes], or of two classes [..., 1] or [batch]; not probabilities.
      label: key in batch: class numbers [...]; beside a single logit [..., 1] too.
    """

    logits: str = "logits"
    label: str = "label"

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        logits, label = tf.convert_to_tensor(outputs[self.logits]), tf.convert_to_tensor(batch[self.label])
        logits, label, classes = self._matched(logits, label)
        if classes == 2 and logits.shape[-1] == 1:
            guess = tf.cast(logits[..., 0] > 0, tf.int64)
        else:
            guess = tf.argmax(logits, axis=-1)
        # Counted in float32 at least: sums of ones are exact up to 2**24 examples a batch.
        dtype = tf.float64 if logits.dtype == tf.float64 else tf.float32
        number = tf.cast(label, tf.int64)
        is_class = (number >= 0) & (number < classes)
        if label.dtype.is_floating:
            is_class &= tf.cast(number, label.dtype) == label
        if logits.dtype.is_floating:
            is_class &= ~tf.reduce_any(tf.math.is_nan(logits), axis=-1)
        hits = tf.where(is_class, tf.cast(guess == number, dtype), tf.constant(float("nan"), dtype))
        return hits, batch["weight"]

    def _matched(self, logits: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, int]:
        """Logits [..., classes or 1], their labels [...], and how many classes there are."""
        shape = f"logits '{self.logits}' have shape {logits.shape} and labels '{self.label}' {label.shape}"
        if not (label.dtype.is_floating or label.dtype.is_integer or label.dtype.is_bool):
            raise UserError(
                f"Accuracy: labels '{self.label}' are of dtype {label.dtype.name}, but labels are class numbers."
            )
        if not logits.shape.rank or logits.shape[-1] is None:
            raise UserError(f"Accuracy: {shape}. Logits are [batch, classes], or [batch, 1] or [batch] of two classes.")
        logits = logits[:, tf.newaxis] if logits.shape.rank == 1 else logits
        is_single = logits.shape[-1] == 1
        if is_single and label.shape.rank == logits.shape.rank and label.shape[-1] == 1:
            label = label[..., 0]
        if not (label.shape.rank == logits.shape.rank - 1 and label.shape.is_compatible_with(logits.shape[:-1])):
            raise UserError(
                f"Accuracy: {shape}, but each row of logits has one label, the number of its class. Write e.g."
                " tf.argmax(labels, -1) of one-hot labels, labels[:, 0] of a column."
            )
        return logits, label, 2 if is_single else logits.shape[-1]

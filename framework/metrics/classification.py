"""Metrics of class numbers."""

import dataclasses

import tensorflow as tf

from framework.errors import UserError
from framework.metrics.base import Mean, Tensors


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

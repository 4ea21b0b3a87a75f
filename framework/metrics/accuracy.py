"""Shares of right predictions: of the most likely class, of the k most likely, of yes or no."""

import dataclasses
import math

import tensorflow as tf

from framework.errors import UserError
from framework.metrics.base import Mean, Tensors
from framework.metrics.inputs import binary, labelled, weight_of
from framework.trace.activations import refuse_probabilities


@dataclasses.dataclass(frozen=True)
class Accuracy(Mean):
    """Share of examples whose label is the predicted class: that of the largest logit; of a single logit, 1 above 0.

    A label that is no class, such as 2 beside one logit or 0.9, makes the accuracy NaN; so does a logit that is NaN.

    Attributes:
      logits: key in outputs: [..., classes], or of two classes [..., 1] or [batch]; not probabilities.
      label: key in batch: class numbers [...]; beside a single logit [..., 1] too.
      weight: key in batch: [...], such as 'token_weight', which is 0 for padding. None is 'weight' [batch], for one
        label an example; weight='weight' lets each label of an example count by the weight of the example.
    """

    logits: str = "logits"
    label: str = "label"
    weight: str | None = None

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        logits, label = tf.convert_to_tensor(outputs[self.logits]), tf.convert_to_tensor(batch[self.label])
        logits, label, classes = self._matched(logits, label)
        if classes == 2 and logits.shape[-1] == 1:
            refuse_probabilities("Accuracy", logits)
            guess = tf.cast(logits[..., 0] > 0, tf.int64)
        else:
            guess = tf.argmax(logits, axis=-1)
        # Hits are counted in at least float32, in which sums of ones are exact up to 2**24 examples a batch.
        dtype = tf.float64 if logits.dtype == tf.float64 else tf.float32
        number = tf.cast(label, tf.int64)
        is_class = (number >= 0) & (number < classes)
        if label.dtype.is_floating:
            is_class &= tf.cast(number, label.dtype) == label
        if logits.dtype.is_floating:
            is_class &= ~tf.reduce_any(tf.math.is_nan(logits), axis=-1)
        hits = tf.where(is_class, tf.cast(guess == number, dtype), tf.constant(float("nan"), dtype))
        return hits, weight_of(self, "labels", label, batch)

    def _matched(self, logits: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, int]:
        """Returns logits [..., classes or 1], their labels [...], and how many classes there are."""
        shape = f"logits '{self.logits}' have shape {logits.shape} and labels '{self.label}' {label.shape}"
        if not (label.dtype.is_floating or label.dtype.is_integer or label.dtype.is_bool):
            raise UserError(
                f"Accuracy: labels '{self.label}' are of dtype {label.dtype.name}, but labels are class numbers."
            )
        if not logits.shape.rank or logits.shape[-1] is None:
            raise UserError(f"Accuracy: {shape}. Logits are [batch, classes], or [batch, 1] or [batch] of two classes.")
        logits = tf.expand_dims(logits, 1) if logits.shape.rank == 1 else logits
        is_single = logits.shape[-1] == 1
        if is_single and label.shape.rank == logits.shape.rank and label.shape[-1] == 1:
            label = label[..., 0]
        if not (label.shape.rank == logits.shape.rank - 1 and label.shape.is_compatible_with(logits.shape[:-1])):
            raise UserError(
                f"Accuracy: {shape}, but each row of logits has one label, the number of its class. Write e.g."
                " tf.argmax(labels, -1) of one-hot labels, labels[:, 0] of a column."
            )
        return logits, label, 2 if is_single else logits.shape[-1]


@dataclasses.dataclass(frozen=True)
class TopKAccuracy(Mean):
    """Share of examples whose label is among the k classes of the largest logits.

    Of equal logits the first class counts as the larger, as in `Accuracy`, which is the same with k=1. A label that is
    no class, or a logit that is NaN, makes the accuracy NaN.

    Attributes:
      k: at least 1, and less than the number of classes.
      logits: key in outputs: [..., classes].
      label: key in batch: class numbers [...].
      weight: key in batch: [...], or [batch]; see `Accuracy`.
    """

    k: int = 5
    logits: str = "logits"
    label: str = "label"
    weight: str | None = None

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        logits, label, weight = labelled(self, outputs, batch)
        classes = logits.shape[-1]
        if not 1 <= self.k < classes:
            raise UserError(f"TopKAccuracy: k={self.k} of {classes} classes. It must be from 1 to {classes - 1}.")
        own = tf.reduce_sum(tf.where(tf.one_hot(label, classes, True, False, dtype=tf.bool), logits, 0), -1)
        is_before = tf.range(classes, dtype=label.dtype) < label[..., tf.newaxis]
        own = own[..., tf.newaxis]
        above = (logits > own) | (tf.equal(logits, own) & is_before)
        hits = tf.cast(tf.reduce_sum(tf.cast(above, tf.int32), -1) < self.k, logits.dtype)
        is_good = (label >= 0) & ~tf.reduce_any(tf.math.is_nan(logits), -1)
        return tf.where(is_good, hits, tf.constant(float("nan"), logits.dtype)), weight


@dataclasses.dataclass(frozen=True)
class BinaryAccuracy(Mean):
    """Share of right answers to yes or no; with several logits a row, of all answers.

    A target that is neither 0 nor 1, or a logit that is NaN, makes the accuracy NaN.

    Attributes:
      threshold: between 0 and 1, the probability (sigmoid of the logit) above which the answer is yes.
      logits: key in outputs: [batch, ...].
      label: key in batch: 0 or 1, of the same shape.
      weight: key in batch: of the same shape, or [batch]; see `Accuracy`.
    """

    threshold: float = 0.5
    logits: str = "logits"
    label: str = "label"
    weight: str | None = None

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        if not 0 < self.threshold < 1:
            raise UserError(f"BinaryAccuracy: threshold={self.threshold} is not between 0 and 1.")
        logits, target, weight = binary(self, outputs, batch)
        is_yes = logits > math.log(self.threshold / (1 - self.threshold))
        hits = tf.cast(tf.equal(is_yes, target > 0.5), logits.dtype)
        is_good = ~(tf.math.is_nan(logits) | tf.math.is_nan(target))
        return tf.where(is_good, hits, tf.constant(float("nan"), logits.dtype)), weight

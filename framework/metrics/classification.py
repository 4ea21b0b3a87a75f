"""Metrics of classes that are made of counts: precision, recall, F1, area under a curve, calibration, confusions.

States are sums in float64, added on the device (`logged`), so they may be large. A label that is no class, or a logit
that is NaN, makes a metric NaN; where the weight is 0, logits and labels may be anything.
"""

import abc
import dataclasses

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.metrics.base import Picture, Sums, Tensors
from framework.metrics.inputs import binary, histogram, labelled
from framework.trace.activations import refuse_probabilities

_LARGEST_LOGIT = 16.0  # beyond, the sigmoid is within 1e-7 of 0 or 1


@dataclasses.dataclass(frozen=True)
class _ByClass(Sums, abc.ABC):
    """Base of metrics of true and false predictions of each class; the state is (hits, predicted, labelled) by class.

    Attributes:
      classes: how many. 2 makes a number, that of class 1 (positive); more make {'macro', 'micro'}.
      logits: key in outputs: [..., classes]; of two classes also [...], the logit of the positive class.
      label: key in batch: class numbers [...].
      weight: key in batch: [...], or [batch]; see `Accuracy`.
      logged: see `Metric`.
    """

    classes: int = 2
    logits: str = "logits"
    label: str = "label"
    weight: str | None = None
    logged: str = "interval"

    def empty(self) -> np.ndarray:
        return np.zeros(3 * self.classes)

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        guess, label, weight = _guesses(self, self.classes, outputs, batch)
        hits = histogram(label, self.classes, tf.where(tf.equal(guess, label), weight, 0))
        return tf.concat([hits, histogram(guess, self.classes, weight), histogram(label, self.classes, weight)], 0)

    @abc.abstractmethod
    def ratio(self, hits: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        """Returns the metric of each class; 0 of a class that was only predicted or only labelled."""

    def result(self, state: np.ndarray) -> float | dict[str, float]:
        hits, predicted, labels = np.reshape(state, [3, self.classes])
        if np.isnan(state).any() or not labels.sum():
            return float("nan") if self.classes == 2 else {"macro": float("nan"), "micro": float("nan")}
        ratios = self.ratio(hits, predicted, labels)
        if self.classes == 2:
            return float(ratios[1])
        seen = (predicted > 0) | (labels > 0)
        micro = self.ratio(*(np.sum(numbers, keepdims=True) for numbers in (hits, predicted, labels)))
        return {"macro": float(ratios[seen].mean()), "micro": float(micro[0])}


class Precision(_ByClass):
    """Share of the predictions of a class that are right: of class 1, or {'macro', 'micro'} of more than two classes.

    'macro' is the mean over the classes that were predicted or labelled at all, 'micro' that over all predictions.
    """

    def ratio(self, hits: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        return _share(hits, predicted)


class Recall(_ByClass):
    """Share of the examples of a class that are predicted as such; of several classes as `Precision`."""

    def ratio(self, hits: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        return _share(hits, labelled)


class F1(_ByClass):
    """Harmonic mean of precision and recall; of several classes as `Precision`."""

    def ratio(self, hits: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        return _share(2 * hits, predicted + labelled)


@dataclasses.dataclass(frozen=True)
class ConfusionMatrix(Sums):
    """A picture of which class is taken for which: a row for each label, a column for each prediction.

    The darker a field, the larger its share of its row; `counts(state)` returns the numbers.

    Attributes:
      classes: how many.
      logits: key in outputs: [..., classes]; of two classes also [...], the logit of the positive class.
      label: key in batch: class numbers [...].
      weight: key in batch: [...], or [batch]; see `Accuracy`.
    """

    classes: int
    logits: str = "logits"
    label: str = "label"
    weight: str | None = None
    logged: str = "evaluation"

    def empty(self) -> np.ndarray:
        return np.zeros(self.classes**2)

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        guess, label, weight = _guesses(self, self.classes, outputs, batch)
        return histogram(label * self.classes + guess, self.classes**2, weight)

    def counts(self, state: np.ndarray) -> np.ndarray:
        """Returns the weights of the examples by label and prediction: [classes, classes]."""
        return np.reshape(state, [self.classes, self.classes])

    def result(self, state: np.ndarray) -> Picture:
        counts = np.nan_to_num(self.counts(state))
        shares = counts / np.maximum(counts.sum(1, keepdims=True), np.finfo(np.float64).tiny)
        field = max(1, 256 // self.classes)  # pixels
        return Picture(np.kron(1 - np.clip(shares, 0, 1), np.ones([field, field]))[..., np.newaxis])


@dataclasses.dataclass(frozen=True)
class AUC(Sums):
    """Area under the ROC curve, or under the precision-recall curve (average precision), of a binary classifier.

    Logits from -16 to 16 are put into bins of equal width, and count as equal within a bin; those beyond are in the
    outermost bins. `error(state)` bounds the distance to the area of the logits as they are. It is the sum over bins of
    the chance that a positive and a negative example share one, halved: about 1 / (2 * bins) for evenly spread logits.

    Attributes:
      curve: 'ROC' or 'PR'.
      bins: how many.
      logits: key in outputs: [batch, ...].
      label: key in batch: 0 or 1, of the same shape.
      weight: key in batch: of the same shape, or [batch]; see `Accuracy`.
      logged: see `Metric`.
    """

    curve: str = "ROC"
    bins: int = 1024
    logits: str = "logits"
    label: str = "label"
    weight: str | None = None
    logged: str = "interval"

    def __post_init__(self) -> None:
        if self.curve not in ("ROC", "PR") or self.bins < 2:
            raise UserError(f"AUC: curve={self.curve!r}, bins={self.bins}. It is 'ROC' or 'PR', of 2 bins or more.")

    def empty(self) -> np.ndarray:
        return np.zeros(2 * self.bins)

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        logits, target, weight = binary(self, outputs, batch)
        is_nan = tf.math.is_nan(logits)
        weight = _or_nan(weight, ~(is_nan | tf.math.is_nan(target)))
        place = (tf.where(is_nan, tf.zeros_like(logits), logits) / (2 * _LARGEST_LOGIT) + 0.5) * self.bins
        place = tf.cast(tf.clip_by_value(place, 0, self.bins - 1), tf.int32)
        positive = tf.cast(target, tf.float64) * weight
        return histogram(place, self.bins, weight - positive, positive)

    def result(self, state: np.ndarray) -> float:
        negative, positive = self._falling(state)
        if np.isnan(state).any() or not positive.sum() or (self.curve == "ROC" and not negative.sum()):
            return float("nan")
        if self.curve == "ROC":
            return float(np.dot(negative, np.cumsum(positive) - positive / 2) / (negative.sum() * positive.sum()))
        return float(np.dot(positive, _share(np.cumsum(positive), np.cumsum(positive + negative))) / positive.sum())

    def error(self, state: np.ndarray) -> float:
        """Returns how far the result may be from the area of the logits without bins."""
        negative, positive = self._falling(state)
        if self.curve == "ROC":
            return float(np.dot(negative, positive) / 2 / (negative.sum() * positive.sum()))
        hits, wrong = np.cumsum(positive), np.cumsum(negative)
        best, worst = _share(hits, hits + wrong - negative), _share(hits - positive, hits - positive + wrong)
        middle = _share(hits, hits + wrong)
        return float(np.dot(positive, np.maximum(best - middle, middle - worst)) / positive.sum())

    def _falling(self, state: np.ndarray) -> np.ndarray:
        """Returns the weights of negative and positive examples by bin, the largest logits first: [2, bins]."""
        return np.reshape(state, [2, self.bins])[:, ::-1]


@dataclasses.dataclass(frozen=True)
class CalibrationError(Sums):
    """Expected calibration error (Guo et al. 2017): how far the confidence is from the share of right predictions.

    Confidences, the probabilities of the predicted classes, are put into bins of equal width; the result is the mean
    over examples of the distance in their bin.

    Attributes:
      bins: how many.
      logits: key in outputs: [..., classes].
      label: key in batch: class numbers [...].
      weight: key in batch: [...], or [batch]; see `Accuracy`.
      logged: see `Metric`.
    """

    bins: int = 15
    logits: str = "logits"
    label: str = "label"
    weight: str | None = None
    logged: str = "interval"
    mode = "min"

    def empty(self) -> np.ndarray:
        return np.zeros(3 * self.bins)

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        refuse_probabilities("CalibrationError", tf.convert_to_tensor(outputs[self.logits]))
        logits, label, weight = labelled(self, outputs, batch)
        confidence = tf.reduce_max(tf.nn.softmax(logits), -1)
        is_good = (label >= 0) & ~tf.reduce_any(tf.math.is_nan(logits), -1)
        weight = _or_nan(weight, is_good)
        confidence = tf.where(is_good, confidence, tf.zeros_like(confidence))
        # A confidence on an edge belongs to the bin below: (0, 1/bins], …
        place = tf.cast(tf.math.ceil(confidence * self.bins), tf.int32) - 1
        hits = tf.where(tf.equal(tf.argmax(logits, -1), label), weight, tf.zeros_like(weight))
        place = tf.clip_by_value(place, 0, self.bins - 1)
        return histogram(place, self.bins, weight, weight * tf.cast(confidence, tf.float64), hits)

    def result(self, state: np.ndarray) -> float:
        weight, confidence, hits = np.reshape(state, [3, self.bins])
        return float(np.abs(confidence - hits).sum() / weight.sum()) if weight.sum() else float("nan")


def _guesses(
    metric: _ByClass | ConfusionMatrix, classes: int, outputs: Tensors, batch: Tensors
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns predicted classes, labels and float64 weights; NaN weights where a label or logit is none."""
    logits, label = tf.convert_to_tensor(outputs[metric.logits]), tf.convert_to_tensor(batch[metric.label])
    if classes == 2 and logits.shape.rank == label.shape.rank:
        scores, target, weight = binary(metric, outputs, batch)
        is_good = ~(tf.math.is_nan(scores) | tf.math.is_nan(target))
        return tf.cast(scores > 0, tf.int64), tf.cast(target > 0.5, tf.int64), _or_nan(weight, is_good)
    scores, label, weight = labelled(metric, outputs, batch)
    if scores.shape[-1] != classes:
        raise UserError(
            f"{type(metric).__name__}: logits '{metric.logits}' have shape {scores.shape}, but classes={classes}."
        )
    is_good = (label >= 0) & ~tf.reduce_any(tf.math.is_nan(scores), -1)
    return tf.argmax(scores, -1), tf.maximum(label, 0), _or_nan(weight, is_good)


def _or_nan(weight: tf.Tensor, is_good: tf.Tensor) -> tf.Tensor:
    """Returns the weight in float64, NaN where something is not good."""
    return tf.where(is_good, tf.cast(weight, tf.float64), tf.constant(float("nan"), tf.float64))


def _share(numbers: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Returns numbers / of, and 0 of nothing."""
    return np.divide(numbers, of, out=np.zeros_like(numbers, dtype=np.float64), where=of > 0)

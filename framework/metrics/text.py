"""Metrics of text: perplexity."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from framework.metrics.base import Mean, Tensors
from framework.metrics.inputs import labelled
from framework.trace.activations import refuse_probabilities


@dataclasses.dataclass(frozen=True)
class Perplexity(Mean):
    """exp of the mean cross-entropy of all tokens: among how many equally likely tokens the model chooses.

    Attributes:
      logits: key in outputs: [..., vocabulary].
      label: key in batch: the next tokens [...]; one that is not in the vocabulary makes the perplexity NaN.
      weight: key in batch: [...], 0 for padding, such as 'token_weight'; or [batch]; see `Accuracy`.
    """

    logits: str = "logits"
    label: str = "label"
    weight: str | None = None
    mode = "min"

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        refuse_probabilities("Perplexity", tf.convert_to_tensor(outputs[self.logits]))
        logits, label, weight = labelled(self, outputs, batch)
        log_shares = tf.nn.log_softmax(logits)
        is_label = tf.one_hot(label, logits.shape[-1], True, False, dtype=tf.bool)
        own = tf.reduce_sum(tf.where(is_label, log_shares, 0), -1)
        return tf.where(label >= 0, -own, tf.constant(float("nan"), own.dtype)), weight

    def result(self, state: np.ndarray) -> float:
        mean = super().result(state)
        return math.exp(mean) if not mean > 700 else math.inf

"""Losses between distributions: the Kullback-Leibler divergence."""

import tensorflow as tf

from framework.losses.base import Term, mean
from framework.losses.classification import checked_targets


def kl_divergence(logits: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns the divergence of the softmax of logits from class probabilities: sum of p * log(p / q).

    Unlike the cross-entropy it is 0 where the model's probabilities q are the targets p, as for a student (logits) of a
    teacher: `targets=tf.stop_gradient(tf.nn.softmax(teacher_logits))`.

    Args:
      logits: floating [..., classes].
      targets: [..., classes], probabilities of sum 1; others make the loss NaN.
      weight: [...], or [batch]. Where it is 0, logits and targets may be anything.
    """
    logits, targets, weight = checked_targets("kl_divergence", logits, targets, weight)
    log_ratio = tf.math.log(tf.where(targets > 0, targets, 1)) - tf.nn.log_softmax(logits)
    return mean(tf.reduce_sum(tf.math.multiply_no_nan(log_ratio, targets), -1), weight)

"""Losses of sequences: connectionist temporal classification."""

import tensorflow as tf

from framework.errors import UserError
from framework.losses.base import Term, in_full, mean, where_weighted
from framework.trace.guards import claim_range


def ctc(
    logits: tf.Tensor,
    labels: tf.Tensor,
    weight: tf.Tensor,
    label_lengths: tf.Tensor,
    logit_lengths: tf.Tensor,
    blank: int = 0,
) -> Term:
    """Returns the CTC loss (Graves et al. 2006): minus the log-probability of labels whose places are not known.

    It is computed in float32, in a float64 run too, as TensorFlow's is.

    A sequence that cannot be right makes the loss NaN: a length that is out of range, a label that is no class or is
    the blank, or fewer frames than labels plus the blanks between equal neighbours.

    Args:
      logits: floating [batch, frames, classes], the blank among the classes.
      labels: integer [batch, places]; beyond an example's length, any number.
      weight: [batch]. Where it is 0, everything else may be anything.
      label_lengths: integer [batch], how many of the places count.
      logit_lengths: integer [batch], how many of the frames count.
      blank: which class is the blank.
    """
    logits = tf.convert_to_tensor(logits)
    dtype, logits = in_full(logits).dtype, tf.cast(logits, tf.float32)
    labels, label_lengths, logit_lengths = (
        tf.cast(tf.convert_to_tensor(tensor), tf.int32) for tensor in (labels, label_lengths, logit_lengths)
    )
    weight = tf.convert_to_tensor(weight)
    _check_shapes(logits, labels, weight, label_lengths, logit_lengths, blank)
    frames, classes, places = logits.shape[1], logits.shape[2], labels.shape[1]
    logits, label_lengths = where_weighted(weight, logits, label_lengths)
    logit_lengths = tf.where(tf.cast(weight, tf.bool), logit_lengths, frames)
    counts = tf.range(places) < label_lengths[:, tf.newaxis]  # [batch, places]
    other = 0 if blank else 1  # any class but the blank; it fills the places beyond `label_lengths`
    labels = tf.where(counts, labels, other)
    repeats = tf.reduce_sum(tf.cast(tf.equal(labels[:, 1:], labels[:, :-1]) & counts[:, 1:], tf.int32), -1)
    spare = logit_lengths - label_lengths - repeats
    is_bad = tf.zeros(tf.shape(weight), tf.bool)
    for values, low, high in (
        (labels, 0, classes - 1),
        (tf.abs(labels - blank), 1, classes - 1),
        (label_lengths, 0, places),
        (logit_lengths, 0, frames),
        (spare, 0, frames),
    ):
        claim_range(values, low, high)
        bad = (values < low) | (values > high)
        is_bad |= tf.reduce_any(bad, -1) if values.shape.rank == 2 else bad
    values = tf.nn.ctc_loss(
        tf.where(is_bad[:, tf.newaxis], other, labels),
        logits,
        tf.where(is_bad, 0, label_lengths),
        tf.where(is_bad, frames, logit_lengths),
        logits_time_major=False,
        blank_index=blank,
    )
    return mean(tf.cast(tf.where(is_bad, float("nan"), values), dtype), weight)


def _check_shapes(
    logits: tf.Tensor,
    labels: tf.Tensor,
    weight: tf.Tensor,
    label_lengths: tf.Tensor,
    logit_lengths: tf.Tensor,
    blank: int,
) -> None:
    ranks = {"logits": (logits, 3), "labels": (labels, 2), "weight": (weight, 1)}
    ranks |= {"label_lengths": (label_lengths, 1), "logit_lengths": (logit_lengths, 1)}
    is_right = all(tensor.shape.rank == rank for tensor, rank in ranks.values())
    if not is_right or any(not tensor.shape[:1].is_compatible_with(weight.shape) for tensor, _ in ranks.values()):
        shapes = ", ".join(f"{name} {tensor.shape}" for name, (tensor, _) in ranks.items())
        raise UserError(
            f"ctc: shapes are {shapes}, but must be logits [batch, frames, classes], labels [batch, places], and"
            " [batch] of the others."
        )
    if None in (*logits.shape[1:], labels.shape[1]):
        raise UserError(
            f"ctc: logits have shape {logits.shape} and labels {labels.shape}, but all dimensions but the batch must be"
            " known. Pad to a fixed length."
        )
    if not 0 <= blank < logits.shape[2]:
        raise UserError(f"ctc: blank={blank} is none of the classes 0 to {logits.shape[2] - 1}.")

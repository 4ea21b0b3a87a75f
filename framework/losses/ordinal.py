"""Losses of ratings in order: the cumulative link model.

logits = layers.CumulativeLogits(5)(scores)                       # [batch] -> [batch, 4]
term = losses.ordinal(logits, batch["stars"] - 1, batch["weight"])
"""

import tensorflow as tf

from framework.errors import UserError
from framework.losses.base import Term, in_full, mean, weight_of_each, where_weighted
from framework.trace.guards import claim_classes


def ordinal(logits: tf.Tensor, ratings: tf.Tensor, weight: tf.Tensor) -> Term:
    """Returns minus the log-probability of ratings, of which logit k is that of a rating above k.

    The probability of level k is sigmoid(logit k - 1) - sigmoid(logit k); the logits of a row must fall, as those of
    `layers.CumulativeLogits` do, or the loss is NaN. Source: McCullagh, 1980, "Regression models for ordinal data".

    Args:
      logits: floating [..., levels - 1].
      ratings: integer [...], 0 to levels - 1; others make the loss NaN.
      weight: [...], or [batch]. Where it is 0, logits and ratings may be anything.
    """
    logits, ratings, weight = (tf.convert_to_tensor(tensor) for tensor in (logits, ratings, weight))
    if not logits.shape.rank or logits.shape[-1] is None or not ratings.shape.is_compatible_with(logits.shape[:-1]):
        raise UserError(
            f"ordinal: logits have shape {logits.shape} and ratings {ratings.shape}, but each rating [...] has logits"
            " [..., levels - 1]."
        )
    if not ratings.dtype.is_integer:
        raise UserError(f"ordinal: ratings are {ratings.dtype.name}, but must be the integers 0 to levels - 1.")
    levels = logits.shape[-1] + 1
    weight = weight_of_each("ordinal", "ratings", ratings, weight)
    logits, ratings = where_weighted(weight, in_full(logits), ratings)
    claim_classes(ratings, levels)
    is_level = (ratings >= 0) & (ratings < levels)
    place = tf.where(is_level, ratings, 0)
    # Each rating picks the logit before and the one after it by a product with a row of ones and zeros.
    below = tf.one_hot(place - 1, levels - 1, dtype=logits.dtype)
    above = tf.one_hot(place, levels - 1, dtype=logits.dtype)
    low, high = (tf.reduce_sum(tf.math.multiply_no_nan(logits, row), -1) for row in (below, above))
    is_first, is_last = tf.equal(place, 0), tf.equal(place, levels - 1)
    is_between = ~(is_first | is_last)
    # sigmoid(a) - sigmoid(b) is sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)).
    zero = tf.zeros([], logits.dtype)
    gap = tf.where(is_between, low - high, tf.ones_like(low))
    values = tf.where(is_first, zero, tf.nn.softplus(-low)) + tf.where(is_last, zero, tf.nn.softplus(high))
    values -= tf.where(is_between, tf.math.log(-tf.math.expm1(-gap)), zero)
    return mean(tf.where(is_level, values, tf.constant(float("nan"), values.dtype)), weight)

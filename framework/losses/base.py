"""Terms of a loss: a weighted sum and its weight, never a mean."""

from typing import NamedTuple

import tensorflow as tf

from framework.distribute import replicas


class Term(NamedTuple):
    """One part of a loss: `sum` / `weight` is its mean.

    Attributes:
      sum: scalar, float32 or float64, sum of weighted values. If values of weight 0 may be NaN or infinite, write
        `tf.reduce_sum(tf.math.multiply_no_nan(values, weight))`: a plain product with 0 is NaN.
      weight: scalar, floating or integer; a function of the batch alone, not of the model. Micro-batches and replicas
        see parts of a batch, whose sums and weights add up: a weight is a sum over examples, as
        `tf.reduce_sum(batch["weight"])` is. A constant, such as 1, is refused unless the sum does not depend on the
        batch either, as that of a penalty on the weights of a model does not.
    """

    sum: tf.Tensor
    weight: tf.Tensor


class BatchDependent(Term):
    """A term whose value for one example depends on the others of its batch, such as an in-batch softmax.

    Micro-batches would compare each example with fewer others, so `train.micro_batches` > 1 is refused. So are several
    replicas, unless the loss has `needs_collectives = True` and compares with the features that `all_gather` returns.
    """


def all_gather(features: tf.Tensor) -> tf.Tensor:
    """[part, ...] of each replica as [batch, ...] on all of them, in order; gradients find their way back.

    On one device these are the features themselves. A loss that calls it says so, because what communicates inside of
    the forward pass can neither be compiled by XLA nor looped over:

        loss.needs_collectives = True
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1 or replicas.is_redundant():
        return features
    return context.all_gather(features, axis=0)


def gather_offset(features: tf.Tensor) -> tf.Tensor:
    """int32 scalar: the place that the first of this replica's examples has among those of `all_gather`."""
    context = tf.distribute.get_replica_context()
    is_one = context is None or context.num_replicas_in_sync == 1 or replicas.is_redundant()
    index = 0 if is_one else context.replica_id_in_sync_group
    return index * tf.shape(features)[0]

"""Noise that turns gradient descent into sampling.

terms["noise"] = losses.once(losses.langevin(variables, deviation), batch["weight"])
"""

from collections.abc import Sequence

import tensorflow as tf

from framework import rng


def langevin(variables: Sequence[tf.Variable], deviation: float) -> tf.Tensor:
    """Returns a sum whose gradient by each element of some tables is normal noise of this deviation.

    Stochastic gradient descent of rate r, without momentum, on c times the mean energy of n examples then draws weights
    with the density exp(-energy of all examples) if the deviation is sqrt(2 * c / (n * r)).
    Source: Welling and Teh, 2011, "Bayesian learning via stochastic gradient Langevin dynamics".

    Args:
      variables: matrices, [rows, width]. The draws of an update are those of its step, alike on all replicas and in all
        micro-batches.
      deviation: of the noise, in the unit of the gradient.
    """
    sums = []
    with rng.of_batch():
        for table in variables:
            drawn = rng.normal("langevin", table.shape[0], table.shape[1], deviation)
            sums.append(tf.reduce_sum(drawn * table))
    return tf.add_n(sums)

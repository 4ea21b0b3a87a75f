"""Variables for tests of what follows weights: averages and slow weights."""

import numpy as np
import tensorflow as tf


def make_variables(dtype):
    """Returns a kernel, a count, and a mean that is not trained."""
    rng = np.random.default_rng(1)
    return {
        "dense/kernel": tf.Variable(rng.normal(size=(3, 2)), dtype=dtype),
        "count": tf.Variable(3, dtype=tf.int64),
        "norm/mean": tf.Variable(rng.normal(size=(2,)), dtype=dtype, trainable=False),
    }

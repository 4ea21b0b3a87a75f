"""The dtype that a run computes in.

    with precision.scope('float64'):
        model = make_model(config)

tf_keras keeps its policy and `floatx` for the whole process; the scope sets both and puts them back, so that two runs
of one notebook do not touch each other.
"""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
import tf_keras as keras


@contextlib.contextmanager
def scope(precision: str) -> Iterator[None]:
    """Builds and traces under `precision`: 'float32' or 'float64' (variables, computation, schedule: everything)."""
    policy, floatx = keras.mixed_precision.global_policy(), keras.backend.floatx()
    keras.backend.set_floatx(precision)
    keras.mixed_precision.set_global_policy(precision)
    try:
        yield
    finally:
        keras.backend.set_floatx(floatx)
        keras.mixed_precision.set_global_policy(policy)


def master_dtype(precision: str) -> tf.DType:
    """What losses, learning rates and logged numbers are computed in."""
    return tf.float64 if precision == "float64" else tf.float32

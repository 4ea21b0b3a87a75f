"""From gradients to new weights.

    norm = apply(optimizer, gradients, variables)

Nothing else in the framework changes a weight.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras as keras


def apply(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor], variables: Mapping[str, tf.Variable]
) -> tf.Tensor:
    """Applies one update and advances `optimizer.iterations`.

    Returns:
      The global norm of the gradients, scalar.
    """
    dtype = tf.float64 if any(gradient.dtype == tf.float64 for gradient in gradients) else tf.float32
    norm = tf.linalg.global_norm([tf.cast(gradient, dtype) for gradient in gradients])
    # The gradients are those of the whole global batch already.
    optimizer.apply_gradients(zip(gradients, variables.values(), strict=True), skip_gradients_aggregation=True)
    return norm

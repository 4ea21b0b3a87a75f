"""K steps in one compiled loop, which keeps a row of numbers of each.

steps = repeat(step, k, block_steps, width, tf.float32)       # any k up to block_steps: one trace
steps.rows[: steps.count]
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# step(index) -> (row [width], whether to halt)
RowStep = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Steps(NamedTuple):
    """The steps that a loop has made so far.

    Attributes:
      count: int32 scalar.
      rows: [size, width], the first `count` of them filled.
      is_halted: bool scalar; whether the last step halted the loop.
    """

    count: tf.Tensor
    rows: tf.Tensor
    is_halted: tf.Tensor


def no_steps(size: int, width: int, dtype: tf.DType) -> Steps:
    """Returns the start of a loop of at most `size` steps."""
    return Steps(tf.constant(0), tf.zeros([size, width], dtype), tf.constant(False))


def repeat(step: RowStep, k: tf.Tensor, size: int, width: int, dtype: tf.DType) -> Steps:
    """Calls step(0) … step(k - 1)."""
    return advance(step, k, no_steps(size, width, dtype))


def advance(step: RowStep, end: tf.Tensor, steps: Steps) -> Steps:
    """Continues with step(steps.count) … step(end - 1).

    The size of the buffer is fixed and `end` is a tensor, so no number of steps recompiles. (A TensorArray of `end`
    elements, or autograph's `for i in tf.range(end)`, makes XLA compile again for every `end`, silently.)
    """

    def body(count: tf.Tensor, rows: tf.Tensor, is_halted: tf.Tensor) -> Steps:
        row, is_halted = step(count)
        return Steps(count + 1, tf.tensor_scatter_nd_update(rows, [[count]], row[tf.newaxis]), is_halted)

    return Steps(*tf.while_loop(lambda i, rows, halted: (i < end) & ~halted, body, tuple(steps), parallel_iterations=1))

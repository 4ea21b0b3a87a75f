"""K steps in one compiled loop, which keeps a row of numbers of each.

steps = repeat(step, k, block_steps, width, tf.float32, {})   # any k up to block_steps: one trace
steps.rows[: steps.count]
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

MetricSums = Mapping[str, tf.Tensor]  # {metric: float64 [n]}, states that are summed over steps

# step(index) -> (row [width], whether to halt, what the step adds to the sums)
RowStep = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, MetricSums]]


class Steps(NamedTuple):
    """The steps that a loop has made so far.

    Attributes:
      count: int32 scalar.
      rows: [size, width], the first `count` of them filled.
      is_halted: bool scalar; whether the last step halted the loop.
      sums: those the loop began with, plus what its steps added.
    """

    count: tf.Tensor
    rows: tf.Tensor
    is_halted: tf.Tensor
    sums: MetricSums


def no_steps(size: int, width: int, dtype: tf.DType, sums: MetricSums) -> Steps:
    """Returns the start of a loop of at most `size` steps, which add to `sums`."""
    return Steps(tf.constant(0), tf.zeros([size, width], dtype), tf.constant(False), sums)


def repeat(step: RowStep, k: tf.Tensor, size: int, width: int, dtype: tf.DType, sums: MetricSums) -> Steps:
    """Calls step(0) … step(k - 1)."""
    return advance(step, k, no_steps(size, width, dtype, sums))


def advance(step: RowStep, end: tf.Tensor, steps: Steps) -> Steps:
    """Continues with step(steps.count) … step(end - 1).

    The size of the buffer is fixed and `end` is a tensor, so no number of steps recompiles. (A TensorArray of `end`
    elements, or autograph's `for i in tf.range(end)`, makes XLA compile again for every `end`, silently.) The sums are
    added step by step, so their bits do not depend on how the steps were grouped into calls.
    """

    def body(count: tf.Tensor, rows: tf.Tensor, is_halted: tf.Tensor, sums: MetricSums) -> Steps:
        row, is_halted, added = step(count)
        rows = tf.tensor_scatter_nd_update(rows, [[count]], row[tf.newaxis])
        return Steps(count + 1, rows, is_halted, {name: total + added[name] for name, total in sums.items()})

    def goes_on(count: tf.Tensor, rows: tf.Tensor, is_halted: tf.Tensor, sums: MetricSums) -> tf.Tensor:
        return (count < end) & ~is_halted

    return Steps(*tf.while_loop(goes_on, body, tuple(steps), parallel_iterations=1))

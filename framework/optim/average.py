"""The exponential moving average of a model's weights over updates.

average = ExponentialMovingAverage(0.999, paths.variables(model))
average.after_update(t, step)      # after update t = 1, 2, …
with average.swapped():
    evaluate(model)                # on the averaged weights
"""

import contextlib
import math
from collections.abc import Iterator, Mapping

import tensorflow as tf

from framework import compat, paths
from framework.trace.assigned import untouched


class ExponentialMovingAverage(tf.Module):
    """The average of w_1 … w_t with the weights (1 - decay) * decay**(t - i) / (1 - decay**t), which sum to 1.

    It is the average that starts at 0, divided by 1 - decay**t like the averages of Adam (Kingma and Ba, 2015).

    Args:
      decay: above 0 and below 1.
      variables: {path: variable} of the model; variables that are not floating are ignored.

    Attributes:
      averages: {path: variable}; equal to the weights before the first update. The module tracks nothing else.
    """

    def __init__(self, decay: float, variables: Mapping[str, tf.Variable]) -> None:
        super().__init__("average")
        self.decay = decay
        # The model is saved as the model, not as part of its average.
        self._averaged = compat.untracked(
            self, {path: variable for path, variable in variables.items() if variable.dtype.is_floating}
        )
        self.averages = {
            path: tf.Variable(paths.copies(variable)[0].read_value(), trainable=False)
            for path, variable in self._averaged.items()
        }

    def after_update(self, updates: tf.Tensor, step: tf.Tensor, applied: tf.Tensor | None = None) -> None:
        """Moves the averages towards the weights of the model.

        Args:
          updates: int64 scalar; updates made, including this one.
          step: int64 scalar; not used.
          applied: bool scalar; False leaves the averages as they are, as in `Optimizer.apply`. None is as True.
        """
        count = tf.cast(updates, tf.int64)
        passed = -tf.math.expm1(tf.cast(count, tf.float64) * tf.constant(math.log(self.decay), tf.float64))
        share = tf.constant(1 - self.decay, tf.float64) / passed
        for path, variable in self._averaged.items():
            average, weights = self.averages[path], paths.copies(variable)[0].read_value()
            moved = average + tf.cast(share, average.dtype) * (weights - average)
            # The first is the weights to the last bit, whatever stood there before.
            value = tf.where(count > 1, moved, weights)
            average.assign(value if applied is None else tf.where(applied, value, average))

    def restart(self) -> None:
        """Sets the averages to the weights, as before the first update."""
        for path, variable in self._averaged.items():
            self.averages[path].assign(paths.copies(variable)[0])

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Lends the model its averaged weights inside the context; afterwards it has its own, to the last bit."""
        with untouched(list(self._averaged.values())):
            for path, variable in self._averaged.items():
                paths.assign(variable, self.averages[path])
            yield

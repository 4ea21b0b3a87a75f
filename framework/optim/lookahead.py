"""Lookahead: slow weights, which every few updates take a share of the way to the trained ones, and replace them.

    lookahead = Lookahead(config.lookahead, total_steps, paths.variables(model))
    lookahead.after_update(t, step)  # after update t = 1, 2, …

Sources: Zhang et al., 2019; the growing inertia of the slow weights and their place at the end are those of airbench94
(Jordan, 2024, https://github.com/KellerJordan/cifar10-airbench).
"""

from collections.abc import Mapping

import tensorflow as tf
from ml_collections import ConfigDict

from framework import compat, paths
from framework.optim.due import if_due


class Lookahead(tf.Module):
    """At every k-th update: slow <- slow + share * (fast - slow), then fast <- slow; after the last step, fast <- slow.

    The share is 1 - (1 - alpha) * (t / total) ** power: `alpha` at all updates with power 0, else it falls from 1.
    A last step that is skipped leaves the fast weights as they are.

    Args:
      settings: `config.lookahead`.
      total: steps of the whole run.
      variables: {path: variable} of the model, the fast weights; variables that are not floating are ignored.

    Attributes:
      slow: {path: variable}; equal to the weights before the first update. The module tracks nothing else.
    """

    def __init__(self, settings: ConfigDict, total: int, variables: Mapping[str, tf.Variable]) -> None:
        super().__init__("lookahead")
        self.every, self.alpha, self.power, self.total = settings.every, settings.alpha, settings.power, total
        # The model is saved as the model, not as part of its slow weights.
        self._fast = compat.untracked(
            self, {path: variable for path, variable in variables.items() if variable.dtype.is_floating}
        )
        self.slow = {
            path: tf.Variable(paths.copies(variable)[0].read_value(), trainable=False)
            for path, variable in self._fast.items()
        }

    def after_update(self, updates: tf.Tensor, step: tf.Tensor, applied: tf.Tensor | None = None) -> None:
        """Moves slow and fast weights, if they are due.

        Args:
          updates: int64 scalar; updates made, including this one.
          step: int64 scalar; steps counted before this one: skipped steps are no updates.
          applied: bool scalar; False leaves all weights as they are. None is as True.
        """
        count = tf.cast(updates, tf.int64)
        done = tf.cast(count, tf.float64) / self.total
        power = tf.constant(self.power, tf.float64)
        share = 1 - tf.constant(1 - self.alpha, tf.float64) * tf.pow(done, power)
        share = tf.where(tf.equal(count % self.every, 0), share, 0)
        is_due = self.is_due(updates, step)
        if_due(is_due if applied is None else is_due & applied, lambda: self._move(share), applied is not None)

    def is_due(self, updates: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Returns whether weights move after an update, bool scalar; the arguments are those of `after_update`."""
        return tf.equal(tf.cast(updates, tf.int64) % self.every, 0) | tf.equal(step, self.total - 1)

    def _move(self, share: tf.Tensor) -> None:
        """Moves slow weights by a share of the way to the fast ones, and fast weights to the slow ones."""
        for path, variable in self._fast.items():
            slow, fast = self.slow[path], paths.copies(variable)[0].read_value()
            # What no step changes keeps its bits, an infinity too.
            moved = tf.where(tf.equal(fast, slow), fast, slow + tf.cast(share, slow.dtype) * (fast - slow))
            slow.assign(moved)
            for copy in paths.copies(variable):
                copy.assign(moved)

    def restart(self) -> None:
        """Sets the slow weights to the fast ones, as before the first update."""
        for path, variable in self._fast.items():
            self.slow[path].assign(paths.copies(variable)[0])

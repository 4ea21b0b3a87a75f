"""What follows an update inside of the step: code of an experiment's own, with variables that are saved.

    class Bounded(optim.Extension):
        def __init__(self, model):
            super().__init__("bounded")
            self.changed = tf.Variable(0, trainable=False, dtype=tf.int64)
            self.kernel = model.layers[0].kernel

        def after_update(self, updates, step, applied):
            bounded = tf.clip_by_value(self.kernel, -1, 1)
            is_changed = applied & tf.reduce_any(tf.not_equal(bounded, self.kernel))
            self.changed.assign_add(tf.cast(is_changed, tf.int64))
            self.kernel.assign(tf.where(applied, bounded, self.kernel))

    def make_extensions(cfg, model):
        return {"bounded": Bounded(model)}             # state.extensions['bounded']['changed']

`Lookahead`, `Pruner`, `Clusterer` and `ExponentialMovingAverage` have the same form.
"""

import tensorflow as tf


class Extension(tf.Module):
    """Called in every step, as a part of the compiled program; its variables are in each checkpoint.

    On replicas it is called once, not on each: a variable of the model is read from the first replica and assigned on
    all. Variables of its own are made in `__init__`.
    """

    def after_update(self, updates: tf.Tensor, step: tf.Tensor, applied: tf.Tensor) -> None:
        """Changes variables after an update; those of the model too.

        Args:
          updates: int64 scalar; updates made, including this one.
          step: int64 scalar; steps counted before this one: skipped steps are no updates.
          applied: bool scalar; if False there was no update, and no variable may change: write
            `variable.assign(tf.where(applied, new, variable))`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no after_update(updates, step, applied)")

    def restart(self) -> None:
        """Called when the weights were taken from another run (`init_from`), before the first step."""

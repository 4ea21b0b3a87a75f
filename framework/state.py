"""TrainState: all that is saved. What is not here is a pure function of it, or not part of the run.

    state = create(model, optimizer)
    state.step, state.updates           # global batches consumed, updates applied
    paths.variables(state)              # {'step': …, 'model/dense/kernel': …, 'optimizer/_variables/1': …}

Names are paths in this object, see `paths`; a checkpoint has exactly these variables.
"""

import math

import tensorflow as tf
import tf_keras as keras

from framework import paths, rng


class Best(tf.Module):
    """The best value a metric has had, and for how many evaluations it has not been beaten.

    Attributes:
      value: float64 scalar variable; NaN before the first.
      step: int64 scalar variable; where it was seen, -1 before the first.
      waited: int64 scalar variable; evaluations since.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.value = tf.Variable(math.nan, trainable=False, dtype=tf.float64)
        self.step = tf.Variable(-1, trainable=False, dtype=tf.int64)
        self.waited = tf.Variable(0, trainable=False, dtype=tf.int64)

    def observe(self, value: float, step: int, mode: str, min_delta: float = 0.0) -> bool:
        """Takes one evaluation; True if it beats the best by more than `min_delta`. NaN never does."""
        best = float(self.value)
        gain = value - best if mode == "max" else best - value
        improved = not math.isnan(value) and (math.isnan(best) or gain > min_delta)
        if improved:
            self.value.assign(value)
            self.step.assign(step)
            self.waited.assign(0)
        else:
            self.waited.assign_add(1)
        return improved


class TrainState(tf.Module):
    """What a checkpoint holds.

    Attributes:
      step: int64 scalar; global batches consumed: the data cursor, the randomness key, the log index, the end.
      updates: int64 scalar; updates applied: schedule and bias correction read it. It is `optimizer.iterations`.
      model: the trained model.
      optimizer: with its slots.
      best: of `checkpoint.best_metric`.
      early: of `early_stopping.metric`.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        super().__init__("state")
        self.step = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.updates = optimizer.iterations
        self.model = model
        self.optimizer = optimizer
        self.best = Best("best")
        self.early = Best("early")


def create(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> TrainState:
    """The state of step 0. The model's variables must exist; optimizer slots are created here.

    Layers that draw random numbers learn the path of their stream.
    """
    state = TrainState(model, optimizer)
    optimizer.build(model.trainable_variables)
    rng.name_streams(paths.objects(model))
    return state

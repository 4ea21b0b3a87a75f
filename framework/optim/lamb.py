"""LAMB: Adam whose update is as long as the weights that it changes.

optimizer = Lamb(learning_rate=rate, decay=0.01)
"""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from framework import compat


class Lamb(keras.optimizers.Optimizer):
    """Adam whose update, decay included, is as long as the variable it changes (You et al., 2020).

    Args:
      learning_rate: float or schedule.
      beta_1: of the average of gradients.
      beta_2: of the average of their squares.
      epsilon: added to the root of the latter, after its bias correction.
      decay: of weights; part of the update, and so of its length.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        decay: float = 0.0,
        jit_compile: bool = False,
        name: str = "Lamb",
    ) -> None:
        # The base class would subtract its weight decay outside of the update.
        super().__init__(name=name, weight_decay=None, jit_compile=jit_compile)
        compat.set_learning_rate(self, learning_rate)
        self.beta_1, self.beta_2, self.epsilon, self.decay = beta_1, beta_2, epsilon, decay

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the two averages of each variable, in its dtype."""
        super().build(var_list)
        if compat.is_built(self):
            return
        self._momentums = [self.add_variable_from_reference(variable, "m") for variable in var_list]
        self._velocities = [self.add_variable_from_reference(variable, "v") for variable in var_list]
        compat.set_built(self)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Changes `variable`, of any shape, and its averages by one gradient."""
        dtype = variable.dtype
        index = compat.slot_index(self, variable)
        gradient = tf.convert_to_tensor(gradient)
        mean = self._averaged(self._momentums[index], gradient, self.beta_1)
        square = self._averaged(self._velocities[index], tf.square(gradient), self.beta_2)
        update = mean / (tf.sqrt(square) + tf.constant(self.epsilon, dtype))
        if compat.is_decayed(self, variable):
            update += tf.constant(self.decay, dtype) * variable
        long, wide = tf.norm(variable), tf.norm(update)
        is_scaled = (long > 0) & (wide > 0)
        ratio = tf.where(is_scaled, long / tf.where(is_scaled, wide, 1), 1)
        variable.assign_sub(tf.cast(self.learning_rate, dtype) * ratio * update)

    def _averaged(self, average: tf.Variable, value: tf.Tensor, beta: float) -> tf.Tensor:
        """Updates `average` and returns it without the bias towards its start at 0."""
        average.assign_add((value - average) * tf.constant(1 - beta, value.dtype))
        # In float64, because 1 - 0.999 has but four digits in float32.
        power = tf.pow(tf.constant(beta, tf.float64), tf.cast(self.iterations + 1, tf.float64))
        return average / tf.cast(1 - power, value.dtype)

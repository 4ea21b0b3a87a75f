"""Gradient descent with momentum and decoupled weight decay, which can leave out a step.

optimizer = Sgd(learning_rate=rate, momentum=0.9, nesterov=True, decay=5e-4)
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat
from framework.optim.masked import assign_if


class Sgd(keras.optimizers.SGD):
    """The SGD of tf_keras, which reads each weight and slot once; a step that is not allowed leaves them alone.

    A `decay` is decoupled, as in AdamW: weights lose `decay` times the learning rate of themselves before each step
    (Loshchilov and Hutter, 2019). The gradient, and so the momentum, does not see it.

    With `slotless` and no momentum there is no slot, which would be as large as the weights and which nothing reads.

    Attributes:
      allowed: see `Optimizer.apply`.
    """

    allowed: tf.Tensor | None = None

    def __init__(self, decay: float = 0.0, slotless: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.decay = decay
        self.has_slots = self.momentum != 0 or not slotless

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        if self.has_slots:
            super().build(var_list)
            return
        keras.optimizers.Optimizer.build(self, var_list)
        compat.set_built(self)

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Changes `variable`, of any shape, and its momentum by one gradient."""
        rate, momentum = (tf.cast(x, variable.dtype) for x in (self.learning_rate, self.momentum))
        decays = self.decay and compat.is_decayed(self, variable)
        average = self.momentums[compat.slot_index(self, variable)] if self.has_slots else None
        if self.allowed is not None:
            gradient, weights = tf.convert_to_tensor(gradient), variable.read_value()
            if decays:
                weights -= weights * tf.cast(self.decay, variable.dtype) * rate
            step = gradient * rate
            if average is None:
                assign_if(variable, weights - step, self.allowed)
                return
            assign_if(average, average * momentum - step, self.allowed)
            moved = average * momentum - step if self.nesterov else average
            assign_if(variable, weights + moved, self.allowed)
            return
        if decays:
            variable.assign_sub(variable * tf.cast(self.decay, variable.dtype) * rate)
        if isinstance(gradient, tf.IndexedSlices) and self.momentum == 0:
            variable.scatter_sub(tf.IndexedSlices(gradient.values * rate, gradient.indices))  # a slot stays as it is
        elif average is None:
            variable.assign_sub(gradient * rate)
        elif isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
        else:
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=variable.handle,
                accum=average.handle,
                lr=rate,
                grad=gradient,
                momentum=momentum,
                use_nesterov=self.nesterov,
            )

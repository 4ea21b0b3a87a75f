"""Optimizers by name, and `Optimizer`: the trained variables of one model with an optimizer for each group of them.

    optimizer = Optimizer([(make_optimizer(config, rate), kernels), (make_optimizer(config, slower), biases)])
    optimizer.apply({"dense/kernel": gradient, "dense/bias": gradient})

Weights, slots and constants of a float64 run are float64.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import compat, paths
from framework.config import check_effects, flatten
from framework.errors import UserError
from framework.optim.options import numbers_of


def make_optimizer(
    config: ConfigDict, learning_rate: keras.optimizers.schedules.LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of `config.optimizer`, for one group of parameters.

    Raises:
      UserError: a key that the optimizer does not have is set, or lion with `beta_1=0`, which tf_keras refuses.
    """
    settings = config.optimizer
    check_effects(flatten(settings, "optimizer."))
    # tf_keras turns a Python float into a float32 before it casts it; a NumPy float64 keeps its value.
    number = np.float64 if config.train.precision == "float64" else float
    # tf_keras would compile its own update; ours is part of a compiled step already.
    common: dict[str, Any] = {"learning_rate": learning_rate, "jit_compile": False}
    epsilon, decay = number(settings.epsilon), number(settings.weight_decay)
    if settings.name == "sgd":
        return _Sgd(decay=decay, momentum=number(settings.momentum), nesterov=settings.nesterov, **common)
    common |= {name: number(settings[name]) for name in ("beta_1", "beta_2")}
    if settings.name == "adam":
        return _Adam(epsilon=epsilon, **common)
    if settings.name == "adamw":
        return _Adam(decay=decay, epsilon=epsilon, **common)
    if settings.name == "lamb":
        return Lamb(epsilon=epsilon, decay=decay, **common)
    if settings.beta_1 == 0:
        raise UserError(
            "optimizer.name='lion' needs optimizer.beta_1 > 0: at 0 it ignores its momentum."
            " Use --config.optimizer.beta_1=0.9."
        )
    return keras.optimizers.Lion(weight_decay=decay, **common)


class _Adam(keras.optimizers.Adam):
    """The Adam of tf_keras, and AdamW if `decay` is given; a step that is not allowed leaves weights and slots alone.

    Sources: Kingma and Ba, 2015; Loshchilov and Hutter, 2019. The arithmetic is tf_keras's, to the bit. (The fused op
    takes 2.4 ms for 2.4 million weights in graph mode instead of 6.2, but 1 - beta_2 of a float32 beta_2, which is 5e-5
    off: over 200 steps the weights end 3e-4 from those of `fit`, and its own runs 1e-7 from each other.)

    Attributes:
      allowed: see `Optimizer.apply`.
    """

    allowed: tf.Tensor | None = None

    def __init__(self, decay: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.decay = decay

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Changes `variable`, of any shape, and its averages by one gradient."""
        dtype = variable.dtype
        rate = tf.cast(self.learning_rate, dtype)
        decays = self.decay and compat.is_decayed(self, variable)
        if self.allowed is None:
            if decays:
                variable.assign_sub(variable * tf.cast(self.decay, dtype) * rate)
            super().update_step(gradient, variable)
            return
        gradient, weights = tf.convert_to_tensor(gradient), variable.read_value()
        mean, square = compat.adam_slots(self, variable)
        _assign(mean, mean + (gradient - mean) * (1 - self.beta_1), self.allowed)
        _assign(square, square + (tf.square(gradient) - square) * (1 - self.beta_2), self.allowed)
        if decays:
            weights -= weights * tf.cast(self.decay, dtype) * rate
        step = tf.cast(self.iterations + 1, dtype)
        power_1, power_2 = (tf.pow(tf.cast(beta, dtype), step) for beta in (self.beta_1, self.beta_2))
        rate = rate * tf.sqrt(1 - power_2) / (1 - power_1)
        _assign(variable, weights - mean * rate / (tf.sqrt(square) + self.epsilon), self.allowed)


class _Sgd(keras.optimizers.SGD):
    """The SGD of tf_keras, which reads each weight and slot once; a step that is not allowed leaves them alone.

    A `decay` is decoupled, as in AdamW: weights lose `decay` times the learning rate of themselves before each step
    (Loshchilov and Hutter, 2019). The gradient, and so the momentum, does not see it.

    Attributes:
      allowed: see `Optimizer.apply`.
    """

    allowed: tf.Tensor | None = None

    def __init__(self, decay: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.decay = decay

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Changes `variable`, of any shape, and its momentum by one gradient."""
        average = self.momentums[compat.slot_index(self, variable)]
        rate, momentum = (tf.cast(x, variable.dtype) for x in (self.learning_rate, self.momentum))
        decays = self.decay and compat.is_decayed(self, variable)
        if self.allowed is not None:
            gradient, weights = tf.convert_to_tensor(gradient), variable.read_value()
            if decays:
                weights -= weights * tf.cast(self.decay, variable.dtype) * rate
            step = gradient * rate
            _assign(average, average * momentum - step, self.allowed)
            moved = average * momentum - step if self.nesterov else average
            _assign(variable, weights + moved, self.allowed)
            return
        if decays:
            variable.assign_sub(variable * tf.cast(self.decay, variable.dtype) * rate)
        if isinstance(gradient, tf.IndexedSlices):
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


def _assign(variable: tf.Variable, value: tf.Tensor, allowed: tf.Tensor) -> None:
    variable.assign(tf.where(allowed, value, variable))


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


class Optimizer(tf.Module):
    """The trained variables of one model, and the optimizers of their groups with all slots.

    Args:
      groups: an optimizer and its {path: variable} each; an optimizer belongs to one group only.

    Attributes:
      groups: the tf_keras optimizers. Their variables are all that this module tracks.
      trained: {path: variable} of all groups.
    """

    def __init__(self, groups: Sequence[tuple[keras.optimizers.Optimizer, Mapping[str, tf.Variable]]]) -> None:
        super().__init__("optimizer")
        self.groups = [optimizer for optimizer, _ in groups]
        # The model is saved as the model, not as part of its optimizer.
        self._members = compat.untracked(self, [dict(variables) for _, variables in groups])
        for optimizer, variables in zip(self.groups, self._members, strict=True):
            optimizer.build(list(variables.values()))

    @property
    def trained(self) -> dict[str, tf.Variable]:
        """{path: variable}, group after group."""
        return {path: variable for variables in self._members for path, variable in variables.items()}

    @property
    def is_maskable(self) -> bool:
        """Whether `apply` takes `allowed`."""
        return all(hasattr(optimizer, "allowed") for optimizer in self.groups)

    def apply(self, gradients: Mapping[str, tf.Tensor], allowed: tf.Tensor | None = None) -> None:
        """One update of every variable.

        Args:
          gradients: of the dtype and shape of the variables, by path, summed over replicas.
          allowed: bool scalar, for one that `is_maskable`: False writes what is there already. In an XLA program that
            is part of the pass over the weights; a conditional around the update would copy all of them each time.
        """
        for optimizer, variables in zip(self.groups, self._members, strict=True):
            pairs = [(gradients[path], variable) for path, variable in variables.items()]
            if allowed is None:
                _apply(optimizer, pairs)
                continue
            # tf_keras's own: the count of its updates, a copy of the rate, and weights after their constraint.
            moved = [variable for variable in paths.variables(optimizer).values() if variable.shape.rank == 0]
            moved += [variable for variable in variables.values() if getattr(variable, "constraint", None) is not None]
            before = [variable.read_value() for variable in moved]
            optimizer.allowed = allowed
            _apply(optimizer, pairs)
            optimizer.allowed = None
            for variable, value in zip(moved, before, strict=True):
                variable.assign(tf.where(allowed, variable, value))


def _apply(optimizer: keras.optimizers.Optimizer, pairs: list[tuple[Any, tf.Variable]]) -> None:
    """One update by one optimizer, all of whose state is variables.

    Raises:
      UserError: it changes a Python value, which a compiled step would compute once, when it is traced.
    """
    before = numbers_of(optimizer)
    optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
    after = numbers_of(optimizer)
    for name in after:
        if after[name] != before.get(name, before):
            raise UserError(
                f"{type(optimizer).__name__} of make_optimizer changes its attribute '{name}' in an update. A compiled"
                " step runs Python once, when it is traced, so the value would stay what it is then. Make it a variable"
                " in build, or use another optimizer, e.g. keras.optimizers.AdamW."
            )

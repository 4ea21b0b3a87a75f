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
from framework.optim.adam import Adam
from framework.optim.lamb import Lamb
from framework.optim.muon import Muon
from framework.optim.options import numbers_of
from framework.optim.sgd import Sgd


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
    if settings.name in ("sgd", "muon"):
        common |= {"decay": decay, "momentum": number(settings.momentum), "nesterov": settings.nesterov}
    if settings.name == "sgd":
        return Sgd(slotless=settings.table_gradients == "rows", **common)
    if settings.name == "muon":
        dtype = settings.newton_schulz_dtype.replace("full", "")
        return Muon(settings.newton_schulz_steps, dtype, settings.rescale_weights, **common)
    if settings.name == "adagrad":
        return keras.optimizers.Adagrad(epsilon=epsilon, **common)
    common |= {name: number(settings[name]) for name in ("beta_1", "beta_2")}
    if settings.name in ("adam", "lazy_adam"):
        return Adam(epsilon=epsilon, lazy=settings.name == "lazy_adam", **common)
    if settings.name == "adamw":
        return Adam(decay=decay, epsilon=epsilon, **common)
    if settings.name == "lamb":
        return Lamb(epsilon=epsilon, decay=decay, **common)
    if settings.beta_1 == 0:
        raise UserError(
            "optimizer.name='lion' needs optimizer.beta_1 > 0: at 0 it ignores its momentum."
            " Use --config.optimizer.beta_1=0.9."
        )
    return keras.optimizers.Lion(weight_decay=decay, **common)


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

"""Checks for layers, losses and experiments of your own: gradients, compile modes, replicas.

    layer = MyLayer(dtype="float64")
    testing.check_gradients(lambda x: layer(x, training=True), [x], variables=layer)    # x: float64 [batch, features]
    testing.check_compiled(lambda x: layer(x, training=True), [x])
    testing.check_replicas("experiments/mine.py", {"train.precision": "float64"}, replicas=2, steps=10)

A check returns None or raises AssertionError, which names the worst tensor, its place, both values and the bound. Each
call of the function starts from the same values of its variables and draws the same random words (`rng.scope`). When a
check ends, in whatever way, the variables have the values from before: all that are given, and all that fn reads.
"""

from framework.testing.compiled import check_compiled
from framework.testing.gradients import check_gradients
from framework.testing.replicas import check_replicas

__all__ = ["check_compiled", "check_gradients", "check_replicas"]

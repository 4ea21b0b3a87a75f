"""Checks for layers, losses and experiments of your own, and runs for your own tests.

    layer = MyLayer(dtype="float64")
    testing.check_gradients(lambda x: layer(x, training=True), [x], variables=layer)    # x: float64 [batch, features]
    testing.check_compiled(lambda x: layer(x, training=True), [x])
    testing.check_layer(lambda: MyLayer(), [x])
    testing.check_replicas("experiments/mine.py", {"train.precision": "float64"}, replicas=2, steps=10)

    run = testing.build({"make_data": make_data, "make_model": make_model, "make_loss": make_loss})
    before = testing.bits(run.state)

A check returns None or raises AssertionError, which names the worst tensor, its place, both values and the bound. Each
call of the function starts from the same values of its variables and draws the same random words (`rng.scope`). When a
check ends, in whatever way, the variables have the values from before: all that are given, and all that fn reads.
"""

from framework.testing.compiled import check_compiled
from framework.testing.gradients import check_gradients
from framework.testing.layer import check_layer
from framework.testing.replicas import check_replicas
from framework.testing.runs import bits, build, differing, rows

__all__ = ["bits", "build", "check_compiled", "check_gradients", "check_layer", "check_replicas", "differing", "rows"]

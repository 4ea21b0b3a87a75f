"""Lookahead against its algorithm in float64 NumPy: inner steps, moves of the slow weights, the end of the run."""

import math

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from framework import optim, paths
from tests.compile_modes import FAST_MODES, MODES
from tests.optim.variables import make_variables

TOTAL = 23
AIRBENCH = {"alpha": 1 - 0.95**5, "power": 3.0}


def make(variables, every=5, alpha=0.5, power=0.0):
    return optim.Lookahead(ConfigDict({"every": every, "alpha": alpha, "power": power}), TOTAL, variables)


class Reference:
    """One variable: slow weights, and the share of the trained ones at update t of the run."""

    def __init__(self, w, alpha, power):
        self.slow, self.alpha, self.power = w.copy(), alpha, power

    def update(self, fast, t, is_last):
        if t % 5 == 0:
            inertia = (1 - self.alpha) * (t / TOTAL) ** self.power if self.power else 1 - self.alpha
            self.slow = inertia * self.slow + (1 - inertia) * fast
        return self.slow.copy() if t % 5 == 0 or is_last else fast


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.8}, AIRBENCH], ids=["half", "most", "airbench"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", FAST_MODES)
def test_weights_are_those_of_the_algorithm(mode, masked, settings):
    variables = make_variables("float64")
    lookahead = make(variables, **settings)
    update = MODES[mode](lookahead.after_update)
    rng = np.random.default_rng(2)
    fast = {path: variables[path].numpy() for path in lookahead.slow}
    references = {path: Reference(w, **{"alpha": 0.5, "power": 0.0, **settings}) for path, w in fast.items()}
    for t in range(1, TOTAL + 1):
        for path in fast:
            fast[path] = fast[path] + rng.normal(size=fast[path].shape)
            variables[path].assign(fast[path])
        counters = tf.constant(t, tf.int64), tf.constant(t - 1, tf.int64)
        if masked:
            before = bits(variables), bits(lookahead.slow)
            update(*counters, tf.constant(False))
            assert (bits(variables), bits(lookahead.slow)) == before
        update(*counters, *([tf.constant(True)] if masked else []))
        for path, reference in references.items():
            fast[path] = reference.update(fast[path], t, t == TOTAL)
            np.testing.assert_allclose(lookahead.slow[path].numpy(), reference.slow, rtol=0, atol=1e-14)
            np.testing.assert_allclose(variables[path].numpy(), fast[path], rtol=0, atol=1e-14)
    assert int(variables["count"]) == 3


def bits(variables):
    return {path: variable.numpy().tobytes() for path, variable in variables.items()}


def test_the_last_step_of_a_run_with_skipped_steps_ends_on_the_slow_weights():
    variables = {"w": tf.Variable([1.0])}
    lookahead = make(variables)
    variables["w"].assign([7.0])
    lookahead.after_update(tf.constant(TOTAL - 2, tf.int64), tf.constant(TOTAL - 1, tf.int64))  # 21 updates in 23 steps
    assert variables["w"].numpy() == [1.0]


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("masked", [False, True])
def test_what_no_step_changes_keeps_its_bits(mode, masked):
    variables = {"mask": tf.Variable([-math.inf, -0.0, 1.1], trainable=False), "w": tf.Variable([1.0])}
    lookahead = make(variables)
    before = variables["mask"].numpy().tobytes()
    variables["w"].assign([2.0])
    counters = tf.constant(5, tf.int64), tf.constant(4, tf.int64)
    MODES[mode](lookahead.after_update)(*counters, *([tf.constant(True)] if masked else []))
    assert variables["mask"].numpy().tobytes() == lookahead.slow["mask"].numpy().tobytes() == before
    assert variables["w"].numpy() == [1.5]


def test_only_slow_weights_of_floating_variables_are_tracked_and_restart_from_the_weights():
    variables = make_variables("float32")
    lookahead = make(variables)
    assert list(paths.variables(lookahead)) == ["slow/dense/kernel", "slow/norm/mean"]
    variables["norm/mean"].assign([3.0, 4.0])
    lookahead.restart()
    assert lookahead.slow["norm/mean"].numpy().tolist() == [3.0, 4.0]

"""The averaged weights against their definition as a weighted sum."""

import decimal
import math

import numpy as np
import pytest
import tensorflow as tf

from framework import optim, paths
from tests.compile_modes import FAST_MODES, MODES
from tests.optim.variables import make_variables

BOUND = {"float32": 2e-6, "float64": 1e-14}


def weighted(history, decay):
    """Sum of (1 - d) d**(t - i) w_i / (1 - d**t)."""
    t = len(history)
    whole = -math.expm1(t * math.log(decay))
    return sum((1 - decay) * decay ** (t - i) / whole * w for i, w in enumerate(history, 1))


@pytest.mark.parametrize("precision", BOUND)
@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("decay", [0.3, 0.9, 0.9999])
def test_average_is_the_weighted_sum(decay, mode, precision):
    variables = make_variables(precision)
    average = optim.ExponentialMovingAverage(decay, variables)
    update = MODES[mode](average.after_update)
    rng = np.random.default_rng(2)
    history = {path: [] for path in average.averages}
    for t in range(1, 26):
        for path, seen in history.items():
            variables[path].assign(rng.normal(size=variables[path].shape))
            seen.append(variables[path].numpy().astype(np.float64))
        update(tf.constant(t, tf.int64), tf.constant(t - 1, tf.int64))
        for path, seen in history.items():
            found = average.averages[path]
            assert found.dtype == variables[path].dtype
            wanted = weighted(seen, decay)
            assert np.linalg.norm(found - wanted) < BOUND[precision] * np.linalg.norm(wanted), (t, path)
    assert int(variables["count"]) == 3


@pytest.mark.parametrize("mode", FAST_MODES)
def test_the_first_average_is_the_weights_to_the_bit(mode):
    variables = {"w": tf.Variable([1e8, -3.0, 0.1])}
    average = optim.ExponentialMovingAverage(0.9999, variables)
    assert average.averages["w"].numpy().tolist() == variables["w"].numpy().tolist()
    first = np.array([1.1, -0.0, 3e-5], np.float32)
    variables["w"].assign(first)
    MODES[mode](average.after_update)(tf.constant(1, tf.int64), tf.constant(0, tf.int64))
    assert average.averages["w"].numpy().tobytes() == first.tobytes()


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("decay", [0.9, 0.9999, 0.999999])
def test_the_share_of_the_newest_weights_is_accurate(decay, mode):
    variables = {"w": tf.Variable(np.zeros(()))}
    average = optim.ExponentialMovingAverage(decay, variables)
    update = MODES[mode](average.after_update)
    variables["w"].assign(1.0)
    decimal.getcontext().prec = 50
    exact = decimal.Decimal(decay)
    for t in (2, 3, 10, 1000, 10**5, 10**7):
        average.averages["w"].assign(0.0)
        update(tf.constant(t, tf.int64), tf.constant(t - 1, tf.int64))
        assert float(average.averages["w"]) == pytest.approx(float((1 - exact) / (1 - exact**t)), rel=1e-14)


def test_only_the_averages_of_floating_variables_are_tracked():
    variables = make_variables("float32")
    average = optim.ExponentialMovingAverage(0.9, variables)
    assert list(paths.variables(average)) == ["averages/dense/kernel", "averages/norm/mean"]
    assert all(not variable.trainable for variable in average.averages.values())


def bits(variables):
    return {path: variable.numpy().tobytes() for path, variable in variables.items()}


@pytest.mark.parametrize("mode", FAST_MODES)
def test_swapped_puts_the_averages_in_and_the_weights_back(mode):
    variables = make_variables("float32")
    variables["norm/mean"].assign([math.nan, 1e-40])
    average = optim.ExponentialMovingAverage(0.9, variables)
    update = MODES[mode](average.after_update)
    for t in (1, 2):
        variables["dense/kernel"].assign_add(tf.ones((3, 2)))
        update(tf.constant(t, tf.int64), tf.constant(t - 1, tf.int64))
    own, averages = bits(variables), bits(average.averages)
    with average.swapped():
        assert bits(variables) == {**own, **averages}
        assert bits(variables) != own
    assert bits(variables) == own
    with pytest.raises(KeyError, match="planted"), average.swapped():
        variables["dense/kernel"].assign_add(tf.ones((3, 2)))
        raise KeyError("planted")
    assert bits(variables) == own
    assert bits(average.averages) == averages

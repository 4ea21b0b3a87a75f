"""Gradient clipping against NumPy."""

import math

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from framework import optim
from tests.compile_modes import FAST_MODES, MODES

BOUND = {"float32": 2e-6, "float64": 1e-14}
SHAPES = {"conv/kernel": (3, 3, 2, 4), "dense/kernel": (5, 6), "dense/bias": (6,), "scale": ()}


def make_settings(name, threshold=1.0, exclude=""):
    return ConfigDict({"name": name, "threshold": threshold, "exclude": exclude})


def make_tensors(seed, dtype, size=1.0):
    rng = np.random.default_rng(seed)
    return {path: np.asarray(size * rng.normal(size=shape), dtype) for path, shape in SHAPES.items()}


def make_clip(settings, weights, mode):
    """NumPy gradients -> NumPy gradients."""
    variables = {path: tf.Variable(w) for path, w in weights.items()}
    compiled = MODES[mode](
        lambda gradients: optim.clip(gradients, variables, settings, optim.global_norm(gradients.values()))
    )

    def clip(gradients):
        found = compiled({path: tf.constant(g) for path, g in gradients.items()})
        return {path: g.numpy() for path, g in found.items()}

    return clip


def clipped(settings, gradients, weights, mode="eager"):
    return make_clip(settings, weights, mode)(gradients)


def units(tensor, function):
    """`function` of each unit: index of the last axis, or all of a vector or scalar."""
    if tensor.ndim <= 1:
        return function(tensor)
    return np.stack([function(tensor[..., index]) for index in range(tensor.shape[-1])], -1)


def adapted(gradient, weights, threshold):
    def one(both):
        g, w = np.split(both, 2)
        norm, longest = np.linalg.norm(g), threshold * max(np.linalg.norm(w), 1e-3)
        return g * longest / norm if norm > longest else g

    columns = (1, -1) if gradient.ndim <= 1 else (-1, gradient.shape[-1])
    g, w = gradient.reshape(columns), weights.reshape(columns)
    if gradient.ndim <= 1:
        g, w = g.T, w.T
    return units(np.concatenate([g, w]), one).reshape(gradient.shape)


def reference(name, gradients, weights, threshold):
    gradients = {path: g.astype(np.float64) for path, g in gradients.items()}
    norms = {path: np.linalg.norm(np.ravel(g)) for path, g in gradients.items()}
    norm = math.sqrt(sum(value**2 for value in norms.values()))
    formula = {
        "none": lambda path, g: g,
        "global_norm": lambda path, g: g * min(1, threshold / norm),
        "value": lambda path, g: np.clip(g, -threshold, threshold),
        "variable_norm": lambda path, g: g * min(1, threshold / norms[path]),
        "adaptive": lambda path, g: adapted(g, weights[path].astype(np.float64), threshold),
    }[name]
    return {path: formula(path, g) for path, g in gradients.items()}


CASES = {"none": 1.0, "global_norm": 0.7, "value": 0.7, "variable_norm": 2.5, "adaptive": 0.9}


@pytest.mark.parametrize("precision", BOUND)
@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_clipped_as_the_formula_says(name, mode, precision):
    weights = make_tensors(1, precision)
    clip = make_clip(make_settings(name, CASES[name]), weights, mode)
    for seed in range(2, 23):
        gradients = make_tensors(seed, precision)
        found = clip(gradients)
        wanted = reference(name, gradients, weights, CASES[name])
        assert list(found) == list(gradients)
        for path, g in found.items():
            assert g.dtype == precision
            assert np.abs(g - wanted[path]).max() < BOUND[precision], path
    changed = {path for path in found if not np.array_equal(found[path], gradients[path])}
    assert bool(changed) == (name != "none")


def test_adaptive_clipping_is_by_unit():
    weights = {"w": np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]])}
    gradients = {"w": np.array([[6.0, 1.0, 0.25], [8.0, 0.0, 0.0]])}
    found = clipped(make_settings("adaptive", 0.5), gradients, weights)["w"]
    # Norms 10, 1 and 0.25 against half of 5, of the least 0.001, and of 1.
    assert found == pytest.approx(np.array([[1.5, 0.0005, 0.25], [2.0, 0.0, 0.0]]), rel=1e-14)


def test_adaptive_clipping_leaves_out_what_is_excluded():
    weights, gradients = make_tensors(1, "float64"), make_tensors(2, "float64")
    found = clipped(make_settings("adaptive", 0.01, "dense/.*|scal"), gradients, weights)
    wanted = reference("adaptive", gradients, weights, 0.01)
    for path in ("dense/kernel", "dense/bias"):
        assert np.array_equal(found[path], gradients[path])
    for path in ("conv/kernel", "scale"):  # 'scal' is not the whole of it
        assert found[path] == pytest.approx(wanted[path], rel=1e-13)


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_within_the_bound_keep_their_bits(name, mode):
    for precision in BOUND:
        weights = {path: w + 1 for path, w in make_tensors(1, precision, size=0.01).items()}
        gradients = make_tensors(2, precision, size=1e-3)
        found = clipped(make_settings(name, 0.3), gradients, weights, mode)
        assert all(found[path].tobytes() == g.tobytes() for path, g in gradients.items()), precision


@pytest.mark.parametrize("mode", FAST_MODES)
def test_a_norm_of_exactly_the_threshold_is_within_it(mode):
    gradients = {"w": np.array([3.0, 4.0, -0.0], np.float32)}
    found = clipped(make_settings("global_norm", 5.0), gradients, gradients, mode)["w"]
    assert found.tobytes() == gradients["w"].tobytes()


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_zero_stay_zero(name, mode):
    zeros = {path: np.zeros(shape, np.float32) for path, shape in SHAPES.items()}
    found = clipped(make_settings(name, 1e-12), zeros, zeros, mode)
    assert all(np.array_equal(found[path], g) for path, g in zeros.items())


@pytest.mark.parametrize("mode", FAST_MODES)
def test_global_norm_is_the_norm_of_all(mode):
    tensors = make_tensors(3, "float64")
    wanted = np.linalg.norm(np.concatenate([np.ravel(tensor) for tensor in tensors.values()]))
    for dtypes, dtype, bound in (
        (["float64"] * 4, tf.float64, 1e-15),
        (["float32"] * 4, tf.float32, 2e-7),
        (["float32", "float64", "float32", "float32"], tf.float64, 1e-7),
    ):
        parts = [tf.constant(tensor, kind) for tensor, kind in zip(tensors.values(), dtypes, strict=True)]
        found = MODES[mode](lambda parts: optim.global_norm(parts))(parts)
        assert found.dtype == dtype and found.shape == ()
        assert float(found) == pytest.approx(wanted, rel=bound)


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("size", [1023, 1024, 1039, 784 * 128])
def test_global_norm_sums_every_element_of_a_long_tensor(size, mode):
    norm = MODES[mode](lambda x: optim.global_norm([x]))
    x = np.random.default_rng(size).normal(size=size)
    assert float(norm(tf.constant(x))) == pytest.approx(np.linalg.norm(x), rel=1e-14)
    assert float(norm(tf.constant(x, tf.float32))) == pytest.approx(np.linalg.norm(x), rel=5e-7)
    for place in (0, size // 2, size - 1):
        for bad in (np.nan, np.inf, -np.inf):  # the finite check of the step reads this
            spoiled = np.where(np.arange(size) == place, bad, x)
            assert not np.isfinite(norm(tf.constant(spoiled))), (place, bad)


def test_global_norm_adds_in_an_order_of_its_own():
    """tf.add_n begins with whichever operand's memory is free: the same step had two norms, one call in twelve."""
    norm = tf.function(lambda: optim.global_norm([tf.zeros([3])] * 5), autograph=False)
    assert "AddN" not in {op.type for op in norm.get_concrete_function().graph.get_operations()}


def test_global_norm_of_halves_does_not_overflow():
    assert float(optim.global_norm([tf.fill([4], tf.constant(3e4, tf.float16))])) == pytest.approx(60_000, rel=1e-3)
    assert float(optim.global_norm([])) == 0.0

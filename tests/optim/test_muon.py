"""Muon against its published recipe, written down in float64 NumPy in the layout of its authors: [out, in * k * k]."""

import numpy as np
import pytest
import tensorflow as tf

from framework import optim
from framework.optim.muon import orthogonal, rescaled
from tests.compile_modes import FAST_MODES, MODES

RATE, MOMENTUM = 0.24, 0.6
# More rows than columns, fewer, and square; of convolutions in two and one dimensions, and of dense layers.
SHAPES = {"tall": (3, 3, 2, 5), "wide": (1, 1, 4, 7), "square": (2, 2, 2, 8), "series": (3, 2, 4), "dense": (6, 3)}


def rows(kernel):
    """Returns [out, in * k * k] of a kernel [k, k, in, out]."""
    return np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)


def kernel_of(matrix, shape):
    return np.moveaxis(matrix.reshape(shape[-1], *shape[:-1]), 0, -1)


def newton_schulz(g, steps):
    x = g / (np.linalg.norm(g) + 1e-7)
    if x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


class Recipe:
    """One filter tensor: buf <- m buf + g; p <- p sqrt(out) / |p|; p <- p - lr * orthogonalised (g + m buf or buf)."""

    def __init__(self, kernel, nesterov, steps, rescales, decay):
        self.p, self.buf = rows(kernel), np.zeros_like(rows(kernel))
        self.nesterov, self.steps, self.rescales, self.decay = nesterov, steps, rescales, decay

    def update(self, kernel):
        g = rows(kernel)
        self.buf = MOMENTUM * self.buf + g
        if self.rescales:
            self.p = self.p * (len(self.p) ** 0.5 / np.linalg.norm(self.p))
        self.p = self.p - RATE * self.decay * self.p
        self.p = self.p - RATE * newton_schulz(g + MOMENTUM * self.buf if self.nesterov else self.buf, self.steps)


def make(variables, rate=RATE, steps=5, dtype="", rescales=False, **settings):
    updates, dtype = tf.Variable(0, dtype=tf.int64), next(iter(variables.values())).dtype
    schedule = optim.learning_rate(lambda update: tf.constant(rate, tf.float64), updates, dtype)
    return optim.Optimizer([(optim.Muon(steps, dtype, rescales, learning_rate=schedule, **settings), variables)])


@pytest.mark.parametrize(
    ("mode", "nesterov", "steps", "rescales", "decay"),
    [
        ("eager", True, 3, True, 0.0),
        ("eager", False, 5, False, 0.1),
        ("graph", True, 5, False, 0.1),
        ("xla", True, 5, True, 0.1),
    ],
)
def test_ten_updates_are_those_of_the_recipe(mode, nesterov, steps, rescales, decay):
    rng = np.random.default_rng(1)
    kernels = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
    variables = {path: tf.Variable(kernel) for path, kernel in kernels.items()}
    momentum = np.float64(MOMENTUM)
    optimizer = make(
        variables, steps=steps, rescales=rescales, momentum=momentum, nesterov=nesterov, decay=np.float64(decay)
    )
    recipes = {path: Recipe(kernel, nesterov, steps, rescales, decay) for path, kernel in kernels.items()}
    update = MODES[mode](optimizer.apply)
    for count in range(10):
        gradients = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
        update({path: tf.constant(g) for path, g in gradients.items()})
        for path, recipe in recipes.items():
            recipe.update(gradients[path])
            wanted = kernel_of(recipe.p, SHAPES[path])
            np.testing.assert_allclose(variables[path].numpy(), wanted, rtol=0, atol=1e-12, err_msg=f"{count} {path}")


def polynomial(singular, steps):
    for _ in range(steps):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return singular


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_vectors_stay_and_singular_values_move_to_about_one(shape):
    kernel = np.random.default_rng(2).normal(size=shape)
    matrix = kernel.reshape(-1, shape[-1])
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    wanted = left @ np.diag(polynomial(values / np.sqrt((values**2).sum()), 5)) @ right
    found = orthogonal(tf.constant(kernel), 5).numpy().reshape(matrix.shape)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)  # the number added to the norm is 1e-7
    assert 0.6 < np.linalg.svd(found, compute_uv=False).min() <= np.linalg.svd(found, compute_uv=False).max() < 1.25


def test_the_iteration_in_bfloat16_rounds_to_bfloat16_and_weights_stay_float32():
    kernel = np.random.default_rng(3).normal(size=(3, 3, 4, 8)).astype(np.float32)
    full, half = orthogonal(tf.constant(kernel), 3).numpy(), orthogonal(tf.constant(kernel), 3, "bfloat16").numpy()
    assert full.dtype == half.dtype == np.float32
    assert np.array_equal(tf.cast(tf.cast(half, tf.bfloat16), tf.float32).numpy(), half)
    assert 1e-4 < np.linalg.norm(half - full) / np.linalg.norm(full) < 3e-2


@pytest.mark.parametrize("mode", FAST_MODES)
def test_zeros_stay_zeros_and_move_nothing(mode):
    """The kernel of a block that starts as the identity is 0, and so is the gradient of what a head of zeros reads."""
    variables = {"zero": tf.Variable(tf.zeros([3, 3, 2, 4])), "still": tf.Variable(tf.ones([4, 4]))}
    optimizer = make(variables, rescales=True)
    MODES[mode](optimizer.apply)({path: tf.zeros(variable.shape) for path, variable in variables.items()})
    assert not variables["zero"].numpy().any()
    assert variables["still"].numpy() == pytest.approx(0.5)  # 16 equal numbers of norm 2
    assert np.linalg.norm(rescaled(tf.random.stateless_normal([3, 3, 2, 4], [1, 2]))) == pytest.approx(2, rel=1e-6)


def test_vectors_and_scalars_are_those_of_sgd_to_the_bit():
    rng = np.random.default_rng(4)
    pairs = {name: {"bias": tf.Variable(np.ones(5)), "scale": tf.Variable(2.0, dtype=tf.float64)} for name in "ab"}
    settings = {"momentum": np.float64(0.85), "nesterov": True, "decay": np.float64(0.1)}
    muon = make(pairs["a"], **settings)
    sgd = optim.Optimizer([(optim.Sgd(learning_rate=muon.groups[0]._learning_rate, **settings), pairs["b"])])
    for _ in range(3):
        gradients = {"bias": tf.constant(rng.normal(size=5)), "scale": tf.constant(rng.normal(), tf.float64)}
        muon.apply(gradients)
        sgd.apply(gradients)
    for path in pairs["a"]:
        assert pairs["a"][path].numpy().tobytes() == pairs["b"][path].numpy().tobytes()

"""The loop against independent ones on MNIST: tf_keras `fit`, and an MLP in NumPy.

From the same weights, over the same batches, without dropout, 200 steps of each must end in the same weights.
"""

import functools
import itertools
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, precision
from framework.config.overrides import override
from framework.experiment import load
from framework.run import build as run

STEPS, WARMUP, L2 = 200, 20, 1e-3
PEAK = {"sgd": 0.02, "adam": 1e-3, "adamw": 1e-3}
ORDERS = (0, 1, 2)

OPTIMIZERS = {
    "sgd": {"optimizer.name": "sgd", "optimizer.momentum": 0.9},
    "adam": {"optimizer.name": "adam"},
    "adamw": {"optimizer.name": "adamw", "optimizer.weight_decay": 0.01},
}
VARIANTS = {
    "l2": {"schedule.name": "constant", "schedule.warmup": "", "model.l2": L2},
    "cosine": {"schedule.name": "cosine", "schedule.warmup": f"{WARMUP} steps", "schedule.final_fraction": 0.1},
}
CASES = list(itertools.product(OPTIMIZERS, VARIANTS))
# What `make test` runs: in float64 each optimizer and each variant, of which XLA compiles one. In float32 it compares
# the step with that of NumPy in float64 (tests/test_equivalence.py).
FAST = {"float64": {("sgd", "l2"), ("adam", "cosine"), ("adamw", "l2")}, "float32": set(), "xla": {("adam", "cosine")}}


def cases(kind):
    return [pytest.param(*case, marks=() if case in FAST[kind] else pytest.mark.slow) for case in CASES]


def build(optimizer, variant, order, dtype, mode="graph", **more):
    """A run on MNIST; `order` is the seed of the data order alone, the weights are always those of seed 0."""
    loaded = load.load("experiments/mnist_mlp.py")
    overrides = {
        "train.duration": f"{STEPS} steps",
        "train.block_steps": 64,
        "train.precision": dtype,
        "train.compile": mode,
        "schedule.learning_rate": PEAK[optimizer],
        "model.dropout": 0.0,
        "data.batch_size": 128,
        "seed": order,
        **OPTIMIZERS[optimizer],
        **VARIANTS[variant],
        **more,
    }
    final = config.finalize(override(loaded.get_config(), overrides))
    built = run.build_run(loaded, final, None, time.monotonic())
    for variable, value in zip(built.model.trainable_variables, initial_weights(), strict=True):
        variable.assign(tf.cast(value, variable.dtype))
    return built


def initial_weights():
    rng = np.random.default_rng(11)
    return [rng.normal(0, 0.05, (784, 128)), np.zeros(128), rng.normal(0, 0.1, (128, 10)), np.zeros(10)]


@functools.cache
def ours(optimizer, variant, order, dtype, mode):
    """Weights after 200 steps in blocks of several lengths."""
    built = build(optimizer, variant, order, dtype, mode)
    for k in (1, 64, 64, 7, 64):
        built.train_block(k)
    assert int(built.state.step) == int(built.state.updates) == STEPS
    return weights_of(built.model)


class Fit:
    """tf_keras `fit` of the same model on the batches of our order; compiled once, run from the start each time."""

    def __init__(self, optimizer, variant, dtype, jit_compile):
        self.optimizer, self.variant, self.dtype = optimizer, variant, dtype
        # tf_keras makes a float32 of a Python float first, also under float64; a NumPy float64 keeps its value.
        number = np.float64 if dtype == "float64" else float
        peak = rate = number(PEAK[optimizer])
        if variant == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(
                number(0), STEPS - WARMUP, number(0.1), warmup_target=peak, warmup_steps=WARMUP
            )
        with precision.scope(dtype):
            penalty = {"kernel_regularizer": keras.regularizers.L2(L2)} if variant == "l2" else {}
            self.model = keras.Sequential(
                [
                    keras.layers.Flatten(input_shape=(28, 28)),
                    keras.layers.Dense(128, activation="relu", **penalty),
                    keras.layers.Dense(10, **penalty),
                ]
            )
            moments = {"beta_1": number(0.9), "beta_2": number(0.999), "epsilon": number(1e-7)}
            make = {
                "sgd": lambda: keras.optimizers.SGD(rate, momentum=number(0.9)),
                "adam": lambda: keras.optimizers.Adam(rate, **moments),
                "adamw": lambda: keras.optimizers.AdamW(rate, weight_decay=number(0.01), **moments),
            }[optimizer]
            self.model.compile(
                make(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit_compile
            )
            self.model.optimizer.build(self.model.trainable_variables)
        self.start = [variable.numpy() for variable in self.model.optimizer.variables]

    def __call__(self, order):
        images, labels = batches_of(order, self.dtype)
        with precision.scope(self.dtype):
            self.model.set_weights(initial_weights())
            for variable, value in zip(self.model.optimizer.variables, self.start, strict=True):
                variable.assign(value)
            self.model.fit(tf.data.Dataset.from_tensor_slices((images, labels)), epochs=1, verbose=0)
        assert int(self.model.optimizer.iterations) == STEPS
        return weights_of(self.model)


@functools.cache
def batches_of(order, dtype):
    """Images [200, 128, 28, 28] and labels [200, 128] in the order that the loop sees."""
    data = build("sgd", "l2", order, dtype).data
    plan = data.plan(0, STEPS, STEPS)
    batches = [data.take(plan, tf.constant(step)) for step in range(STEPS)]
    return tuple(np.stack([batch[name].numpy() for batch in batches]) for name in ("image", "label"))


def weights_of(model):
    return np.concatenate([variable.numpy().astype(np.float64).ravel() for variable in model.trainable_variables])


def distance(left, right):
    """Relative L2."""
    return np.linalg.norm(left - right) / np.linalg.norm(right)


@functools.cache
def fitted(optimizer, variant):
    """Weights after 200 steps of `fit` in float64."""
    return Fit(optimizer, variant, "float64", jit_compile=False)(ORDERS[0])


@pytest.mark.parametrize(("optimizer", "variant"), cases("float64"))
def test_float64_ends_in_the_weights_of_fit(optimizer, variant):
    assert distance(ours(optimizer, variant, ORDERS[0], "float64", "graph"), fitted(optimizer, variant)) <= 1e-9


@pytest.mark.parametrize(("optimizer", "variant"), cases("xla"))
def test_float64_ends_in_the_weights_of_fit_by_xla_too(optimizer, variant):
    assert distance(ours(optimizer, variant, ORDERS[0], "float64", "xla"), fitted(optimizer, variant)) <= 1e-9


def check_float32(optimizer, variant, orders):
    graph = Fit(optimizer, variant, "float32", jit_compile=False)
    xla = Fit(optimizer, variant, "float32", jit_compile=True)
    references = {order: (graph(order), xla(order)) for order in ORDERS}
    own = max(distance(left, right) for left, right in references.values())
    for order, mode in itertools.product(orders, ("graph", "xla")):
        mine = ours(optimizer, variant, order, "float32", mode)
        for reference in references[order]:
            assert distance(mine, reference) <= min(2 * own, 1e-4)


@pytest.mark.parametrize(("optimizer", "variant"), cases("float32"))
def test_float32_is_no_further_from_fit_than_fit_from_itself(optimizer, variant):
    check_float32(optimizer, variant, ORDERS[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "variant"), CASES)
def test_float32_over_every_order(optimizer, variant):
    check_float32(optimizer, variant, ORDERS)


def test_data_orders_differ():
    assert distance(*(ours("sgd", "l2", order, "float64", "graph") for order in (0, 1))) > 1e-3


@pytest.mark.parametrize("mode", ["graph", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("xla", "eager"))])
def test_float64_sgd_is_that_of_numpy(mode):
    built = build("sgd", "cosine", 0, "float64", mode, **{"model.l2": L2})
    weights, velocity = initial_weights(), [0.0] * 4
    for step in range(STEPS):
        batch = {name: tensor.numpy() for name, tensor in built.data.at(step).items()}
        gradients = numpy_gradients(weights, batch["image"].reshape(-1, 784), batch["label"])
        rate = numpy_cosine(step)
        velocity = [0.9 * v - rate * g for v, g in zip(velocity, gradients, strict=True)]
        weights = [w + v for w, v in zip(weights, velocity, strict=True)]
    for k in (64, 64, 64, 8):
        built.train_block(k)
    assert distance(weights_of(built.model), np.concatenate([w.ravel() for w in weights])) <= 1e-12


def numpy_cosine(update):
    if update < WARMUP:
        return PEAK["sgd"] * update / WARMUP
    share = 0.5 * (1 + np.cos(np.pi * (update - WARMUP) / (STEPS - WARMUP)))
    return PEAK["sgd"] * (0.9 * share + 0.1)


def numpy_gradients(weights, x, label):
    """Of the mean cross-entropy of a 784-128-10 net plus L2 of its kernels."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    logits = hidden @ w2 + b2
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = share / share.sum(axis=1, keepdims=True)
    error[np.arange(len(x)), label] -= 1
    error /= len(x)
    back = (error @ w2.T) * (hidden > 0)
    return [x.T @ back + 2 * L2 * w1, back.sum(axis=0), hidden.T @ error + 2 * L2 * w2, error.sum(axis=0)]


def test_a_step_of_padding_and_weights_is_the_mean_over_real_examples():
    """A batch of 608 examples and 416 paddings updates as one of 608; a mean over 1,024 would be off by 40 %."""
    built = build("sgd", "l2", 0, "float64", **{"data.remainder": "pad", "data.batch_size": 1024})
    built.state.step.assign(58)
    whole = built.data.at(58)
    assert int(tf.reduce_sum(whole["weight"])) == 60_000 - 58 * 1024
    before = [variable.numpy() for variable in built.model.trainable_variables]
    real = whole["weight"].numpy() == 1
    gradients = numpy_gradients(before, whole["image"].numpy()[real].reshape(-1, 784), whole["label"].numpy()[real])
    velocity = [built.state.optimizer.groups[0].momentums[i].numpy() for i in range(4)]
    row = built.train_block(1).row(0)
    after = [variable.numpy() for variable in built.model.trainable_variables]
    for old, new, v, g in zip(before, after, velocity, gradients, strict=True):
        np.testing.assert_allclose(new, old + 0.9 * v - PEAK["sgd"] * g, rtol=0, atol=1e-14)
    assert row["gradient_norm"] == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradients)), rel=1e-12)

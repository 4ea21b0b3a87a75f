"""`tf.custom_gradient` through the whole step: gradients that are none of the function, against NumPy in float64."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, paths, precision
from framework.data.batches import make_batches
from framework.data.sources import Source
from tests.small import BATCH, build

UPDATES, EXAMPLES, FEATURES, HIDDEN = 4, 58, 5, 8
RATE, REVERSAL = 0.1, 0.7
# Updates differ by the rounding of half precision, relative to what the weights have moved by.
BOUNDS = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}
CASES = [("eager", 1, "body", "float64"), ("eager", 4, "", "float64"), ("graph", 1, "", "float64")]
CASES += [("graph", 4, "body", "float64"), ("xla", 4, "", "float64"), ("xla", 4, "body", "float32")]
CASES += [("graph", 4, "body", "float16"), ("graph", 1, "", "bfloat16")]
# What those of `make test` combine otherwise.
SLOW_CASES = [("eager", 1, ""), ("eager", 4, "body"), ("graph", 1, "body"), ("graph", 4, ""), ("xla", 1, "body")]
CASES += [pytest.param(*case, "float64", marks=pytest.mark.slow) for case in SLOW_CASES]
CASES += [pytest.param("xla", 4, "", "float16", marks=pytest.mark.slow)]


@tf.custom_gradient
def reversed_gradient(x):
    """Gradient reversal (Ganin and Lempitsky, 2015)."""
    return tf.identity(x), lambda upstream: -tf.constant(REVERSAL, upstream.dtype) * upstream


@tf.custom_gradient
def squared(x):
    """Straight through: its gradient is that of the identity."""
    return tf.square(x), lambda upstream: upstream


class Scaled(keras.layers.Layer):
    """x * scale, whose variable gets twice its gradient."""

    def build(self, shape):
        self.scale = self.add_weight("scale", [HIDDEN], initializer="ones")

    def call(self, x):
        @tf.custom_gradient
        def scaled(x):
            scale = tf.cast(self.scale, x.dtype)

            def backwards(upstream, variables=None):
                assert len(variables) == 1
                twice = 2 * tf.reduce_sum(tf.cast(upstream * x, self.scale.dtype), axis=0)
                return upstream * scale, [twice]

            return x * scale, backwards

        return scaled(x)


class Body(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="body")
        self.dense, self.scaled = keras.layers.Dense(HIDDEN, "tanh", use_bias=False), Scaled()

    def call(self, x):
        return squared(self.scaled(self.dense(x)))


class Net(keras.Model):
    """A label and, through the reversal, a domain."""

    def __init__(self, dtype):
        super().__init__()
        self.body = Body()
        self.label = keras.layers.Dense(1, use_bias=False, dtype=dtype)
        self.domain = keras.layers.Dense(1, use_bias=False, dtype=dtype)

    def call(self, x):
        hidden = self.body(x)
        return self.label(hidden)[:, 0], self.domain(reversed_gradient(hidden))[:, 0]


def make_data(cfg, split):
    draw = np.random.default_rng(4)
    names = {"x": [EXAMPLES, FEATURES], "label": [EXAMPLES], "domain": [EXAMPLES]}
    fields = {
        name: draw.normal(size=shape).astype(precision.full(cfg.train.precision)) for name, shape in names.items()
    }
    return make_batches(Source(fields, origin="made up"), cfg, training=split == "train")


def make_loss(cfg):
    def loss(model, batch, training):
        found = dict(zip(("label", "domain"), model(batch["x"]), strict=True))
        weight = tf.cast(batch["weight"], found["label"].dtype)
        return {
            name: losses.Term(tf.reduce_sum(tf.square(y - batch[name]) * weight), tf.reduce_sum(weight))
            for name, y in found.items()
        }, {}

    return loss


def start():
    draw = np.random.default_rng(9)
    shapes = {"body/dense/kernel": (FEATURES, HIDDEN), "label/kernel": (HIDDEN, 1), "domain/kernel": (HIDDEN, 1)}
    return {path: draw.normal(0, 0.5, shape) for path, shape in shapes.items()} | {
        "body/scaled/scale": draw.uniform(0.5, 1.5, HIDDEN)
    }


def reference(batches):
    w = start()
    for batch in batches:
        weight = batch["weight"].astype(np.float64)
        dense = np.tanh(batch["x"].astype(np.float64) @ w["body/dense/kernel"])
        hidden = (dense * w["body/scaled/scale"]) ** 2
        gradients, d_hidden = {}, 0
        for name, factor in (("label", 1), ("domain", -REVERSAL)):
            kernel = w[f"{name}/kernel"]
            d_y = (2 * ((hidden @ kernel)[:, 0] - batch[name]) * weight / weight.sum())[:, None]
            gradients[f"{name}/kernel"] = hidden.T @ d_y
            d_hidden = d_hidden + factor * d_y @ kernel.T
        gradients["body/scaled/scale"] = 2 * (d_hidden * dense).sum(axis=0)
        back = d_hidden * w["body/scaled/scale"] * (1 - dense**2)
        gradients["body/dense/kernel"] = batch["x"].T @ back
        w = {path: value - RATE * gradients[path] for path, value in w.items()}
    return w


@pytest.mark.parametrize(("mode", "micro", "remat", "dtype"), CASES)
def test_gradients_of_the_experiments_own(mode, micro, remat, dtype):
    functions = {
        "make_data": make_data,
        "make_model": lambda cfg: Net(precision.full(cfg.train.precision)),
        "make_loss": make_loss,
    }
    settings = {
        "data.remainder": "pad",
        "train.duration": f"{UPDATES} steps",
        "train.compile": mode,
        "train.micro_batches": micro,
        "train.remat": remat,
        "train.precision": dtype,
        "optimizer.name": "sgd",
        "schedule.name": "constant",
        "schedule.learning_rate": RATE,
        "schedule.warmup": "",
    }
    built = build(functions=functions, **settings)
    variables = paths.variables(built.model)
    for path, value in start().items():
        variables[path].assign(value)
    batches = [{name: tensor.numpy() for name, tensor in built.data.at(step).items()} for step in range(UPDATES)]
    assert batches[-1]["weight"].sum() == EXAMPLES % BATCH
    built.train_block(UPDATES)
    assert int(built.state.updates) == UPDATES
    assert (built.state.loss_scale is not None) == (dtype == "float16")
    for path, wanted in reference(batches).items():
        error = np.linalg.norm(variables[path].numpy() - wanted)
        assert error <= BOUNDS[dtype] * np.linalg.norm(wanted - start()[path]), path

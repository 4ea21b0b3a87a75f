"""framework/optim/freezing.py: a frozen layer stays as it is, with its moving averages, or is refused."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.config import UserError
from framework.losses import Term
from tests.small import build

BACKBONE = "(first|norm)/.*: frozen"


def trained(groups, make_model=None, steps=4, **settings):
    """The run and {path: values} of its model before and after some steps."""
    functions = {} if make_model is None else {"make_model": make_model}
    run = build(functions=functions, **{"optimizer.groups": groups, **settings})
    before = {path: v.numpy() for path, v in paths.variables(run.model).items()}
    run.train_block(steps)
    return run, before, {path: v.numpy() for path, v in paths.variables(run.model).items()}


def still(before, after):
    return {path for path in before if before[path].tobytes() == after[path].tobytes()}


NORM = {f"norm/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")}
FIRST = {"first/kernel", "first/bias"}


@pytest.mark.parametrize("mode", ["graph", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("xla", "eager"))])
def test_the_moving_averages_of_a_frozen_layer_stay(mode):
    run, before, after = trained((BACKBONE,), **{"train.compile": mode})
    assert still(before, after) == NORM | FIRST
    assert list(run.state.optimizer.trained) == ["last/kernel", "last/bias"]


def test_a_frozen_layer_normalises_by_its_moving_averages():
    """The loss of the first step is that of the model in inference mode, of which nothing is dropped here."""

    def make_model(cfg):
        norm = keras.layers.BatchNormalization(
            name="norm",
            moving_mean_initializer=keras.initializers.Constant(0.3),
            moving_variance_initializer=keras.initializers.Constant(2.5),
        )
        return keras.Sequential([keras.Input([6]), norm, keras.layers.Dense(3, name="last", dtype="float32")])

    _, before, after = trained(("norm/.*: frozen",), make_model, steps=1)
    fresh = build(functions={"make_model": make_model}, **{"optimizer.groups": ("norm/.*: frozen",)})
    batch = fresh.data.at(0)
    normed = (batch["x"].numpy() - 0.3) / np.sqrt(2.5 + 1e-3)
    logits = normed @ before["last/kernel"] + before["last/bias"]
    wanted = -np.mean((logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(16), batch["label"].numpy()])
    assert fresh.train_block(1).row(0)["loss"] == pytest.approx(wanted, rel=1e-5)
    assert still(before, after) >= NORM


def test_a_layer_is_frozen_as_a_whole_or_not_at_all():
    _, before, after = trained(("norm/gamma: frozen",))
    assert still(before, after) == {"norm/gamma"}  # beta is trained, so the averages move


def test_a_layer_without_weights_is_frozen_by_its_pattern():
    def make_model(cfg):
        def norm(name):
            return keras.layers.BatchNormalization(center=False, scale=False, name=name)

        dense = keras.layers.Dense(4, name="first")
        return keras.Sequential([dense, norm("first_norm"), norm("other"), keras.layers.Dense(3, name="last")])

    _, before, after = trained(("first.*: frozen",), make_model)
    assert still(before, after) == FIRST | {"first_norm/moving_mean", "first_norm/moving_variance"}


@pytest.mark.slow
def test_a_frozen_layer_is_so_on_replicas():
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
    _, before, after = trained((BACKBONE,), **mirrored)
    assert still(before, after) == NORM | FIRST


class Counts(keras.layers.Layer):
    """Counts its calls in training, whether it is trained or not."""

    def build(self, shape):
        self.scale = self.add_weight("scale", shape=(), initializer="ones")
        self.calls = self.add_weight("calls", shape=(), initializer="zeros", trainable=False)

    def call(self, inputs, training=False):
        if training:
            self.calls.assign_add(1.0)
        return inputs * self.scale


def counting(cfg):
    return keras.Sequential([Counts(name="counts"), keras.layers.Dense(3, name="last")])


class Spectral(keras.layers.Dense):
    """A kernel of spectral norm 1, by one power iteration a call (Miyato et al., 2018)."""

    def build(self, shape):
        super().build(shape)
        self.u = self.add_weight("u", shape=[1, self.units], initializer="ones", trainable=False)

    def call(self, inputs, training=False):
        v = tf.math.l2_normalize(tf.matmul(self.u, self.kernel, transpose_b=True))
        u = tf.math.l2_normalize(tf.matmul(v, self.kernel))
        if training:
            self.u.assign(tf.stop_gradient(u))
        return super().call(inputs) / tf.squeeze(tf.matmul(tf.matmul(v, self.kernel), u, transpose_b=True))


def spectral(cfg):
    return keras.Sequential([Spectral(4, name="spectral"), keras.layers.Dense(3, name="last")])


@pytest.mark.parametrize(
    ("make_model", "pattern", "moved"),
    [(counting, "counts/.*", "counts/calls"), (spectral, "spectral/.*", "spectral/u")],
)
def test_a_frozen_layer_that_moves_all_the_same_is_refused(make_model, pattern, moved):
    with pytest.raises(UserError) as error:
        build(functions={"make_model": make_model}, **{"optimizer.groups": (f"{pattern}: frozen",)})
    assert str(error.value).startswith(f"'{moved}' is frozen by optimizer.groups, but the forward pass assigns to it")


@pytest.mark.parametrize(
    ("make_model", "named"),
    [(counting, "Counts moves 'counts/calls'"), (spectral, "Spectral moves 'spectral/u'")],
)
def test_what_a_call_moves_is_refused_under_micro_batches(make_model, named):
    with pytest.raises(UserError) as error:
        build(functions={"make_model": make_model}, **{"train.micro_batches": 2})
    message = str(error.value)
    assert message.startswith("train.micro_batches=2: each call of ") and named in message
    assert message.endswith("2 times an update instead of once. Use --config.train.micro_batches=1.")
    build(functions={"make_model": make_model})


def test_what_a_call_only_reads_in_a_branch_is_not_refused_under_micro_batches():
    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)
            kernel = model.get_layer("last").kernel
            shift = tf.cond(tf.reduce_sum(logits) > 0, lambda: tf.reduce_mean(kernel), lambda: tf.constant(0.0))
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits + shift)
            return {"loss": Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    build(functions={"make_loss": make_loss}, **{"train.micro_batches": 2})

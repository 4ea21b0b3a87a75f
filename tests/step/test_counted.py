"""A number that Python counts up would be a constant of the compiled step: refused where something depends on it."""

import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses
from framework.config import UserError
from tests import small

CALLS = 0


def loss_with(factor):
    """A loss that is factor() times the mean over examples."""

    def make_loss(cfg):
        def loss(model, batch, training):
            values = model(batch["x"], training=training)[:, 0] * factor()
            return {"mean": losses.Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    return {"make_loss": make_loss}


class Annealed(keras.layers.Layer):
    calls = 0

    def call(self, inputs, training=None):
        if training:
            self.calls += 1
        return inputs * min(1.0, self.calls / 10)


def test_a_layer_that_counts_its_calls_is_refused():
    def make_model(cfg):
        return keras.Sequential([Annealed(name="annealed"), keras.layers.Dense(3)])

    with pytest.raises(UserError, match=r"'calls' of layer 'annealed' goes from \d to \d when it is called, and what"):
        small.build(functions={"make_model": make_model})


def in_a_closure():
    calls = 0

    def make_loss(cfg):
        def loss(model, batch, training):
            nonlocal calls
            calls += 1
            values = model(batch["x"], training=training)[:, 0] * (calls / 10)
            return {"mean": losses.Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    return {"make_loss": make_loss}


def in_a_global():
    def make_loss(cfg):
        def loss(model, batch, training):
            global CALLS
            CALLS += 1
            values = model(batch["x"], training=training)[:, 0] * (CALLS / 10)
            return {"mean": losses.Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    return {"make_loss": make_loss}


def in_a_list():
    calls = [0]

    def make_loss(cfg):
        def loss(model, batch, training):
            calls[0] += 1
            values = model(batch["x"], training=training)[:, 0] * (calls[0] / 10)
            return {"mean": losses.Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    return {"make_loss": make_loss}


@pytest.mark.parametrize("functions", [in_a_closure, in_a_global, in_a_list])
def test_a_loss_that_counts_its_calls_is_refused(functions):
    with pytest.raises(UserError, match=r"of the loss goes from \d to \d when it is called"):
        small.build(functions=functions())


def test_a_count_that_nothing_depends_on_is_let_pass():
    calls = [0]

    def factor():
        calls[0] += 1
        return 2.0

    def make_loss(cfg):
        inner = loss_with(factor)["make_loss"](cfg)

        def loss(model, batch, training):
            calls[0] += 1
            return inner(model, batch, training)

        return loss

    assert len(small.build(functions={"make_loss": make_loss}).train_block(2).rows) == 2

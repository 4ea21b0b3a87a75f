"""framework/step/halves.py: means of a batch and of its halves, by hand, and what is said where they differ."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, losses
from framework.step.halves import unlike_halves

BATCH = {"x": [1.0, 2.0, 3.0, 6.0], "y": [0.0, 0.0, 1.0, 1.0], "weight": [1.0, 1.0, 1.0, 1.0]}


def found(loss, batch=BATCH, precision="float32"):
    batch = {name: tf.constant(values) for name, values in batch.items()}
    cfg = config.base_config()
    cfg.train.precision = precision
    return unlike_halves(loss, tf.Module(), batch, config.resolve(config.finalize(cfg), steps_per_epoch=1.0))


def squares(model, batch, training):
    errors = tf.square(batch["x"] - batch["y"]) * batch["weight"]
    return {"squares": losses.Term(tf.reduce_sum(errors), tf.reduce_sum(batch["weight"]))}, {}


@pytest.mark.parametrize("weight", [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
def test_a_sum_over_examples_is_the_same(weight):
    assert found(squares, {**BATCH, "weight": [float(one) for one in weight]}) == []


def test_a_column_beside_a_row():
    def loss(model, batch, training):
        errors = tf.square(batch["x"][:, tf.newaxis] - batch["y"])
        return {"squares": losses.Term(tf.reduce_sum(errors), tf.reduce_sum(batch["weight"]))}, {}

    # All sixteen: twice 1 + 4 + 9 + 36 and twice 0 + 1 + 4 + 25. Of the halves: twice 1 + 4, and twice 4 + 25.
    assert found(loss) == [
        f"term 'squares' of the loss is {160 / 4:.6g} over a batch of 4 and {68 / 4:.6g} over its two halves. Its"
        " weight must be a sum over examples, such as tf.reduce_sum(batch['weight']), and no example may meet another:"
        " is there a [4, 1] beside a [4]? A term that compares examples is losses.Coupled."
    ]


def test_a_constant_weight_is_right_for_one_size_alone():
    def loss(model, batch, training):
        return {"squares": losses.Term(squares(model, batch, training)[0]["squares"].sum, tf.constant(4.0))}, {}

    assert re.match("term 'squares' of the loss is 8.5 over a batch of 4 and 4.25 over its two halves", found(loss)[0])


def test_a_penalty_counts_once_for_each_part():
    def loss(model, batch, training):
        return {
            **squares(model, batch, training)[0],
            "penalty of its own": losses.Term(tf.constant(3.0), tf.ones([])),
        }, {}

    assert found(loss) == []


def test_terms_that_compare_examples_say_so():
    def loss(model, batch, training):
        return {"spread": losses.Coupled(tf.square(tf.reduce_sum(batch["x"])), tf.reduce_sum(batch["weight"]))}, {}

    assert found(loss) == []


@pytest.mark.parametrize("kind", ["mean", "sum", "compares"])
def test_scalars_of_layers_are_means_and_may_compare_rows(kind):
    """A balance of experts is neither a mean nor a sum over rows, and stays allowed."""

    class Adds(keras.layers.Layer):
        def call(self, x):
            mean = tf.reduce_mean(x)
            self.add_loss({"mean": mean, "sum": tf.reduce_sum(x), "compares": mean**2}[kind])
            return x

    layer = Adds()

    def loss(model, batch, training):
        return squares(model, {**batch, "x": layer(batch["x"])}, training)

    batch = {name: tf.constant(values) for name, values in BATCH.items()}
    cfg = config.resolve(config.finalize(config.base_config()), steps_per_epoch=1.0)
    told = unlike_halves(loss, layer, batch, cfg)
    sentence = (
        "what layers add to the loss is 12 over a batch and 6 over its two halves: it grows with the batch, but counts"
        " as a mean over its rows. Write self.add_loss(per_example), of shape [batch], or add a mean."
    )
    assert told == ([sentence] if kind == "sum" else [])


def test_rounding_is_no_difference_and_nan_is_found_elsewhere():
    half = {"x": np.random.default_rng(0).normal(size=1000), "y": np.zeros(1000), "weight": np.ones(1000, np.float32)}

    def loss(model, batch, training):
        values = tf.cast(batch["x"], tf.bfloat16)
        return {"sum": losses.Term(tf.cast(tf.reduce_sum(values**2), tf.float32), tf.reduce_sum(batch["weight"]))}, {}

    assert found(loss, half, "bfloat16") == []
    assert found(squares, {**BATCH, "x": [float("nan")] * 4}) == []


def test_halves_that_cancel_are_rounded_as_what_they_are():
    x = np.float32([1000.1, 0.2, -1000.1, -0.2000001])

    def loss(model, batch, training):
        return {"signed": losses.Term(tf.reduce_sum(batch["x"]), tf.reduce_sum(batch["weight"]))}, {}

    assert found(loss, {"x": x, "weight": np.ones(4, np.float32)}) == []
    x = np.float32([1.1, -1.1000001, 3.3, -3.3])  # each half cancels, the whole in another order
    assert found(loss, {"x": x, "weight": np.ones(4, np.float32)}) == []


def test_what_cannot_be_halved_is_left_alone():
    def of_one_size(model, batch, training):
        return {"squares": losses.Term(squares(model, batch, training)[0]["squares"].sum, tf.constant(4.0))}, {}

    def with_table(model, batch, training):
        found = squares(model, batch, training)[0]["squares"]
        return {"squares": losses.Term(found.sum * tf.reduce_sum(batch["table"]), found.weight)}, {}

    assert found(of_one_size, {name: values[:1] for name, values in BATCH.items()}) == []
    assert found(with_table, {**BATCH, "table": np.arange(14, dtype=np.float32).reshape(7, 2)}) == []

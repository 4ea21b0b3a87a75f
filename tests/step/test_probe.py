"""Draws that a resumed run would not repeat: found wherever they are, refused or logged."""

import logging
import re

import pytest
import tensorflow as tf
import tf_keras as keras

from framework import rng
from framework.config import UserError
from framework.data.batches import make_batches
from framework.distribute import devices
from tests import small

AGAIN = r" that a resumed run would not draw again\. "
ADVICE = AGAIN + r"Use framework\.rng\. Or type --config\.runtime\.deterministic=False\."


def with_layer(layer):
    def make_model(cfg):
        return keras.Sequential([keras.layers.Dense(8, name="first"), layer(), keras.layers.Dense(3, name="last")])

    return {"make_model": make_model}


def noise(like):
    return tf.random.uniform(tf.shape(like), dtype=like.dtype)


def refused(functions, op, **overrides):
    with pytest.raises(UserError) as caught:
        small.build(functions=functions, **overrides)
    layer = rf"'[^']+' \(keras\.layers\.\w+\) draws random numbers{AGAIN}"
    expected = layer if op == "a layer of Keras" else rf"'[^']+' draws random numbers \({op}\){ADVICE}$"
    assert re.match(expected, str(caught.value)), str(caught.value)


def pictures(layer):
    """A layer of pictures, on 8 numbers as a picture of 4 x 2."""
    return keras.Sequential([keras.layers.Reshape((4, 2, 1)), layer, keras.layers.Flatten()])


class Attention(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(2, 4, dropout=0.5)

    def call(self, x, training=None):
        return self.attention(x[:, tf.newaxis], x[:, tf.newaxis], training=training)[:, 0]


def of(function):
    return lambda: keras.layers.Lambda(function)


def in_a_compiled_function(x):
    return tf.function(lambda y: tf.nn.dropout(y, 0.5), jit_compile=True)(x)


def in_a_branch(x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: x + noise(x), lambda: x)


def in_a_loop(x):
    return tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y + noise(y)), (0, x))[1]


def sampled(x):
    """What tf.nn.sampled_softmax_loss and tf.nn.nce_loss draw with."""
    drawn, _, _ = tf.random.log_uniform_candidate_sampler(tf.zeros([1, 1], tf.int64), 1, 8, True, 100)
    return x + tf.cast(drawn, x.dtype)


class OwnGenerator(keras.layers.Layer):
    """Even a generator that the model tracks: a step that is undone would have moved it."""

    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(1)

    def call(self, x):
        return x + self.generator.uniform(tf.shape(x))


LAYERS = {
    "Dropout": (lambda: keras.layers.Dropout(0.5, seed=1), "a layer of Keras"),
    "RandomFlip": (lambda: pictures(keras.layers.RandomFlip()), "a layer of Keras"),
    "RandomCrop": (lambda: pictures(keras.layers.RandomCrop(4, 2)), "a layer of Keras"),
    "MultiHeadAttention": (Attention, "a layer of Keras"),
    "generator": (OwnGenerator, "RngReadAndSkip"),
    "function": (of(in_a_compiled_function), "RandomUniform"),
    "branch": (of(in_a_branch), "RandomUniform"),
    "loop": (of(in_a_loop), "RandomUniform"),
    "candidates": (of(sampled), "LogUniformCandidateSampler"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_draw_are_refused(name):
    layer, op = LAYERS[name]
    refused(with_layer(layer), op)


def test_a_loss_that_draws_is_refused():
    def make_loss(cfg):
        loss = small.make_loss(cfg)
        return lambda model, batch, training: loss(model, {**batch, "x": batch["x"] + noise(batch["x"])}, training)

    refused({"make_loss": make_loss}, "RandomUniform")


def test_draws_of_evaluation_alone_are_refused():
    """They decide about the best step and early stopping."""

    class Noise(keras.layers.Layer):
        def call(self, x, training=None):
            return x if training else x + noise(x)

    refused(with_layer(Noise), "RandomUniform")


@pytest.mark.parametrize("drawing", ["train", "test"])
@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_a_transform_that_draws_is_refused(drawing, placement):
    def make_data(cfg, split):
        def transform(batch):
            return {**batch, "x": batch["x"] + noise(batch["x"])} if split == drawing else batch

        return make_batches(small.examples({}), cfg, training=split == "train", transform=transform)

    refused({"make_data": make_data}, "RandomUniform", **{"data.placement": placement})


def test_a_step_that_draws_is_refused():
    def make_step(cfg, tools):
        loss = small.make_loss(cfg)

        def step(state, batch):
            noisy = {**batch, "x": batch["x"] + noise(batch["x"])}
            found = tools.gradients(lambda part: loss(state.model, part, True), noisy)
            tools.apply(found.gradients)
            return found.terms, found.metrics

        return step

    refused({"make_step": make_step}, "RandomUniform")


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_an_optimizer_that_draws_is_refused_before_its_first_step(mode):
    class Langevin(keras.optimizers.SGD):
        def update_step(self, gradient, variable):
            super().update_step(gradient + noise(gradient), variable)

    def make_optimizer(cfg, learning_rate):
        return Langevin(learning_rate, jit_compile=False)

    built = small.build(functions={"make_optimizer": make_optimizer}, **{"train.compile": mode})
    before = small.snapshot(built)
    with pytest.raises(UserError, match=r"draws random numbers \(RandomUniform\)" + ADVICE):
        built.train_block(1)
    assert small.snapshot(built) == before


def test_what_is_a_function_of_its_seed_is_no_such_draw():
    def stateless(x):
        seed = tf.bitcast(rng.random_bits("noise", 1, 2)[0], tf.int32)
        return x + tf.random.stateless_uniform(tf.shape(x), seed)

    small.build(functions=with_layer(of(stateless))).train_block(1)


def test_without_determinism_they_pass_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(devices, "setup", lambda config: None)  # the process of these tests is deterministic for good
    with caplog.at_level(logging.WARNING, "absl"):
        built = small.build(functions=with_layer(LAYERS["Dropout"][0]), **{"runtime.deterministic": False})
    said = [record.getMessage() for record in caplog.records]
    assert [re.sub(r"^'[^']+'", "'…'", text) for text in said] == [
        "'…' draws random numbers (RandomUniform) that a resumed run would not draw again: if this run is interrupted,"
        " it will not end in the same bits"
    ]
    assert built.train_block(1).row(0)["loss"] > 0


# --- what a checkpoint would not have ---------------------------------------------------------------------------------


def counting(where):
    """A loss that counts its calls in a variable: of its own, or of a layer of the model."""

    def make_loss(cfg):
        loss, own = small.make_loss(cfg), tf.Variable(0.0, name="calls")

        def call(model, batch, training):
            found = loss(model, batch, training)
            calls = own if where == "loss" else model.layers[1].moving_mean
            calls.assign_add(tf.ones_like(calls))
            return found

        return call

    return {"make_loss": make_loss}


UNSAVED = (
    "a step changes the variable 'calls:0', which no checkpoint has: a resumed run would start with another value. Make"
    " it an attribute of a layer of the model, or return it in make_state(cfg, model)."
)


def test_a_changed_variable_that_no_checkpoint_has_is_refused():
    with pytest.raises(UserError) as caught:
        small.build(functions=counting("loss"))
    assert str(caught.value) == UNSAVED
    small.build(functions=counting("layer"))


def test_a_variable_that_is_only_read_is_a_constant():
    def make_loss(cfg):
        loss, factor = small.make_loss(cfg), tf.Variable(0.5, trainable=False)
        return lambda model, batch, training: loss(model, {**batch, "x": factor * batch["x"]}, training)

    small.build(functions={"make_loss": make_loss})


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_step_that_changes_a_variable_must_return_it_in_make_state(is_saved):
    calls = tf.Variable(0.0, name="calls")

    def make_state(cfg, model):
        extra = tf.Module()
        extra.calls = calls if is_saved else tf.Variable(0.0)
        return extra

    def make_step(cfg, tools):
        loss = small.make_loss(cfg)

        def step(state, batch):
            calls.assign_add(1.0)
            found = tools.gradients(lambda part: loss(state.model, part, True), batch)
            tools.apply(found.gradients)
            return found.terms, found.metrics

        return step

    functions = {"make_state": make_state, "make_step": make_step}
    if is_saved:
        small.build(functions=functions)
        return
    with pytest.raises(UserError) as caught:
        small.build(functions=functions)
    assert str(caught.value) == UNSAVED

"""What layers of one's own add to a loss counts as they mean it, or is refused in one line."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses
from tests.small import build
from tests.step.penalised import (
    BATCH,
    CARRY,
    FEATURES,
    SETTINGS,
    TWO,
    WIDTH,
    Kl,
    outputs_of,
    points,
    refusal,
    squares,
    with_layer,
)


def spread(x):
    """Compares rows, so it is no sum over them."""
    return tf.reduce_sum(tf.math.reduce_variance(x, axis=0))


def beside_one(x):
    """A sum over rows that is not 0 for a row of zeros."""
    return tf.reduce_sum(tf.square(x - 1.0))


def dense(regularizer):
    return lambda: keras.layers.Dense(2, kernel_initializer="ones", activity_regularizer=regularizer, name="code")


def test_a_regulariser_of_ones_own_counts_rows_of_weight_alone():
    built = build(functions=with_layer(dense(beside_one)), **{**SETTINGS, "schedule.learning_rate": 0.0})
    batch = {name: value.numpy() for name, value in built.data.at(2).items()}
    real = batch["weight"] > 0
    wanted = 2 * ((3 * batch["x"].sum(axis=1) - 1) ** 2)[real].mean()
    assert real.sum() == 6
    assert built.train_block(3).row(2)["loss/penalty"] == pytest.approx(wanted, rel=1e-12)
    wanted = 2 * ((3 * points()["x"].sum(axis=1) - 1) ** 2).mean()
    assert built.eval_blocks["test"]()["loss/penalty"] == pytest.approx(wanted, rel=1e-12)


def test_a_regulariser_that_compares_rows_is_right_on_whole_batches_and_refused_elsewhere():
    functions = with_layer(dense(spread))
    built = build(functions=functions, **CARRY)
    out = 3 * built.data.at(0)["x"].numpy().sum(axis=1)
    assert built.train_block(1).row(0)["loss/penalty"] == pytest.approx(2 * out.var() / BATCH, rel=1e-12)
    assert "layer 'code' adds a loss that is one number" in refusal(functions, **{"data.remainder": "pad"})
    for cut, settings in (("train.micro_batches=2", {"train.micro_batches": 2}), ("2 replicas", TWO)):
        assert refusal(functions, **settings) == (
            f"{cut}: the activity regulariser of layer 'code' is no sum over rows, so that of a batch is not that of"
            " its parts. Use one that is, or a term losses.BatchDependent of make_loss, or"
            " --config.train.micro_batches=1 on one device."
        )


class Pairs(keras.Model):
    """Both views of a pair in one call of its layer: two rows an example, in an order that nobody can know."""

    def __init__(self):
        super().__init__()
        self.code = keras.layers.Dense(
            WIDTH, kernel_initializer="ones", activity_regularizer=keras.regularizers.L2(1.0), name="code"
        )

    def call(self, x, training=None):
        return self.code(tf.concat([x, 2 * x], axis=0))[: x.shape[0]]


def test_several_rows_an_example_are_right_where_all_have_weight_1():
    functions = {**with_layer(Kl), "make_model": lambda cfg: Pairs()}
    built = build(functions=functions, **CARRY)
    out = outputs_of(built.data.at(0)["x"].numpy())
    wanted = np.concatenate([out, 2 * out])
    row = built.train_block(1).row(0)
    assert row["loss/penalty"] == pytest.approx((wanted**2).sum(axis=1).mean(), rel=1e-12)
    out = outputs_of(points()["x"])
    wanted = (np.concatenate([out, 2 * out]) ** 2).sum(axis=1).mean()
    assert built.eval_blocks["test"]()["loss/penalty"] == pytest.approx(wanted, rel=1e-12)
    assert "layer 'code' adds a loss that is one number" in refusal(functions, **{"data.remainder": "pad"})


class Added(keras.layers.Layer):
    def __init__(self, fn):
        super().__init__(name="added")
        self.fn = fn

    def call(self, x):
        return self.fn(self, x)


def of_tokens(layer, x):
    layer.add_loss(tf.square(x))
    return x


def in_loop(layer, x):
    def body(i, x):
        layer.add_loss(tf.reduce_mean(x**2, axis=-1))
        return i + 1, x

    return tf.while_loop(lambda i, x: i < 2, body, (0, x))[1]


def in_function(layer, x):
    @tf.function(autograph=False)
    def inner(x):
        layer.add_loss(tf.reduce_mean(x**2, axis=-1))
        return x

    return inner(x)


def test_what_cannot_be_counted_is_refused():
    hidden = (
        "layer 'added' adds a loss inside a tf.function, tf.cond or tf.while_loop, where it cannot be counted. Call the"
        " layer outside of it, or return the value and make it a term of make_loss."
    )
    assert refusal(with_layer(lambda: Added(in_loop))) == hidden
    assert refusal(with_layer(lambda: Added(in_function))) == hidden
    assert refusal(with_layer(lambda: Added(of_tokens))) == (
        f"layer 'added' adds a loss of shape ({BATCH}, {WIDTH}) for a batch of {BATCH}. Add a value for each example,"
        " [batch], or a scalar, which is the mean over the rows of the call."
    )


def test_a_loss_that_adds_model_losses_itself_is_refused():
    """As one does beside a GradientTape of Keras: each would count twice."""

    def loss(model, batch, training):
        term = squares(model(batch["x"], training=training), batch)
        return {"squares": losses.Term(term.sum + sum(model.losses), term.weight)}, {}

    def only_shown(model, batch, training):
        term = squares(model(batch["x"], training=training), batch)
        return {"squares": term}, {"penalties": tf.add_n(model.losses)}

    def with_kernel(cfg):
        code = {"kernel_initializer": "ones", "kernel_regularizer": keras.regularizers.L2(0.1)}
        return keras.Sequential([keras.layers.Dense(2, **code, name="code"), Kl()])

    functions = {**with_layer(Kl), "make_model": with_kernel, "make_loss": lambda cfg: loss}
    assert refusal(functions) == (
        "term 'squares' of the loss has model.losses in it, which are counted already, as 'penalty'. Leave them out of"
        " make_loss."
    )
    built = build(functions={**functions, "make_loss": lambda cfg: only_shown}, **CARRY)
    wanted = 0.1 * 2 * FEATURES + (built.data.at(0)["x"].numpy().sum(axis=1) ** 2).mean()
    assert built.train_block(1).row(0)["loss/penalty"] == pytest.approx(wanted, rel=1e-12)


def test_losses_of_a_functional_model_and_an_activity_layer_count():
    def model_of(cfg):
        x = keras.Input([FEATURES], dtype="float64")
        code = keras.layers.Dense(WIDTH, kernel_initializer="ones")(x)
        model = keras.Model(x, keras.layers.ActivityRegularization(l2=0.5)(code))
        model.add_loss(tf.reduce_sum(tf.square(code), axis=-1))
        return model

    built = build(functions={**with_layer(Kl), "make_model": model_of}, **{**SETTINGS, "schedule.learning_rate": 0.0})
    batch = {name: value.numpy() for name, value in built.data.at(2).items()}
    squared = (outputs_of(batch["x"][batch["weight"] > 0]) ** 2).sum(axis=1)
    assert len(squared) == 6
    assert built.train_block(3).row(2)["loss/penalty"] == pytest.approx(1.5 * squared.mean(), rel=1e-12)


def repeated(layer, x):
    layer.add_loss(lambda: tf.constant(1.0))
    return x


def test_a_function_given_in_each_call_is_refused():
    """Keras keeps it once more at each trace, so the penalty would grow with their number."""
    assert refusal(with_layer(lambda: Added(repeated))) == (
        "layer 'added' gives a function to add_loss in its call, and Keras keeps one more each time. Give the function"
        " once, in build, or the value itself."
    )


class Early(keras.layers.Layer):
    def build(self, shape):
        self.add_loss(tf.constant(1.0))

    def call(self, x):
        return x


def test_a_value_given_in_build_is_refused():
    """Keras forgets it when the layer is called again."""
    assert refusal(with_layer(Early)) == (
        "layer 'early' adds a value to the loss in build, which is lost after the first call. Give add_loss a function"
        " there, or add the value in call."
    )


def test_penalties_of_two_models_add_up():
    """Each in the pass that differentiates its model, in whichever pass the other is called too."""

    def make_models(cfg):
        def one(name, strength):
            regularizer = keras.regularizers.L2(strength)
            return keras.Sequential(
                [keras.layers.Dense(2, kernel_initializer="ones", activity_regularizer=regularizer, name=name)]
            )

        return {"inner": one("i", 0.1), "outer": one("o", 0.2)}

    def make_step(cfg, tools):
        def step(state, batch):
            def one_pass(part):
                outputs = state.models["outer"](state.models["inner"](part["x"]))
                return {"squares": squares(outputs, part)}, {}

            found = {name: tools.gradients(one_pass, batch, of=name) for name in state.models}
            for name, gradients in found.items():
                tools.apply(gradients.gradients, to=name)
            return {**found["inner"].terms, **found["outer"].terms}, {}

        return step

    def loss(model, batch, training):
        return {"squares": squares(model["outer"](model["inner"](batch["x"])), batch)}, {}

    def make_schedule(cfg, total_steps):
        return {"inner": lambda update: 0.0, "outer": lambda update: 0.0}

    functions = {"make_model": make_models, "make_step": make_step, "make_loss": lambda cfg: loss}
    built = build(functions={**with_layer(Kl), **functions, "make_schedule": make_schedule}, **SETTINGS)
    batch = {name: value.numpy() for name, value in built.data.at(2).items()}
    inner = batch["x"][batch["weight"] > 0].sum(axis=1)
    wanted = 2 * (0.1 * inner**2 + 0.2 * (2 * inner) ** 2).mean()
    assert built.train_block(3).row(2)["loss/penalty"] == pytest.approx(wanted, rel=1e-12)


class Late(keras.Model):
    """Makes its layers in its first call, below a plain module."""

    def __init__(self):
        super().__init__()
        self.parts = tf.Module()

    def call(self, x, training=None):
        if not hasattr(self.parts, "code"):
            self.parts.code = dense(keras.regularizers.L2(0.5))()
            self.parts.code.build(x.shape)
            self.parts.code.kernel_regularizer = None
            self.parts.code.add_loss(lambda: 0.1 * tf.reduce_sum(self.parts.code.kernel**2))
        return self.parts.code(x)


def test_layers_made_in_the_first_call_and_below_plain_modules_count():
    functions = {**with_layer(Kl), "make_model": lambda cfg: Late()}
    built = build(functions=functions, **CARRY)
    kernel = np.ones([FEATURES, 2])
    out = built.data.at(0)["x"].numpy() @ kernel
    wanted = 0.5 * (out**2).sum(axis=1).mean() + 0.1 * (kernel**2).sum()
    assert built.train_block(1).row(0)["loss/penalty"] == pytest.approx(wanted, rel=1e-12)

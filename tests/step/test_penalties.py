"""What layers add to a loss, against NumPy in float64: every call, every example by its weight."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, paths
from framework.checkpoint.checkpoints import digest
from framework.config import UserError
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.run import loop
from framework.run.nonfinite import NonFiniteError, rewind_or_raise
from tests.small import build

EXAMPLES, FEATURES, WIDTH, BATCH, UPDATES = 22, 4, 3, 8, 4
RATE, OF_KERNEL, L1, L2, OF_EXAMPLE, SCALES = 0.01, 0.05, 0.1, 0.2, 0.3, (1.0, 2.0)
SETTINGS = {
    "data.batch_size": BATCH,
    "eval.batch_size": BATCH,
    "data.remainder": "pad",
    "train.duration": f"{UPDATES} steps",
    "train.precision": "float64",
    "optimizer.name": "sgd",
    "schedule.name": "constant",
    "schedule.learning_rate": RATE,
    "schedule.warmup": "",
}
TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}


@functools.cache
def points():
    draw = np.random.default_rng(5)
    x = draw.normal(size=(EXAMPLES, FEATURES))
    return {"x": x, "y": x.sum(axis=1) + 1.0, "trust": draw.choice([0.5, 1.0, 2.5], EXAMPLES)}


def make_data(cfg, split, is_trusted=True):
    def transform(batch):
        return {**batch, "weight": batch["weight"] * tf.cast(batch["trust"], tf.float32)}

    source = Source(points(), origin="made up")
    return make_batches(source, cfg, training=split == "train", transform=transform if is_trusted else None)


class PerExample(keras.layers.Layer):
    def call(self, x):
        self.add_loss(OF_EXAMPLE * tf.reduce_sum(tf.square(x), axis=-1))
        return x


def make_model(cfg):
    dense = keras.layers.Dense(
        WIDTH,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(np.linspace(-0.5, 0.7, FEATURES * WIDTH).reshape(FEATURES, -1)),
        kernel_regularizer=keras.regularizers.L2(OF_KERNEL),
        activity_regularizer=keras.regularizers.L1L2(L1, L2),
    )
    return keras.Sequential([dense, PerExample()])


def squares(outputs, batch):
    error = tf.square(tf.reduce_sum(outputs, axis=-1) - batch["y"]) * tf.cast(batch["weight"], outputs.dtype)
    return losses.Term(tf.reduce_sum(error), tf.reduce_sum(batch["weight"]))


def make_loss(cfg):
    """Calls the model twice, as a siamese loss does."""

    def loss(model, batch, training):
        outputs = [model(scale * batch["x"], training=training) for scale in SCALES]
        return {"squares": squares(outputs[0], batch)}, {}

    return loss


FUNCTIONS = {"make_data": make_data, "make_model": make_model, "make_loss": make_loss}


def reference(kernel, x, y, weight):
    """(squares, penalty, gradient) of examples; of weight 0 are those of padding."""
    is_real = weight > 0
    w, penalty, gradient = weight / weight.sum(), OF_KERNEL * (kernel**2).sum(), 2 * OF_KERNEL * kernel
    for scale in SCALES:
        out, by_row = scale * x @ kernel, is_real / is_real.sum()
        penalty += ((L1 * np.abs(out) + L2 * out**2).sum(axis=1) * by_row).sum()
        penalty += OF_EXAMPLE * ((out**2).sum(axis=1) * w).sum()
        upstream = (L1 * np.sign(out) + 2 * L2 * out) * by_row[:, None] + 2 * OF_EXAMPLE * out * w[:, None]
        gradient = gradient + scale * x.T @ upstream
    error = (x @ kernel).sum(axis=1) - y
    gradient = gradient + (x.T @ (2 * error * w))[:, None]
    return (error**2 * w).sum(), penalty, gradient


FOUR = {"train.micro_batches": 4}
CASES = [("graph", FOUR), ("xla", {}), ("graph", {**TWO, "train.micro_batches": 2})]
MORE = [("graph", {}), ("xla", FOUR), ("eager", {}), ("eager", FOUR), ("xla", TWO)]
MORE += [("xla_gradients", {"data.placement": "stream"}), ("graph", {**TWO, "data.placement": "stream"})]


def _check(mode, settings):
    built = build(functions=FUNCTIONS, **{**SETTINGS, "train.compile": mode, **settings})
    variable = next(iter(paths.trainable(built.model).values()))
    kernel = variable.numpy()
    batches = [{name: value.numpy() for name, value in built.data.at(step).items()} for step in range(UPDATES)]
    block = built.train_block(UPDATES)
    for step, batch in enumerate(batches):
        mse, penalty, gradient = reference(kernel, batch["x"], batch["y"], batch["weight"].astype(np.float64))
        row = block.row(step)
        assert row["loss/squares"] == pytest.approx(mse, rel=1e-12)
        assert row["loss/penalty"] == pytest.approx(penalty, rel=1e-12)
        assert row["loss"] == pytest.approx(mse + penalty, rel=1e-12)
        assert row["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-12)
        assert [name for name in row if name.startswith("loss/")] == ["loss/squares", "loss/penalty"]
        kernel = kernel - RATE * gradient
    np.testing.assert_allclose(variable.numpy(), kernel, rtol=1e-12)
    assert {0.0, 0.5, 1.0, 2.5} == {float(one) for batch in batches for one in batch["weight"]}
    mse, penalty, _ = reference(kernel, points()["x"], points()["y"], points()["trust"])
    wanted = {"loss": mse + penalty, "loss/squares": mse, "loss/penalty": penalty}
    assert built.eval_blocks["test"]() == pytest.approx(wanted, rel=1e-11)


@pytest.mark.parametrize(("mode", "settings"), CASES, ids=str)
def test_every_call_and_example_counts(mode, settings):
    _check(mode, settings)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "settings"), MORE, ids=str)
def test_every_call_and_example_counts_in_more_modes(mode, settings):
    _check(mode, settings)


class Kl(keras.layers.Layer):
    """A scalar, the mean over its rows, as the loss of a variational autoencoder is."""

    def call(self, x):
        self.add_loss(tf.reduce_mean(tf.square(x)))
        return x


class Balance(keras.layers.Layer):
    """A scalar that is no mean of those of parts, as a mixture of experts has."""

    def call(self, x):
        self.add_loss(tf.reduce_sum(tf.reduce_mean(x, axis=0) ** 2))
        return x


def with_layer(make, is_trusted=False, calls=1):
    def loss(model, batch, training):
        outputs = [model(batch["x"], training=training) for _ in range(calls)]
        return {"squares": squares(outputs[0], batch)}, {}

    return {
        "make_data": lambda cfg, split: make_data(cfg, split, is_trusted),
        "make_model": lambda cfg: keras.Sequential([keras.layers.Dense(WIDTH, kernel_initializer="ones"), make()]),
        "make_loss": lambda cfg: loss,
    }


def outputs_of(x):
    return np.repeat(x.sum(axis=1)[:, None], WIDTH, axis=1)


CARRY = {**SETTINGS, "data.remainder": "wrap", "schedule.learning_rate": 0.0}


def _check_scalar(mode, settings):
    built = build(functions=with_layer(Kl, calls=2), **{**CARRY, **settings, "train.compile": mode})
    x = built.data.at(1)["x"].numpy()
    row = built.train_block(2).row(1)
    assert row["loss/penalty"] == pytest.approx(2 * (outputs_of(x) ** 2).mean(), rel=1e-12)
    wanted = 2 * (outputs_of(points()["x"]) ** 2).mean()
    assert built.eval_blocks["test"]()["loss/penalty"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("mode", "settings"), [("graph", FOUR), ("xla", TWO)], ids=str)
def test_a_scalar_is_the_mean_over_rows(mode, settings):
    _check_scalar(mode, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "settings"),
    [("graph", {}), ("graph", TWO), ("eager", {}), ("xla", FOUR), ("xla_gradients", FOUR)],
    ids=str,
)
def test_a_scalar_is_the_mean_over_rows_in_more_modes(mode, settings):
    _check_scalar(mode, settings)


SIZES = [8, 40, *(pytest.param(size, marks=pytest.mark.slow) for size in (5, 11, 22))]


@pytest.mark.parametrize("size", SIZES)
def test_a_mixture_evaluates_its_last_batch_at_its_own_size(size):
    built = build(functions=with_layer(Balance), **{**CARRY, "eval.batch_size": size})
    parts = [outputs_of(points()["x"][first : first + size]) for first in range(0, EXAMPLES, size)]
    wanted = sum(len(part) * (part.mean(axis=0) ** 2).sum() for part in parts) / EXAMPLES
    for _ in range(2):
        assert built.eval_blocks["test"]()["loss/penalty"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"data.placement": "stream"}, pytest.param({**TWO, "train.compile": "xla"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_so_do_streams_and_replicas_that_it_does_not_divide_by(settings):
    functions = {**with_layer(Balance), "make_data": lambda cfg, split: make_data(cfg, split, False)}
    built = build(functions=functions, **{**CARRY, "eval.batch_size": 6, **settings})
    built.eval_blocks["test"]()
    odd = [outputs_of(points()["x"][first : first + 6]) for first in range(0, EXAMPLES, 6)]
    parts = [half for part in odd[:-1] for half in np.split(part, 2 if built.replicas.count == 2 else 1)] + odd[-1:]
    wanted = sum(len(part) * (part.mean(axis=0) ** 2).sum() for part in parts) / EXAMPLES
    assert built.eval_blocks["test"]()["loss/penalty"] == pytest.approx(wanted, rel=1e-12)


def refusal(functions, **settings):
    with pytest.raises(UserError) as caught:
        build(functions=functions, **{**CARRY, **settings})
    return str(caught.value)


ADVICE = (
    "has rows that are padded or weighted, but layer 'kl' adds a loss that is one number for all rows of a call. Write"
    " self.add_loss(per_example), of shape [batch], or make it a term of make_loss, or, if only padding is in the"
    " way, use --config.data.remainder=wrap."
)


def test_a_scalar_of_rows_that_do_not_all_count_is_refused():
    assert refusal(with_layer(Kl), **{"data.remainder": "pad"}) == f"the training batch of step 2 {ADVICE}"
    assert refusal(with_layer(Kl, is_trusted=True)) == f"the training batch of step 0 {ADVICE}"


def test_weights_that_appear_later_stop_the_run(tmp_path):
    """Of training and evaluation: the first and last batch have weight 1, as far as one can see at start."""

    def data(cfg, split):
        def transform(batch):
            is_odd = tf.reduce_any(tf.abs(batch["y"] - points()["y"][12]) < 1e-12)
            return {**batch, "weight": tf.where(is_odd & (batch["y"] > 0), 0.5, 1.0) * batch["weight"]}

        cfg = cfg.copy_and_resolve_references().unlock()
        cfg.data.shuffle = False
        return make_batches(Source(points(), "made up"), cfg, training=split == "train", transform=transform)

    assert points()["y"][12] > 0 or points()["y"][13] > 0
    built = build(tmp_path, functions={**with_layer(Kl), "make_data": data}, **CARRY)
    before = built.model.get_weights()
    block = built.train_block(4)
    assert block.is_halted and len(block.rows) == 2 and np.isnan(block.row(1)["loss/penalty"])
    with pytest.raises(NonFiniteError, match="the batch has rows that are padded or weighted, but layer 'kl'"):
        rewind_or_raise(built, block)
    for left, right in zip(before, built.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    evaluate = built.eval_blocks["test"]
    assert np.isnan(evaluate()["loss/penalty"])
    assert re.match(r"batch 1 \(examples 8 to 15\) is the first that is not finite; .* layer 'kl'", evaluate.problem)


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


def test_a_run_goes_on_with_the_same_bits(tmp_path):
    settings = {**SETTINGS, "checkpoint.every": "2 steps"}
    whole = build(tmp_path / "whole", functions=FUNCTIONS, **settings)
    loop.train(whole)
    first = build(tmp_path / "parts", functions=FUNCTIONS, **settings)
    first.open()
    first.write_header([])
    first.train_block(2)
    with first.checkpoints:
        first.checkpoints.save(first.state, {})
    second = build(tmp_path / "parts", functions=FUNCTIONS, **settings)
    loop.train(second)
    assert digest(second.state) == digest(whole.state)

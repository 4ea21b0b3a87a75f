"""What layers add to a loss, against NumPy in float64: every call, every example by its weight."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.checkpoint.checkpoints import digest
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.run import loop
from framework.run.nonfinite import NonFiniteError, rewind_or_raise
from tests.small import build
from tests.step.penalised import (
    CARRY,
    EXAMPLES,
    FEATURES,
    L1,
    L2,
    OF_EXAMPLE,
    OF_KERNEL,
    RATE,
    SCALES,
    SETTINGS,
    TWO,
    UPDATES,
    WIDTH,
    Kl,
    make_data,
    outputs_of,
    points,
    refusal,
    squares,
    with_layer,
)


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


class Balance(keras.layers.Layer):
    """A scalar that is no mean of those of parts, as a mixture of experts has."""

    def call(self, x):
        self.add_loss(tf.reduce_sum(tf.reduce_mean(x, axis=0) ** 2))
        return x


def _check_scalar(mode, settings):
    built = build(functions=with_layer(Kl, calls=2), **{**CARRY, **settings, "train.compile": mode})
    x = built.data.at(1)["x"].numpy()
    row = built.train_block(2).row(1)
    assert row["loss/penalty"] == pytest.approx(2 * (outputs_of(x) ** 2).mean(), rel=1e-12)
    wanted = 2 * (outputs_of(points()["x"]) ** 2).mean()
    assert built.eval_blocks["test"]()["loss/penalty"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("mode", "settings"), [("graph", FOUR), pytest.param("graph", TWO, marks=pytest.mark.slow)], ids=str
)
def test_a_scalar_is_the_mean_over_rows(mode, settings):
    _check_scalar(mode, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "settings"),
    [("graph", {}), ("xla", TWO), ("eager", {}), ("xla", FOUR), ("xla_gradients", FOUR)],
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

"""framework/step/additivity.py: means of a batch and of its parts, by hand, and what is said where they differ."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, losses, rng
from framework.run import preview
from framework.step.additivity import check_additive
from framework.step.padding import with_padding
from tests import small

BATCH = {"x": [1.0, 2.0, 3.0, 6.0], "y": [0.0, 0.0, 1.0, 1.0], "weight": [1.0, 1.0, 1.0, 1.0]}


def found(loss, batch=BATCH, precision="float32"):
    batch = {name: tf.constant(values) for name, values in batch.items()}
    cfg = config.base_config()
    cfg.train.precision = precision
    return check_additive(
        loss, tf.Module(), with_padding(batch), config.resolve(config.finalize(cfg), steps_per_epoch=1.0)
    )


def squares(model, batch, training):
    errors = tf.square(batch["x"] - batch["y"]) * batch["weight"]
    return {"squares": losses.Term(tf.reduce_sum(errors), tf.reduce_sum(batch["weight"]))}, {}


@pytest.mark.parametrize("weight", [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [3, 0.5, 7, 2]])
def test_a_weighted_sum_over_examples_adds_up(weight):
    assert found(squares, {**BATCH, "weight": [float(one) for one in weight]}) == []


# Errors of 1, 4, 4 and 25, which the check weighs by 0.5, 1, 1.5 and 0: in all, (0.5 + 4 + 6) / 3.
COUNTS_PADDING = {
    "a mean that ignores weights": (lambda e, w: (tf.reduce_mean(e), 1 + 0 * w[0]), "8.5 / 1", "3 / 1"),
    "a sum that forgets weights": (lambda e, w: (tf.reduce_sum(e), tf.reduce_sum(w)), "34 / 3", "9 / 3"),
    "a mean of weighted errors": (lambda e, w: (tf.reduce_mean(e * w), 1 + 0 * w[0]), "2.625 / 1", "3.5 / 1"),
    "weights that forget themselves": (
        lambda e, w: (tf.reduce_sum(e * w), tf.reduce_sum(tf.ones_like(w) + 0 * w)),
        "10.5 / 4",
        "10.5 / 3",
    ),
    "all by all": (lambda e, w: (tf.reduce_sum(e[:, tf.newaxis] * w), tf.reduce_sum(w)), "102 / 3", "27 / 3"),
    "weights relative to their mean": (  # which is 0.75, and 1 of the rows that have a weight
        lambda e, w: (tf.reduce_sum(e * w) / tf.reduce_mean(w), tf.reduce_sum(w) / tf.reduce_mean(w)),
        "14 / 4",
        "10.5 / 3",
    ),
    "a mean that happens to stay": (
        lambda e, w: (tf.reduce_sum(0 * e + 2), tf.reduce_sum(0 * w + 1)),
        "8 / 4",
        "6 / 3",
    ),
}


@pytest.mark.parametrize("case", COUNTS_PADDING)
def test_rows_of_weight_0_that_count(case):
    term, whole, real = COUNTS_PADDING[case]

    def loss(model, batch, training):
        return {"squares": losses.Term(*term(tf.square(batch["x"] - batch["y"]), batch["weight"]))}, {}

    assert found(loss) == [
        f"term 'squares' of the loss is {whole} over a batch of 4 and {real} over the 3 of them that have a weight:"
        " rows of weight 0 must not count. Write losses.Term(tf.reduce_sum(values * batch['weight']),"
        " tf.reduce_sum(batch['weight'])); the weights of tokens are token_weight * batch['weight'][:, tf.newaxis]."
    ]


# Parts are the first example, and the second and third.
DOES_NOT_ADD_UP = {
    # 0.75 + 7.5 + 29.25 of three by three; of the parts 0.25, and 5.5 + 22.5.
    "all by all, weighted": (
        lambda x, y, w: (tf.reduce_sum(tf.square(x[:, tf.newaxis] - y) * w * w[:, tf.newaxis]), tf.reduce_sum(w)),
        37.5 / 3,
        28.25 / 3,
    ),
    # A weighted mean with the weight of one example.
    "a weighted mean": (
        lambda x, y, w: (tf.reduce_sum(tf.square(x - y) * w) / tf.reduce_sum(w), 1 + 0 * w[0]),
        10.5 / 3,
        (1 + 4) / 2,
    ),
}


@pytest.mark.parametrize("case", DOES_NOT_ADD_UP)
def test_parts_that_are_not_the_whole(case):
    term, whole, parts = DOES_NOT_ADD_UP[case]

    def loss(model, batch, training):
        return {"squares": losses.Term(*term(batch["x"], batch["y"], batch["weight"]))}, {}

    assert found(loss) == [
        f"term 'squares' of the loss is {whole:.6g} over 3 examples and {parts:.6g} over parts of 1 and 2 of them. Sum"
        " and weight must be sums over examples, such as tf.reduce_sum(batch['weight']), and no example may meet"
        " another: is there a [4, 1] beside a [4]? A term that compares examples is losses.BatchDependent."
    ]


@pytest.mark.parametrize("examples", [2, 3, 5, 8, 200])
def test_a_mean_is_found_in_a_batch_of_any_size(examples):
    rng = np.random.default_rng(examples)
    batch = {"x": np.float32(rng.normal(size=examples)), "weight": np.ones(examples, np.float32)}

    def mean(model, batch, training):
        weight = tf.reduce_sum(batch["weight"])
        return {"mean": losses.Term(tf.reduce_sum(batch["weight"] * batch["x"]) / weight, tf.math.sign(weight))}, {}

    assert len(found(mean, batch)) == 1


ROOTS = {
    "a root of a mean": lambda e, w: (tf.sqrt(tf.reduce_sum(e * w) * tf.reduce_sum(w)), tf.reduce_sum(w)),
    "a mean over a mask": lambda e, w: (
        tf.reduce_sum(tf.where(e > 1, e, 0.0) * w) / tf.reduce_sum(tf.cast(e > 1, tf.float32)),
        tf.reduce_sum(w) / tf.reduce_sum(w),
    ),
}


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("seed", range(5))
def test_what_two_parts_have_in_common_is_found_in_a_few_examples(name, seed):
    """The roots of 2 and of 94 errors differ by less than any rounding; of two masks the counts may be the same."""
    errors = np.random.default_rng(seed).normal(size=128) ** 2
    errors[:4] = 1.1 * errors[4:].mean(), 3.0, 0.5, 4.0
    batch = {"x": errors.astype(np.float32), "weight": np.ones(128, np.float32)}

    def loss(model, batch, training):
        return {"mean": losses.Term(*ROOTS[name](batch["x"], batch["weight"]))}, {}

    assert len(found(loss, batch)) == 1


def test_a_penalty_counts_once_for_each_part():
    def loss(model, batch, training):
        return {
            **squares(model, batch, training)[0],
            "penalty of its own": losses.Term(tf.constant(3.0), tf.ones([])),
        }, {}

    assert found(loss) == []


def test_terms_that_compare_examples_say_so():
    def loss(model, batch, training):
        return {
            "spread": losses.BatchDependent(tf.square(tf.reduce_sum(batch["x"])), tf.reduce_sum(batch["weight"]))
        }, {}

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
    told = check_additive(loss, layer, with_padding(batch), cfg)
    sentence = (
        "what layers add to the loss is 3 over a batch and 1.5 over its two halves: it grows with the batch, but counts"
        " as a mean over its rows. Write self.add_loss(per_example), of shape [batch], or add a mean."
    )
    assert told == ([sentence] if kind == "sum" else [])


def test_rounding_is_no_difference_and_nan_is_found_elsewhere():
    many = {"x": np.random.default_rng(0).normal(size=1000), "y": np.zeros(1000), "weight": np.ones(1000, np.float32)}

    def loss(model, batch, training):
        values = tf.cast(batch["x"], tf.bfloat16) ** 2 * tf.cast(batch["weight"], tf.bfloat16)
        return {"sum": losses.Term(tf.cast(tf.reduce_sum(values), tf.float32), tf.reduce_sum(batch["weight"]))}, {}

    assert found(loss, many, "bfloat16") == []
    assert found(squares, {**BATCH, "x": [float("nan")] * 4}) == []


def test_parts_that_cancel_are_rounded_as_what_they_are():
    """1000.1 of the first, -550.1 and -450 of the others: what is left is rounding."""
    x = np.float32([2000.2, -550.1, -300.0, 7.0])

    def loss(model, batch, training):
        return {"signed": losses.Term(tf.reduce_sum(batch["x"] * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

    assert found(loss, {"x": x, "weight": np.ones(4, np.float32)}) == []


def test_what_cannot_be_cut_is_left_alone():
    def of_one_size(model, batch, training):
        return {"squares": losses.Term(squares(model, batch, training)[0]["squares"].sum, tf.constant(4.0))}, {}

    def with_table(model, batch, training):
        found = squares(model, batch, training)[0]["squares"]
        return {"squares": losses.Term(found.sum * tf.reduce_sum(batch["table"]), found.weight)}, {}

    assert found(of_one_size, {name: values[:1] for name, values in BATCH.items()}) == []
    assert found(with_table, {**BATCH, "table": np.arange(14, dtype=np.float32).reshape(7, 2)}) == []


def test_draws_of_pieces_are_those_of_its_place_in_the_batch():
    def loss(model, batch, training):
        noise = rng.uniform("noise", tf.shape(batch["x"])[0], 1)[:, 0]
        return {"noisy": losses.Term(tf.reduce_sum(noise * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

    assert found(loss) == []


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_run_on_replicas_of_one_process_is_looked_at_too(replicas, caplog):
    def make_loss(cfg):
        def loss(model, batch, training):
            values = tf.square(model(batch["x"], training=training)[:, 0])
            return {"mine": losses.Term(tf.reduce_sum(values), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    settings = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2} if replicas > 1 else {}
    built = small.build(functions={"make_loss": make_loss}, **settings)
    assert built.replicas.count == replicas and built.replicas.is_local
    preview.warn_of_padding(built)
    assert [line.startswith("term 'mine' of the loss is ") for line in caplog.messages].count(True) == 1


def test_a_loss_for_one_batch_size_alone_is_told_of_and_let_pass(caplog):
    def loss(model, batch, training):
        errors = tf.square(batch["x"] - batch["y"]) * batch["weight"]
        picked = tf.gather_nd(errors, tf.stack([tf.range(4) + 0 * tf.cast(batch["x"], tf.int32)], axis=1))
        return {"squares": losses.Term(tf.reduce_sum(picked), tf.reduce_sum(batch["weight"]))}, {}

    assert found(loss) is None
    assert "is not known, because it cannot be computed for 3 of the 4 examples of a batch: " in caplog.text

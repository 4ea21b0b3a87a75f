"""A block of steps: the same bits however it is split, the numbers of each step, evaluation."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, paths
from framework.config import UserError
from framework.experiment import load
from framework.step.forward import total
from tests import tiny
from tests.step.blocks import assert_same_bits, build, put_back, snapshot, with_model

MODES = ("xla", "graph", "eager")


@pytest.mark.parametrize("mode", ["xla", "graph", pytest.param("eager", marks=pytest.mark.slow)])
def test_any_split_into_blocks_ends_in_the_same_bits(mode):
    built = build(mode)
    start, ends, rows = snapshot(built), [], []
    for split in ((1,) * 12, (10, 2), (1, 3, 5, 3)):
        put_back(built, start)
        blocks = [built.train_block(k) for k in split]
        ends.append(snapshot(built))
        rows.append(np.concatenate([block.rows for block in blocks]))
    for end, row in zip(ends[1:], rows[1:], strict=True):
        assert_same_bits(end, ends[0])
        assert row.tobytes() == rows[0].tobytes()


@pytest.mark.parametrize("mode", ["xla", "graph"])
def test_one_trace_and_one_compilation_for_every_k(mode):
    placement = {"graph": "resident", "xla": "stream"}[mode]
    built = build(mode, **{"data.placement": placement, "data.prefetch_batches": 10})
    for k in (1, 3, 10, 7, 1, 10):
        built.train_block(k)
    for _ in range(2):
        built.eval_blocks["test"]()
    expected = 1 if mode == "xla" else 0
    for compiled in (built.train_block.compiled, built.eval_blocks["test"].compiled):
        assert (compiled.traces, compiled.compilations) == (1, expected)


@pytest.mark.parametrize("mode", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_resident_and_streamed_data_train_the_same_bits(mode):
    settings = {"data.prefetch_batches": 10}
    streamed, resident = (
        build(mode, **settings, **{"data.placement": placement}) for placement in ("stream", "resident")
    )
    assert resident.data.is_resident and not streamed.data.is_resident
    for k in (1, 10, 4):
        streamed.train_block(k)
        resident.train_block(k)
    assert_same_bits(snapshot(streamed), snapshot(resident))
    assert streamed.train_block.compiled.traces == 1
    assert streamed.train_block.compiled.compilations == (1 if mode == "xla" else 0)


@pytest.mark.parametrize(("ahead", "longest"), [(4, 4), (64, 10)])
def test_a_block_has_no_more_streamed_batches_than_are_read_ahead(ahead, longest, monkeypatch):
    """The rest would be read while training waits, and all of them held in memory at once."""
    monkeypatch.setattr("framework.data.batches._READ_AHEAD_BYTES", 0)
    built = build("graph", **{"data.placement": "stream", "data.prefetch_batches": ahead})
    assert built.train_block.block_steps == longest
    assert built.train_block.batch()["image"].shape[0] == built.data.batch_size
    with pytest.raises(ValueError, match=f"k={longest + 1} is not between 1 and block_steps={longest}"):
        built.train_block(longest + 1)
    resident = build("graph", **{"data.prefetch_batches": ahead})
    assert resident.train_block.block_steps == 10
    assert built.eval_blocks["test"]() == pytest.approx(resident.eval_blocks["test"](), rel=1e-6)


def test_modes_agree_within_float32_rounding():
    """With dropout on: the masks are the same bits in every mode, or the weights would be far apart."""
    ends = {}
    for mode in MODES:
        built = build(mode, **{"model.dropout": 0.5, "optimizer.name": "sgd", "schedule.learning_rate": 0.1})
        built.train_block(10)
        ends[mode] = np.concatenate([v.numpy().ravel() for v in built.model.trainable_variables])
    for mode in ("xla", "graph"):
        assert np.linalg.norm(ends[mode] - ends["eager"]) <= 1e-6 * np.linalg.norm(ends["eager"])


def test_rows_are_the_numbers_of_each_step():
    """Loss, accuracy and gradient norm of step 3 of a block equal those computed by hand from the state before it."""
    built = build("graph", **{"train.precision": "float64", "model.l2": 1e-2, "model.dropout": 0.0})
    by_hand = build("eager", **{"train.precision": "float64", "model.l2": 1e-2, "model.dropout": 0.0})
    by_hand.train_block(2)
    batch = by_hand.data.at(2)
    kernels = [v for path, v in paths.trainable(by_hand.model).items() if path.endswith("kernel")]
    with tf.GradientTape() as tape:
        logits = by_hand.model(batch["image"], training=False)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        cross_entropy = tf.reduce_mean(values)
        penalty = 1e-2 * sum(tf.reduce_sum(kernel**2) for kernel in kernels)
        loss = cross_entropy + penalty
    gradients = tape.gradient(loss, by_hand.model.trainable_variables)
    norm = np.sqrt(sum(np.sum(gradient.numpy() ** 2) for gradient in gradients))
    block = built.train_block(5)
    row, last = block.row(2), block.row(4)
    assert list(row)[:5] == ["loss", "learning_rate", "gradient_norm", "skipped", "empty_terms"]
    assert list(row)[5:] == ["loss/cross_entropy", "loss/penalty", "accuracy"]
    assert list(last) == [*row, "parameter_norm", "update_norm"]
    by_hand.train_block(2)
    before = [variable.numpy() for variable in by_hand.model.trainable_variables]
    by_hand.train_block(1)
    moved = [new.numpy() - old for new, old in zip(by_hand.model.trainable_variables, before, strict=True)]
    assert last["parameter_norm"] == pytest.approx(
        np.linalg.norm(np.concatenate([w.ravel() for w in before])), rel=1e-12
    )
    assert last["update_norm"] == pytest.approx(np.linalg.norm(np.concatenate([m.ravel() for m in moved])), rel=1e-9)
    assert row["skipped"] == row["empty_terms"] == 0
    assert row["loss"] == pytest.approx(float(loss), rel=1e-12)
    assert row["loss/cross_entropy"] == pytest.approx(float(cross_entropy), rel=1e-12)
    assert row["loss/penalty"] == pytest.approx(float(penalty), rel=1e-12)
    assert row["gradient_norm"] == pytest.approx(norm, rel=1e-12)
    assert row["learning_rate"] == float(built.schedules["model"](2))
    assert row["accuracy"] == np.mean(np.argmax(logits, axis=1) == batch["label"].numpy())


@pytest.mark.parametrize("mode", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_inspect_gives_the_gradients_of_the_next_step_and_changes_nothing(mode):
    built = build(mode, **{"model.dropout": 0.5})
    built.train_block(3)
    before = snapshot(built)
    gradients = built.train_block.inspect()
    assert_same_bits(snapshot(built), before)
    norm = np.sqrt(sum(np.sum(gradient.astype(np.float64) ** 2) for gradient in gradients.values()))
    assert built.train_block(1).row(0)["gradient_norm"] == pytest.approx(norm, rel=1e-6)
    assert list(gradients) == ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]


@pytest.mark.parametrize("mode", ["graph", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("xla", "eager"))])
def test_evaluation_counts_each_example_once(mode):
    """500 examples in batches of 128: the padding of the last one counts for nothing."""
    built = build(mode, **{"train.precision": "float64", "model.l2": 1e-2, "train.block_steps": 3})
    built.train_block(3)
    source = tiny.digits("test")
    images, labels = source.arrays["image"].astype(np.float64) * (1 / 255), source.arrays["label"]
    logits = built.model(images, training=False).numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    values = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(500), labels]
    kernels = [v.numpy() for path, v in paths.trainable(built.model).items() if path.endswith("kernel")]
    penalty = 1e-2 * sum(np.sum(kernel**2) for kernel in kernels)
    results = built.eval_blocks["test"]()
    assert results["loss"] == pytest.approx(values.mean() + penalty, rel=1e-12)
    assert results["accuracy"] == np.mean(logits.argmax(axis=1) == labels)


def test_evaluation_changes_nothing():
    built = build("graph")
    built.train_block(2)
    before = snapshot(built)
    built.eval_blocks["test"]()
    assert_same_bits(snapshot(built), before)


def test_k_out_of_range_is_refused():
    built = build("graph")
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"k={k} is not between 1 and block_steps=10"):
            built.train_block(k)


def test_a_parameter_that_the_loss_does_not_use_is_named():
    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["image"], training=training)
            logits = tf.stop_gradient(logits) + 0 * model.layers[-1].bias
            return {"ce": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {"logits": logits}

        return loss

    built = build("graph", {"make_loss": make_loss})
    with pytest.raises(UserError) as caught:
        built.train_block(1)
    assert str(caught.value) == (
        "the loss does not depend on dense/kernel, dense/bias, dense_1/kernel, so it would never train."
        " Use it in make_loss, or set trainable=False on its layer."
    )


def test_a_frozen_layer_stays_as_it_is():
    def make_model(cfg):
        model = load.load("tests/tiny.py").functions["make_model"](cfg)
        model.layers[1].trainable = False
        return model

    built = build("graph", {"make_model": make_model})
    frozen = built.model.layers[1].kernel.numpy()
    built.train_block(5)
    assert built.model.layers[1].kernel.numpy().tobytes() == frozen.tobytes()
    assert list(built.train_block.inspect()) == ["dense_1/kernel", "dense_1/bias"]


def test_two_terms_have_their_own_weights_and_a_term_without_weight_is_zero():
    """Term b counts the even labels alone; term c has no weight at all and neither adds nor makes a NaN."""

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["image"], training=training)
            even = batch["weight"] * tf.cast(batch["label"] % 2 == 0, tf.float32)
            return {
                "a": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"]),
                "b": losses.sparse_cross_entropy(2 * logits, batch["label"], even),
                "c": losses.sparse_cross_entropy(logits, batch["label"], 0 * batch["weight"]),
            }, {"logits": logits}

        return loss

    settings = {"train.precision": "float64", "model.dropout": 0.0}
    built = build("graph", {"make_loss": make_loss}, **settings)
    batch = built.data.at(0)
    logits = built.model(batch["image"], training=False)
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits).numpy()
    doubled = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], 2 * logits).numpy()
    row = built.train_block(1).row(0)
    b = doubled[batch["label"].numpy() % 2 == 0].mean()
    assert row["loss/a"] == pytest.approx(values.mean(), rel=1e-12)
    assert row["loss/b"] == pytest.approx(b, rel=1e-12)
    assert row["loss/c"] == 0
    assert row["loss"] == pytest.approx(values.mean() + b, rel=1e-12)
    assert np.isfinite(row["gradient_norm"])


def test_total_is_the_sum_of_means():
    terms = {"a": losses.Term(tf.constant(6.0), tf.constant(3.0)), "b": losses.Term(tf.constant(5.0), tf.constant(0.0))}
    assert float(total(terms)) == 2.0


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_weight_may_be_a_count(precision):
    """Of tokens, say: an integer, in training and in evaluation."""

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["image"], training=training)
            term = losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])
            return {"a": losses.Term(term.sum, tf.math.count_nonzero(batch["weight"]))}, {"logits": logits}

        return loss

    settings = {"train.precision": precision, "train.micro_batches": 4}
    counted, summed = build("graph", {"make_loss": make_loss}, **settings), build("graph", **settings)
    assert counted.train_block(2).row(1)["loss"] == summed.train_block(2).row(1)["loss"]
    assert counted.eval_blocks["test"]()["loss"] == summed.eval_blocks["test"]()["loss"]


@pytest.mark.parametrize("mode", ["graph", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("xla", "eager"))])
def test_a_block_halts_before_the_step_that_is_not_finite(mode):
    settings = {"schedule.learning_rate": 1e30, "optimizer.name": "sgd", "schedule.warmup": ""}
    built = build(mode, **settings)
    start, block = snapshot(built), built.train_block(10)
    assert block.is_halted and 1 < len(block.rows) < 10
    finite = [np.isfinite([row["loss"], row["gradient_norm"]]).all() for row in map(block.row, range(len(block.rows)))]
    assert finite == [True] * (len(finite) - 1) + [False]
    assert int(built.state.step) == int(built.state.updates) == len(finite) - 1
    halted = snapshot(built)
    put_back(built, start)
    built.train_block(len(finite) - 1)
    assert_same_bits(snapshot(built), halted)


def test_inspect_leaves_moving_averages_alone():
    """The forward pass in training moves those of BatchNorm; looking at gradients must not."""
    built = build("graph", with_model(lambda: [keras.layers.Dense(16), keras.layers.BatchNormalization()]))
    built.train_block(3)
    before = snapshot(built)
    built.train_block.inspect()
    assert_same_bits(snapshot(built), before)
    built.train_block(1)
    assert snapshot(built)["model/batch_normalization/moving_mean"].tolist() != (
        before["model/batch_normalization/moving_mean"].tolist()
    )


def test_a_model_with_a_compiled_part_is_no_draw():
    class Nested(keras.layers.Layer):
        @tf.function
        def call(self, inputs):
            return 2 * inputs

    build("graph", with_model(lambda: [Nested()])).train_block(1)


def test_a_penalty_of_training_alone_is_none_in_evaluation():
    class Activity(keras.layers.Layer):
        def call(self, inputs, training=None):
            if training:
                self.add_loss(1e-3 * tf.reduce_sum(inputs**2))
            return inputs

    built = build("graph", with_model(lambda: [keras.layers.Dense(8), Activity()]))
    assert built.train_block(1).row(0)["loss/penalty"] > 0
    assert built.eval_blocks["test"]()["loss/penalty"] == 0


def test_variables_of_two_dtypes_train_together():
    layers = with_model(
        lambda: [
            keras.layers.Dense(8, dtype="float64", kernel_regularizer="l2"),
            keras.layers.Dense(8, dtype="float32", kernel_regularizer="l2"),
        ]
    )
    row = build("graph", layers).train_block(1).row(0)
    assert np.isfinite([row["loss"], row["gradient_norm"]]).all()

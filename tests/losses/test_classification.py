"""framework/losses against NumPy in float64."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from framework import testing
from framework.errors import UserError
from framework.losses import Term, classification, sparse_cross_entropy
from tests.compile_modes import FAST_MODES, MODES


def reference(logits, labels, weight):
    logits = logits.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_sum = top[..., 0] + np.log(np.exp(logits - top).sum(-1))
    values = log_sum - np.take_along_axis(logits, labels[..., np.newaxis], -1)[..., 0]
    return (values * weight).sum(), weight.sum()


def example(shape=(32,), classes=10, dtype=np.float32, scale=5.0):
    rng = np.random.default_rng(3)
    logits = (scale * rng.normal(size=(*shape, classes))).astype(dtype)
    return logits, rng.integers(0, classes, shape), rng.integers(0, 3, shape).astype(np.float32)


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 1e-6)])
@pytest.mark.parametrize("shape", [(32,), (4, 7)], ids=["examples", "tokens"])
def test_sum_and_weight_are_those_of_the_formula(mode, dtype, tolerance, shape):
    logits, labels, weight = example(shape, dtype=dtype)
    term = MODES[mode](sparse_cross_entropy)(tf.constant(logits), tf.constant(labels), tf.constant(weight))
    wanted = reference(logits, labels, weight.astype(np.float64))
    assert term.sum.dtype == term.weight.dtype == dtype
    assert float(term.sum) == pytest.approx(wanted[0], rel=tolerance)
    assert float(term.weight) == wanted[1]


def test_gradient_is_probabilities_minus_the_label_and_has_a_gradient_itself():
    logits, labels, weight = example((4, 3), classes=5, dtype=np.float64)

    def value(x):
        return sparse_cross_entropy(x, labels, weight).sum

    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = value(x)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = weight[..., np.newaxis] * (probabilities - np.eye(5)[labels])
    np.testing.assert_allclose(tape.gradient(found, x), expected, rtol=0, atol=1e-14)
    testing.check_gradients(value, [logits], order=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_logits_of_a_graph_are_an_xla_program_with_the_same_numbers(monkeypatch, dtype, smoothing):
    logits, labels, weight = example((6, 7), classes=11)
    logits = tf.cast(logits, dtype)

    def value_and_gradients(logits):
        with tf.GradientTape() as outer:
            outer.watch(logits)
            with tf.GradientTape() as tape:
                tape.watch(logits)
                term = sparse_cross_entropy(logits, labels, weight, smoothing)
            gradient = tape.gradient(term.sum, logits)
            along = tf.reduce_sum(tf.cast(gradient, tf.float32) * np.cos(np.arange(11)).astype(np.float32))
        return term.sum, gradient, outer.gradient(along, logits)

    plain = tf.function(value_and_gradients, autograph=False)(logits)
    monkeypatch.setattr(classification, "_LARGE", 6 * 7 * 11)
    graph = tf.function(value_and_gradients, autograph=False).get_concrete_function(logits).graph
    compiled = [op for op in graph.get_operations() if "Call" in op.type and op.get_attr("_XlaMustCompile")]
    assert len(compiled) >= 2
    found = tf.function(value_and_gradients, autograph=False)(logits)
    step = 2e-6 if dtype == "float32" else 2**-8
    for theirs, ours in zip(plain, found, strict=True):
        theirs, ours = (tf.cast(value, tf.float64).numpy() for value in (theirs, ours))
        np.testing.assert_allclose(ours, theirs, rtol=step, atol=step)


@pytest.mark.parametrize("scale", [1e4, 80.0])
def test_logits_far_apart(scale):
    """Where exp overflows or the probability of the label is 0."""
    logits, labels, weight = example(scale=scale)
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        term = sparse_cross_entropy(x, labels, weight)
    assert float(term.sum) == pytest.approx(reference(logits, labels, weight)[0], rel=1e-6)
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = weight[..., np.newaxis] * (probabilities - np.eye(10)[labels])
    np.testing.assert_allclose(tape.gradient(term.sum, x), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_makes_the_loss_nan_in_every_mode(label, mode):
    """Which the step stops at, and says where; a kernel that raises would leave no report."""
    logits, labels, weight = example()
    labels[np.argmax(weight)] = label
    term = MODES[mode](sparse_cross_entropy)(tf.constant(logits), tf.constant(labels), tf.constant(weight))
    assert np.isnan(term.sum)
    assert float(term.weight) == pytest.approx(weight.sum(), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 1), (7,), (), (4, 7, 1)])
def test_a_weight_for_something_else_than_each_label_is_refused(shape):
    """It would be broadcast over the values and not over the sum of weights: a loss several times too large."""
    logits, labels, _ = example((4, 7))
    with pytest.raises(UserError) as error:
        sparse_cross_entropy(logits, labels, np.ones(shape, np.float32))
    assert str(error.value) == (
        f"sparse_cross_entropy: labels have shape (4, 7) and weights {shape}, but each label has its weight."
        " Write e.g. tf.cast(labels != PADDING, tf.float32)."
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits, labels, weight = example(dtype={"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype])
    term = sparse_cross_entropy(tf.constant(logits), labels, tf.constant(weight, dtype))
    assert term.sum.dtype == term.weight.dtype == tf.float32
    assert float(term.sum) == pytest.approx(reference(logits, labels, weight)[0], rel=1e-6)


def test_padding_changes_nothing():
    logits, labels, weight = example(dtype=np.float64)
    term = sparse_cross_entropy(logits, labels, weight)
    padded = sparse_cross_entropy(
        np.concatenate([logits, 1e3 * logits[:5]]),
        np.concatenate([labels, labels[5:10]]),
        np.append(weight, np.zeros(5)),
    )
    assert float(padded.sum) == pytest.approx(float(term.sum), rel=1e-15)
    assert float(padded.weight) == float(term.weight)


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("label", [-1, 255, -100])
def test_a_label_without_weight_may_be_no_class(mode, label):
    """As what marks padding and unlabelled pixels in many data sets is; the kernel raises on it, XLA makes it NaN."""
    logits, labels, weight = example(dtype=np.float64)
    marked = np.where(weight == 0, label, labels)
    assert (marked == label).any()

    def term_and_gradient(labels):
        x = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(x)
            term = sparse_cross_entropy(x, labels, weight)
        return (*term, tape.gradient(term.sum, x))

    compiled = MODES[mode](term_and_gradient)
    for found, wanted in zip(compiled(tf.constant(marked)), compiled(tf.constant(labels)), strict=True):
        assert found.numpy().tobytes() == wanted.numpy().tobytes()


def test_no_weight_at_all_is_a_term_of_zeros():
    logits, labels, weight = example()
    assert [float(value) for value in sparse_cross_entropy(tf.constant(logits), labels, 0 * weight)] == [0.0, 0.0]


def test_terms_of_parts_add_up_to_the_whole():
    logits, labels, weight = example((30,), dtype=np.float64)
    whole = sparse_cross_entropy(logits, labels, weight)
    parts = [sparse_cross_entropy(logits[i : i + 7], labels[i : i + 7], weight[i : i + 7]) for i in range(0, 30, 7)]
    assert float(sum(part.sum for part in parts)) == pytest.approx(float(whole.sum), rel=1e-14)
    assert float(sum(part.weight for part in parts)) == float(whole.weight)


def test_labels_may_be_of_any_integer_type():
    logits, labels, weight = example()
    dtypes = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    sums = {float(sparse_cross_entropy(tf.constant(logits), labels.astype(dtype), weight).sum) for dtype in dtypes}
    assert len(sums) == 1


def test_large_logits_do_not_overflow():
    term = sparse_cross_entropy(tf.constant([[1e4, 0.0], [0.0, -1e4]]), [1, 0], [1.0, 1.0])
    assert (float(term.sum), float(term.weight)) == (1e4, 2.0)


def test_gradient_is_softmax_minus_one_hot_times_the_weight():
    logits, labels, weight = example(dtype=np.float64)
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        term = sparse_cross_entropy(x, labels, weight)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = (softmax - np.eye(10)[labels]) * weight[:, np.newaxis]
    assert np.abs(tape.gradient(term.sum, x) - wanted).max() < 1e-14


def test_a_term_is_a_pair():
    assert Term(1, 2) == (1, 2)
    assert Term._fields == ("sum", "weight")


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("large", [False, True], ids=["", "in XLA programs"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_logits_without_weight_may_be_nan(mode, bad, large, smoothing, monkeypatch):
    """0 times NaN is NaN: sum and gradients, of the rows with a weight too, would be lost."""
    monkeypatch.setattr(classification, "_LARGE", 1 if large else 2**20)
    logits, labels, weight = example(dtype=np.float64)
    weight[:5] = [0.0, 0.5, 1.5, 0.0, 0.25]
    spoiled = np.where(weight[:, np.newaxis] == 0, bad, logits)

    @MODES[mode]
    def term_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            term = sparse_cross_entropy(x, labels, weight, smoothing)
        return (*term, tape.gradient(term.sum, x))

    *term, gradient = term_and_gradient(tf.constant(spoiled))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    targets = (1 - smoothing) * np.eye(10)[labels] + smoothing / 10
    expected = -(weight[:, np.newaxis] * targets * np.log(probabilities)).sum(), weight.sum()
    assert [float(part) for part in term] == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(gradient, weight[:, np.newaxis] * (probabilities - targets), atol=1e-14)


def test_a_single_logit_has_no_softmax():
    """Its cross-entropy is 0 whatever the model says, and so is its gradient."""
    with pytest.raises(UserError) as error:
        sparse_cross_entropy(np.ones((4, 1)), np.zeros(4, np.int32), np.ones(4))
    assert str(error.value) == (
        "sparse_cross_entropy: logits have shape (4, 1) and labels (4,). The softmax of a single logit is always 1:"
        " write losses.binary_cross_entropy(logits[..., 0], labels, weight), or give the model two classes."
    )


def test_one_hot_labels_are_refused():
    with pytest.raises(UserError, match=r"logits have shape \(4, 3\) and labels \(4, 3\), but each row of logits has"):
        sparse_cross_entropy(np.ones((4, 3)), np.eye(4, 3), np.ones((4, 3)))


@pytest.mark.parametrize("mode", FAST_MODES)
def test_a_label_between_two_classes_makes_the_loss_nan(mode):
    term = MODES[mode](lambda labels: sparse_cross_entropy(tf.eye(3), labels, tf.ones(3)))
    assert np.isnan(term(tf.constant([0.0, 1.9, 2.0])).sum)
    assert float(term(tf.constant([0.0, 1.0, 2.0])).sum) == pytest.approx(3 * np.log(1 + 2 / np.e), rel=1e-6)

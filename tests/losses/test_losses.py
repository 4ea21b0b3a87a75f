"""Losses against their definitions in float64 NumPy: sums, weights, gradients, what is no target."""

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, testing
from tests.compile_modes import FAST_MODES, MODES
from tests.losses import references as ref

BATCH, CLASSES = 12, 5
CLASS_WEIGHTS = (0.5, 2.0, 1.0, 0.0, 3.0)


def drawn(seed=4):
    """Everything that a loss takes, in float64; the third and the last example have no weight."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 4, BATCH) / 2.0
    weight[[2, -1]] = 0
    probabilities = rng.dirichlet(np.ones(CLASSES), BATCH)
    probabilities[0] = np.eye(CLASSES)[2]
    return {
        "logits": 2 * rng.normal(size=(BATCH, CLASSES)),
        "labels": rng.integers(0, CLASSES, BATCH),
        "probabilities": probabilities,
        "logit": 2 * rng.normal(size=BATCH),
        "logit_rows": 2 * rng.normal(size=(BATCH, 3)),
        "bits": rng.integers(0, 2, BATCH).astype(float),
        "bit_rows": rng.integers(0, 2, (BATCH, 3)).astype(float),
        "shares": rng.uniform(size=BATCH),
        "targets": 2 * rng.normal(size=BATCH),
        "target_rows": rng.normal(size=(BATCH, 3)),
        "weight": weight,
    }


def each(function, *names, **more):
    """A reference of a batch: (sum, weight), by a function of one example's arrays."""

    def reference(a):
        values = [function(*(a[name][i] for name in names), **more) for i in range(BATCH)]
        return sum(w * v for w, v in zip(a["weight"], values, strict=True)), a["weight"].sum()

    return reference


def rows(function, *names):
    """A reference of losses with several values an example, each of the example's weight."""

    def reference(a):
        values = [[function(*of) for of in zip(*(a[name][i] for name in names), strict=True)] for i in range(BATCH)]
        return sum(w * sum(v) for w, v in zip(a["weight"], values, strict=True)), 3 * a["weight"].sum()

    return reference


def by_class(function, factor, *names):
    """A reference in which the weight of an example is multiplied."""

    def reference(a):
        weight = [w * factor(a[names[-1]][i]) for i, w in enumerate(a["weight"])]
        values = [function(*(a[name][i] for name in names)) for i in range(BATCH)]
        return sum(w * v for w, v in zip(weight, values, strict=True)), sum(weight)

    return reference


def one_hot(label):
    return np.eye(CLASSES)[label]


# name: (function, what it takes beside the weight, reference)
CASES = {
    "sparse": (
        losses.sparse_cross_entropy,
        "logits labels",
        each(lambda z, y: ref.cross_entropy(z, one_hot(y)), "logits", "labels"),
    ),
    "sparse, smoothed": (
        lambda *a: losses.sparse_cross_entropy(*a, smoothing=0.1),
        "logits labels",
        each(lambda z, y: ref.cross_entropy(z, 0.9 * one_hot(y) + 0.02), "logits", "labels"),
    ),
    "sparse, by class": (
        lambda *a: losses.sparse_cross_entropy(*a, class_weights=CLASS_WEIGHTS),
        "logits labels",
        by_class(lambda z, y: ref.cross_entropy(z, one_hot(y)), lambda y: CLASS_WEIGHTS[y], "logits", "labels"),
    ),
    "categorical": (
        losses.categorical_cross_entropy,
        "logits probabilities",
        each(ref.cross_entropy, "logits", "probabilities"),
    ),
    "categorical, smoothed, by class": (
        lambda *a: losses.categorical_cross_entropy(*a, smoothing=0.2, class_weights=CLASS_WEIGHTS),
        "logits probabilities",
        by_class(
            lambda z, t: ref.cross_entropy(z, 0.8 * t + 0.2 / CLASSES),
            lambda t: np.dot(t, CLASS_WEIGHTS),
            "logits",
            "probabilities",
        ),
    ),
    "binary": (losses.binary_cross_entropy, "logit shares", each(ref.binary_cross_entropy, "logit", "shares")),
    "binary rows": (
        losses.binary_cross_entropy,
        "logit_rows bit_rows",
        rows(ref.binary_cross_entropy, "logit_rows", "bit_rows"),
    ),
    "binary, smoothed, by class": (
        lambda *a: losses.binary_cross_entropy(*a, smoothing=0.1, class_weights=(0.5, 3.0)),
        "logit bits",
        by_class(
            lambda z, t: ref.binary_cross_entropy(z, 0.9 * t + 0.05), lambda t: 3.0 if t else 0.5, "logit", "bits"
        ),
    ),
    "focal": (losses.focal, "logit bits", each(ref.focal, "logit", "bits")),
    "focal, without alpha": (
        lambda *a: losses.focal(*a, gamma=1.5, alpha=None),
        "logit bits",
        each(ref.focal, "logit", "bits", gamma=1.5, alpha=None),
    ),
    "focal, gamma 0": (
        lambda *a: losses.focal(*a, gamma=0, alpha=None),
        "logit bits",
        each(ref.binary_cross_entropy, "logit", "bits"),
    ),
    "hinge": (losses.hinge, "logit bits", each(lambda z, t: max(0.0, 1 - (1 if t else -1) * z), "logit", "bits")),
    "sparse hinge": (
        lambda *a: losses.sparse_hinge(*a, margin=0.7),
        "logits labels",
        each(ref.sparse_hinge, "logits", "labels", margin=0.7),
    ),
    "kl": (losses.kl_divergence, "logits probabilities", each(ref.kl, "logits", "probabilities")),
    "squared": (losses.mean_squared_error, "logit targets", each(lambda p, t: (p - t) ** 2, "logit", "targets")),
    "squared rows": (
        losses.mean_squared_error,
        "logit_rows target_rows",
        rows(lambda p, t: (p - t) ** 2, "logit_rows", "target_rows"),
    ),
    "absolute": (losses.mean_absolute_error, "logit targets", each(lambda p, t: abs(p - t), "logit", "targets")),
    "huber": (
        lambda *a: losses.huber(*a, delta=1.5),
        "logit targets",
        each(lambda p, t: ref.huber(p - t, 1.5), "logit", "targets"),
    ),
    "cosine": (
        losses.cosine_distance,
        "logit_rows target_rows",
        each(ref.cosine_distance, "logit_rows", "target_rows"),
    ),
}


def given(names, dtype, arrays):
    """The tensors that a loss takes, floats in `dtype`."""

    def tensor(array):
        return tf.constant(array) if array.dtype.kind == "i" else tf.cast(tf.constant(array), dtype)

    return [tensor(arrays[name]) for name in (*names.split(), "weight")]


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("name", CASES)
def test_sum_and_weight_are_those_of_the_definition(name, mode):
    function, names, reference = CASES[name]
    arrays = drawn()
    term = MODES[mode](function)(*given(names, tf.float64, arrays))
    assert [float(term.sum), float(term.weight)] == pytest.approx(reference(arrays), rel=1e-12)
    assert term.sum.dtype == term.weight.dtype == tf.float64


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name, dtype):
    """Of the numbers as they are after rounding; the sum of a thousand of them would be wrong in the third digit."""
    function, names, reference = CASES[name]
    arrays = drawn()
    tensors = given(names, dtype, arrays)
    rounded = {n: tf.cast(x, tf.float64).numpy() for n, x in zip((*names.split(), "weight"), tensors, strict=True)}
    if "labels" in rounded:
        rounded["labels"] = arrays["labels"]
    term = function(*tensors)
    assert term.sum.dtype == term.weight.dtype == tf.float32
    # Rounded probabilities do not add up to 1; the losses do not say so of less than a hundredth.
    assert [float(term.sum), float(term.weight)] == pytest.approx(reference(rounded), rel=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_differences(name):
    function, names, _ = CASES[name]
    first, *others = given(names, tf.float64, drawn())
    order = 1 if "hinge" in name or name in ("absolute", "huber") else 2  # of which the second has steps
    testing.check_gradients(lambda x: function(x, *others).sum, [first], order=order)


@pytest.mark.parametrize(
    ("mode", "bad"),
    [("graph", np.nan), ("eager", np.inf), *(pytest.param("xla", x, marks=pytest.mark.slow) for x in (np.nan, np.inf))],
)
@pytest.mark.parametrize("name", CASES)
def test_what_has_no_weight_may_be_anything(name, bad, mode):
    """Neither the sum nor a gradient hears of it: both have the bits that they have beside zeros."""
    function, names, _ = CASES[name]
    first, second = names.split()
    arrays = drawn()
    spoiled = {name: array.copy() for name, array in arrays.items()}
    is_empty = arrays["weight"] == 0
    spoiled[first][is_empty] = bad
    spoiled[second][is_empty] = -7 if second == "labels" else bad

    def value_and_gradient(x, *others):
        with tf.GradientTape() as tape:
            tape.watch(x)
            term = function(x, *others)
        return (*term, tape.gradient(term.sum, x))

    compiled = MODES[mode](value_and_gradient)
    *term, gradient = compiled(*given(names, tf.float64, spoiled))
    *expected, clean = compiled(*given(names, tf.float64, arrays))
    assert [float(x) for x in term] == [float(x) for x in expected]
    np.testing.assert_array_equal(gradient, clean)
    assert not gradient.numpy()[is_empty].any()


@pytest.mark.parametrize("mode", ["eager", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (_, names, _) in CASES.items()
        if names.split()[1] in ("probabilities", "bits", "bit_rows", "shares")
    ],
)
@pytest.mark.parametrize("bad", [-0.5, 1.5, np.nan])
def test_a_target_that_is_no_probability_makes_the_loss_nan(name, bad, mode):
    function, names, _ = CASES[name]
    arrays = drawn()
    arrays[names.split()[1]][4] = bad
    assert np.isnan(MODES[mode](function)(*given(names, tf.float64, arrays)).sum)


def test_targets_of_other_sums_or_between_make_the_loss_nan():
    arrays = drawn()
    arrays["probabilities"][4] *= 0.9  # such as a softmax that was taken twice, or several classes at once
    assert np.isnan(losses.categorical_cross_entropy(*given("logits probabilities", tf.float64, arrays)).sum)
    arrays["bits"][4] = 0.5
    assert np.isnan(losses.focal(*given("logit bits", tf.float64, arrays)).sum)


def test_hinge_takes_no_target_between_no_and_yes():
    assert np.isnan(losses.hinge([2.0, 1.0], [1.0, 0.5], [1.0, 1.0]).sum)
    assert float(losses.hinge([2.0, 1.0], [1.0, 0.5], [1.0, 0.0]).sum) == 0


@pytest.mark.parametrize("function", [losses.focal, losses.binary_cross_entropy, losses.hinge])
@pytest.mark.parametrize("logit", [-1e4, 1e4, 0.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_logits_far_from_zero_are_finite_and_so_are_gradients(function, logit, target):
    x = tf.constant([logit])
    with tf.GradientTape() as tape:
        tape.watch(x)
        term = function(x, [target], [1.0])
    is_wrong = (logit > 0) != bool(target) and logit
    assert np.isfinite(term.sum) and np.isfinite(tape.gradient(term.sum, x)).all()
    assert (float(term.sum) > 1000) == bool(is_wrong)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_angle_of_very_long_and_short_vectors(scale):
    left, right = np.array([[1.0, 2.0, -1.0]]), np.array([[0.5, 1.0, 2.0]])
    term = losses.cosine_distance(tf.constant(left * scale, tf.float32), tf.constant(right, tf.float32), [1.0])
    assert float(term.sum) == pytest.approx(ref.cosine_distance(left[0], right[0]), rel=1e-6)


def test_a_vector_of_zeros_has_a_distance_of_1_and_no_gradient():
    x = tf.zeros([1, 3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        term = losses.cosine_distance(x, tf.ones([1, 3]), [1.0])
    assert float(term.sum) == 1.0 and not tape.gradient(term.sum, x).numpy().any()


# losses.mean
@pytest.mark.parametrize("mode", FAST_MODES)
def test_a_mean_of_own_values_is_the_weighted_one(mode):
    rng = np.random.default_rng(7)
    values, weight = rng.normal(size=(6, 2, 3)), np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0])
    values[[1, 4]] = np.nan
    term = MODES[mode](losses.mean)(tf.constant(values), tf.constant(weight))
    kept = [0, 2, 3, 5]
    assert float(term.sum) == pytest.approx((values[kept] * weight[kept, np.newaxis, np.newaxis]).sum(), rel=1e-14)
    assert float(term.weight) == 6 * weight.sum()
    full = np.broadcast_to(weight[:, np.newaxis, np.newaxis], values.shape)
    assert [float(x) for x in losses.mean(values, full)] == pytest.approx([float(x) for x in term], rel=1e-15)


def test_a_weight_may_be_bool():
    """`labels != PADDING` is the first weight that comes to mind."""
    logits, labels = tf.constant([[[1.0, 2.0, 0.5]] * 3] * 2), tf.constant([[1, 2, 0], [2, 0, 0]])
    targets = tf.one_hot(labels, 3)
    for loss, label in ((losses.sparse_cross_entropy, labels), (losses.categorical_cross_entropy, targets)):
        found, expected = (loss(logits, label, weight) for weight in (labels != 0, tf.cast(labels != 0, tf.float32)))
        assert [float(x) for x in found] == [float(x) for x in expected] and float(found.weight) == 3


def test_a_mean_of_half_precision_or_counts_is_summed_in_float32():
    ones = tf.ones([3001], tf.bfloat16)  # above 256 bfloat16 has no odd numbers
    for values in (ones, tf.ones([3001], tf.int32), tf.ones([3001], tf.bool)):
        term = losses.mean(values, ones)
        assert (float(term.sum), float(term.weight), term.sum.dtype) == (3001.0, 3001.0, tf.float32)


def test_gradients_of_a_mean_are_the_weights():
    x = tf.constant([1.0, np.nan, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        term = losses.mean(x * x, [2.0, 0.0, 1.0])
    gradient = tape.gradient(term.sum, x).numpy()
    assert gradient[[0, 2]].tolist() == [4.0, 6.0]


@pytest.mark.parametrize("factor", [1e-3, 3, np.float64(1e-3)])
def test_a_term_is_scaled_in_its_own_precision(factor):
    """A number that was float32 on the way is another one: 1e-3 differs by 4.7e-8 of itself."""
    term = factor * losses.Term(tf.constant(7.0, tf.float64), tf.constant(2.0, tf.float64))
    assert float(term.sum) == float(factor) * 7.0 and float(term.weight) == 2.0

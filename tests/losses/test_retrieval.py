"""framework/losses/retrieval.py and ordinal.py against NumPy in float64, on one device and on two replicas."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, paths, rng, testing
from framework.errors import UserError
from framework.losses.retrieval import _alias_table
from tests.compile_modes import FAST_COMPILED, MODES
from tests.distribute.replicated import DOUBLE, on, weights
from tests.small import build

BATCH, WIDTH, COUNT = 6, 3, 4
KEY = rng.key(5)
each_mode = pytest.mark.parametrize("compiled", FAST_COMPILED)


def given():
    """Users and items, of which two are the same and one has no weight, and drawn negatives, of which one is a hit."""
    random = np.random.default_rng(2)
    return {
        "users": random.normal(size=(BATCH, WIDTH)),
        "items": random.normal(size=(BATCH, WIDTH)),
        "ids": np.array([7, 3, 7, 9, 2, 5]),
        "weight": np.array([1.0, 0.5, 2.0, 0.0, 1.0, 1.0]),
        "log_q": random.normal(size=BATCH),
        "negatives": random.normal(size=(COUNT, WIDTH)),
        "rows": np.array([3, 8, 1, 1], np.int32),
        "drawn_log_q": random.normal(size=COUNT),
    }


def reference(a, has_q=False, has_negatives=False, hardest=None):
    """The sum and weight, one candidate after the other."""
    total = 0.0
    for i in range(BATCH):
        own = a["users"][i] @ a["items"][i] - has_q * a["log_q"][i]
        others = []
        for j in range(BATCH):
            if a["weight"][j] and a["ids"][j] != a["ids"][i]:
                others.append(a["users"][i] @ a["items"][j] - has_q * a["log_q"][j])
        for j in range(COUNT * has_negatives):
            if a["rows"][j] != a["ids"][i]:
                others.append(a["users"][i] @ a["negatives"][j] - has_q * a["drawn_log_q"][j])
        others = sorted(others, reverse=True)[:hardest]
        total += a["weight"][i] * -np.log(np.exp(own) / (np.exp(own) + np.exp(others).sum()))
    return total, a["weight"].sum()


def term_of(a, has_q=False, has_negatives=False, hardest=None):
    a = {name: tf.constant(value) for name, value in a.items()}
    extra = {}
    if has_negatives:
        extra = {"negatives": a["negatives"], "drawn": losses.Drawn(a["rows"], a["drawn_log_q"])}
    log_q = a["log_q"] if has_q else None
    return losses.in_batch_softmax(a["users"], a["items"], a["ids"], a["weight"], log_q, hardest=hardest, **extra)


CHOICES = [(False, False, None), (True, False, None), (True, True, None), (False, True, 2), (True, True, 100)]


@each_mode
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_candidates_are_those_of_the_definition(compiled, choice):
    arrays = given()
    term = compiled(lambda: term_of(arrays, *choice))()
    assert [float(x) for x in term] == pytest.approx(reference(arrays, *choice), rel=1e-12)
    assert isinstance(term_of(arrays), losses.BatchDependent)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_gradients_are_those_of_differences(choice):
    arrays = given()

    def total(users, items, negatives):
        return term_of({**arrays, "users": users, "items": items, "negatives": negatives}, *choice).sum

    inputs = [tf.constant(arrays[name]) for name in ("users", "items", "negatives")]
    testing.check_gradients(total, inputs)


def test_an_example_without_weight_may_be_anything():
    arrays, spoiled = given(), given()
    for name in ("users", "items", "log_q"):
        spoiled[name][3] = np.nan

    def value_and_gradients(a):
        users, items = tf.constant(a["users"]), tf.constant(a["items"])
        with tf.GradientTape() as tape:
            tape.watch([users, items])
            term = term_of({**a, "users": users, "items": items}, True, True)
        return [float(term.sum), *(g.numpy().tolist() for g in tape.gradient(term.sum, [users, items]))]

    assert value_and_gradients(spoiled) == value_and_gradients(arrays)


def test_a_batch_of_one_film_has_no_negatives_and_no_loss():
    arrays = given()
    arrays["ids"][:] = 4
    users = tf.constant(arrays["users"])
    with tf.GradientTape() as tape:
        tape.watch(users)
        term = term_of({**arrays, "users": users})
    assert float(term.sum) == 0 and not tape.gradient(term.sum, users).numpy().any()


def test_half_precision_is_computed_in_float32():
    arrays = given()
    halves = {name: tf.cast(x, tf.bfloat16) if x.dtype == np.float64 else x for name, x in arrays.items()}
    rounded = {n: tf.cast(x, tf.float64).numpy() if n != "ids" and n != "rows" else x for n, x in halves.items()}
    term = term_of(halves, True, True)
    assert term.sum.dtype == tf.float32
    assert float(term.sum) == pytest.approx(reference(rounded, True, True)[0], rel=2e-6)


def retrieval(cfg):
    """Users and items of a net, repeated ids, logQ and negatives that the step draws."""

    def loss(model, batch, training):
        features = model(batch["x"], training=training)
        ids = batch["label"] + 1
        drawn = losses.popularity_negatives("negatives", 5, np.array([0.0, 3.0, 1.0, 2.0, 4.0]))
        vectors = tf.one_hot(drawn.rows, 5, dtype=features.dtype)[:, :3]
        log_q = tf.gather(tf.constant([0.0, -1.0, -2.0, -0.5], features.dtype), ids)
        term = losses.in_batch_softmax(
            features, tf.tanh(features), ids, batch["weight"], log_q, vectors, drawn, hardest=8
        )
        return {"retrieval": term}, {}

    loss.needs_collectives = True
    return loss


def test_negatives_of_two_replicas_are_those_of_one_device():
    def make_model(cfg):
        return keras.Sequential([keras.layers.Dense(3), layers.Dropout(0.25)])

    functions = {"make_loss": retrieval, "make_model": make_model}
    settings = {**DOUBLE, "train.compile": "graph"}
    one, two = build(functions=functions, **settings), build(functions=functions, **on(2, **settings))
    start = weights(one)
    rows = [run.train_block(12).row(11)["loss"] for run in (one, two)]
    assert rows[1] == pytest.approx(rows[0], rel=1e-12)
    for path, value in weights(one).items():
        np.testing.assert_allclose(weights(two)[path], value, rtol=1e-11, atol=1e-13)
        assert np.abs(value - start[path]).max() > 1e-3


# draws
def drawn(make, step=0, first=0, compiled=MODES["eager"]):
    def call():
        with rng.scope(KEY, step, first):
            return make()

    return [x.numpy() for x in compiled(call)()]


COUNTS = np.array([0.0, 5.0, 0.0, 1.0, 14.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda count=50: losses.uniform_negatives("draw", count, 9, first=2),
        lambda count=50: losses.popularity_negatives("draw", count, COUNTS, 0.75),
    ],
    ids=["uniform", "popularity"],
)
def test_draws_are_those_of_the_step_in_every_mode_and_on_every_replica(make):
    rows, log_q = drawn(make)
    for other in (
        drawn(make, first=96),
        *(drawn(make, compiled=compiled) for compiled in MODES.values()),
    ):
        assert np.array_equal(other[0], rows) and np.array_equal(other[1], log_q)
    assert not np.array_equal(drawn(make, step=1)[0], rows)
    with pytest.raises(RuntimeError, match=r"outside of rng\.scope"):
        make()


def test_draws_have_the_frequencies_that_they_say():
    count = 40_000
    for make, shares in (
        (lambda: losses.uniform_negatives("draw", count, 6), np.array([0, 1, 1, 1, 1, 1]) / 5),
        (lambda: losses.popularity_negatives("draw", count, COUNTS), COUNTS / 20),
        (lambda: losses.popularity_negatives("draw", count, COUNTS, 0.5), COUNTS**0.5 / (COUNTS**0.5).sum()),
    ):
        rows, log_q = drawn(make)
        found = np.bincount(rows, minlength=len(shares))
        assert (np.abs(found - count * shares) <= 5 * np.sqrt(count * shares * (1 - shares))).all()
        assert rows.dtype == np.int32
        np.testing.assert_allclose(log_q, np.log(count * shares[rows]), rtol=1e-6)


def test_the_alias_table_holds_the_probabilities():
    shares = np.random.default_rng(0).pareto(1, 300)
    shares[::7] = 0
    shares /= shares.sum()
    keep, alias = _alias_table(shares)
    of_rows = np.bincount(np.arange(300), keep / 2**32, 300) + np.bincount(alias, 1 - keep / 2**32, 300)
    np.testing.assert_allclose(of_rows / 300, shares, atol=2.0**-32)
    assert (keep[::7] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"items": np.zeros([5, WIDTH])},
            "in_batch_softmax: users have shape (6, 3), items (5, 3), ids (6,), weight (6,), but must be [batch, width]"
            " of users and items, and [batch] of the others.",
        ),
        (
            {"weight": np.ones([6, 1])},
            "in_batch_softmax: users have shape (6, 3), items (6, 3), ids (6,), weight (6, 1), but must be [batch,"
            " width] of users and items, and [batch] of the others.",
        ),
        (
            {"negatives": np.zeros([4, 2])},
            "in_batch_softmax: negatives have shape (4, 2), but must be (4, 3).",
        ),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(UserError) as error:
        term_of({**given(), **change}, has_negatives=True)
    assert str(error.value) == message


def test_negatives_without_rows_and_numbers_without_a_meaning_are_refused():
    arrays = given()
    with pytest.raises(UserError, match=r"negatives are vectors of the rows of drawn. Give both, or neither."):
        losses.in_batch_softmax(*(arrays[n] for n in ("users", "items", "ids", "weight")), negatives=arrays["items"])
    with pytest.raises(UserError, match=r"hardest=0 must be at least 1, or None for all candidates."):
        term_of(arrays, hardest=0)
    with pytest.raises(UserError, match=r"uniform_negatives: count=3 of the rows 5 to 4; both must be at least 1."):
        losses.uniform_negatives("draw", 3, 5, first=5)
    for counts in (np.zeros(4), np.array([1.0, -1.0]), np.array([1.0, np.inf]), np.ones([2, 2])):
        with pytest.raises(UserError, match="popularity_negatives: count=3 of counts of shape"):
            losses.popularity_negatives("draw", 3, counts)


# ordinal
def ratings_given():
    random = np.random.default_rng(4)
    logits = -np.sort(-3 * random.normal(size=(8, 4)))
    return logits, np.array([0, 1, 2, 3, 4, 4, 0, 2]), np.array([1, 2, 0.5, 1, 1, 3, 0, 1.0])


def log_share(logits, rating):
    above = np.concatenate([[1.0], 1 / (1 + np.exp(-logits)), [0.0]])
    return np.log(above[rating] - above[rating + 1])


@each_mode
def test_ratings_have_the_probabilities_between_cutpoints(compiled):
    logits, ratings, weight = ratings_given()
    term = compiled(losses.ordinal)(tf.constant(logits), tf.constant(ratings), tf.constant(weight))
    expected = -sum(w * log_share(z, r) for z, r, w in zip(logits, ratings, weight, strict=True))
    assert [float(x) for x in term] == pytest.approx([expected, weight.sum()], rel=1e-12)
    for bad, where in ((5, 1), (-1, 2)):
        spoiled = ratings.copy()
        spoiled[where] = bad
        assert np.isnan(compiled(losses.ordinal)(tf.constant(logits), tf.constant(spoiled), tf.constant(weight)).sum)


def test_gradients_of_ratings_are_those_of_differences_and_finite_far_away():
    logits, ratings, weight = ratings_given()
    testing.check_gradients(lambda x: losses.ordinal(x, ratings, weight).sum, [tf.constant(logits)])
    far = tf.constant([[60.0, 50.0], [50.0, -50.0], [-50.0, -60.0]])
    with tf.GradientTape() as tape:
        tape.watch(far)
        term = losses.ordinal(far, tf.constant([0, 1, 2]), tf.ones([3]))
    assert float(term.sum) == pytest.approx(120.0) and np.isfinite(tape.gradient(term.sum, far)).all()


def test_a_rating_without_weight_may_be_anything():
    logits, ratings, weight = ratings_given()
    expected = float(losses.ordinal(logits, ratings, weight).sum)
    logits[6], ratings[6] = np.nan, 99
    x = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        term = losses.ordinal(x, ratings, weight)
    assert float(term.sum) == expected and np.isfinite(tape.gradient(term.sum, x)).all()


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (np.zeros(7, int), "but each rating [...] has logits [..., levels - 1]."),
        (np.zeros(8), "ordinal: ratings are float64, but must be the integers 0 to levels - 1."),
    ],
)
def test_what_is_no_rating_is_refused(ratings, message):
    logits, _, weight = ratings_given()
    with pytest.raises(UserError) as error:
        losses.ordinal(logits, ratings, weight)
    assert message in str(error.value)


def test_a_model_learns_ratings_in_order():
    """The cutpoints of scores that are the ratings with logistic noise are between the ratings."""
    random = np.random.default_rng(1)
    scores = random.uniform(-3, 3, 4000)
    ratings = np.digitize(scores + random.logistic(size=4000) * 0.5, [-1, 0.5])
    layer = layers.CumulativeLogits(3, dtype="float64")
    x = tf.constant(scores * 2)
    layer(x)
    optimizer = keras.optimizers.Adam(0.05)
    for _ in range(150):
        with tf.GradientTape() as tape:
            term = losses.ordinal(layer(x), ratings, tf.ones_like(x))
            value = term.sum / term.weight
        optimizer.minimize(value, layer.trainable_variables, tape)
    np.testing.assert_allclose(-layer(tf.zeros([1], tf.float64))[0], [-2, 1], atol=0.15)
    assert list(paths.variables(layer)) == ["first", "steps"]


@each_mode
def test_all_items_but_padding_are_candidates(compiled):
    a = given()
    items = np.random.default_rng(3).normal(size=(10, WIDTH))
    scores = a["users"] @ items[1:].T
    each = np.log(np.exp(scores).sum(1)) - scores[np.arange(BATCH), a["ids"] - 1]
    term = compiled(losses.full_softmax)(*(tf.constant(x) for x in (a["users"], items, a["ids"], a["weight"])))
    np.testing.assert_allclose(term.sum, each @ a["weight"], rtol=1e-12)
    np.testing.assert_allclose(term.weight, a["weight"].sum())

"""framework/layers/towers.py against NumPy in float64: pooling, empty lists, shards, rows that are not there."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, data, layers, losses, paths
from tests.compile_modes import FAST_COMPILED, MODES
from tests.small import build

ROWS, WIDTH = 7, 3
LISTS = np.array([[1, 3, 3, 0], [0, 0, 0, 0], [6, 0, 0, 2]])
WEIGHTS = np.array([[1.0, 0.5, 2.0, 9.0], [1.0, 1.0, 1.0, 1.0], [0.25, 1.0, 1.0, 3.0]])
each_mode = pytest.mark.parametrize("compiled", FAST_COMPILED)
each_split = pytest.mark.parametrize("shards", [1, 3])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def made(shards=1, dtype="float64"):
    """A table, and its rows."""
    layer = layers.EmbeddingTable(ROWS, WIDTH, shards=shards, dtype=dtype)
    layer(tf.constant([0]))
    table, first = normal(ROWS, WIDTH), 0
    for variable in layer.variables:
        variable.assign(table[first : first + variable.shape[0]])
        first += variable.shape[0]
    assert first == ROWS
    return layer, table


@each_split
@each_mode
def test_rows_are_looked_up_and_padding_is_zeros(compiled, shards):
    layer, table = made(shards)
    table[0] = 0
    assert np.array_equal(compiled(layer)(tf.constant(LISTS)), table[LISTS])


@each_split
@each_mode
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["counted", "weighted"])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_lists_are_pooled_and_an_empty_one_is_zeros(compiled, shards, weights, pooling):
    layer, table = made(shards)
    expected = np.zeros([len(LISTS), WIDTH])
    for place, rows in enumerate(LISTS):
        factors = [(row, 1.0 if weights is None else weights[place, i]) for i, row in enumerate(rows) if row]
        total = sum(factor for _, factor in factors) if pooling == "mean" else 1.0
        for row, factor in factors:
            expected[place] += table[row] * factor / total
    weights = None if weights is None else tf.constant(weights)
    pooled = compiled(lambda rows: layer(rows, weights, pooling))(tf.constant(LISTS))
    np.testing.assert_allclose(pooled, expected, rtol=1e-14, atol=1e-15)
    assert not pooled[1].numpy().any()


@each_split
@each_mode
@pytest.mark.parametrize("row", [-1, ROWS, 2**31 - 1])
def test_a_row_that_is_not_there_is_never_clipped(compiled, shards, row):
    """It raises, or is NaN; in XLA, which takes the nearest row, it is NaN."""
    layer, table = made(shards)
    call = compiled(layer)
    if shards == 1 and compiled is not MODES["xla"]:
        with pytest.raises(tf.errors.InvalidArgumentError):
            call(tf.constant([[1, row]]))
        return
    vectors = call(tf.constant([[1, row]])).numpy()
    assert np.isnan(vectors[0, 1]).all() and np.array_equal(vectors[0, 0], table[1])


@pytest.mark.parametrize(("mode", "shards"), [("xla", 1), ("graph", 3)])
def test_a_step_names_a_row_that_is_not_there(mode, shards):
    def make_model(cfg):
        return keras.Sequential(
            [layers.EmbeddingTable(ROWS, WIDTH, shards=shards, name="films"), keras.layers.Dense(3)]
        )

    def make_data(cfg, split):
        rows = np.arange(40, dtype=np.int32) % ROWS
        rows[17] = ROWS
        source = data.Source({"film": rows, "label": rows % 3}, origin="test")
        return data.make_batches(source, cfg, training=split == "train")

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["film"], training=training)
            return {"error": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

        return loss

    functions = {"make_model": make_model, "make_data": make_data, "make_loss": make_loss}
    run = build(functions=functions, **{"train.compile": mode, "data.shuffle": False, "train.micro_batches": 1})
    with pytest.raises(config.UserError, match=f"takes {ROWS}, which is "):
        run.train_block(4)


@each_split
def test_a_gradient_has_the_rows_that_were_looked_up_and_none_of_padding(shards):
    layer, table = made(shards)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(tf.constant(LISTS), pooling="sum")))
    gradients = tape.gradient(loss, layer.variables)
    assert all(isinstance(gradient, tf.IndexedSlices) for gradient in gradients)
    dense = np.concatenate([tf.convert_to_tensor(gradient) for gradient in gradients])
    expected = np.zeros_like(table)
    for rows in LISTS:
        total = sum(table[row] for row in rows if row)
        for row in rows[rows > 0]:
            expected[row] += 2 * total
    np.testing.assert_allclose(dense, expected, rtol=1e-13, atol=1e-14)


def test_shards_start_from_numbers_of_their_own():
    layer = layers.EmbeddingTable(6, 4, shards=3)
    layer(tf.constant([0]))
    one, two, three = (variable.numpy() for variable in layer.variables)
    assert one.shape == two.shape == three.shape == (2, 4)
    assert not np.array_equal(one, two) and not np.array_equal(two, three)


def test_a_shared_table_is_one_and_a_group_freezes_it():
    """Items and histories share a table, of which no bit moves."""

    class Towers(keras.Model):
        def __init__(self):
            super().__init__()
            self.films = layers.EmbeddingTable(ROWS, WIDTH, shards=2)
            self.user = layers.Tower([3])

        def call(self, x, training=None):
            rows = tf.cast(tf.abs(x) * 2, tf.int32) % ROWS
            film = self.films(rows[:, 0])
            return self.user([film, self.films(rows, pooling="mean")])

    everything = ["films/table_0", "films/table_1", "user/dense/0/kernel", "user/dense/0/bias"]
    for groups, moved in (((), everything), (("films/table.*: frozen",), everything[2:])):
        run = build(functions={"make_model": lambda cfg: Towers()}, **{"optimizer.groups": groups})
        before = {path: variable.numpy() for path, variable in paths.variables(run.model).items()}
        assert list(before) == everything
        run.train_block(3)
        after = paths.variables(run.model)
        assert [path for path in everything if not np.array_equal(before[path], after[path])] == moved


@pytest.mark.parametrize("half_life", [1.0, 5.0])
def test_weights_halve_with_every_half_life_of_items(half_life):
    history = np.array([[4, 2, 0, 9], [0, 0, 0, 0], [0, 1, 1, 1], [5, 0, 0, 0]])
    ages = np.array([[2, 1, np.inf, 0], [np.inf] * 4, [np.inf, 2, 1, 0], [0, np.inf, np.inf, np.inf]])
    weights = layers.recency_weights(tf.constant(history), half_life)
    np.testing.assert_allclose(weights, 0.5 ** (ages / half_life), rtol=1e-6)


def test_a_history_is_pooled_by_each_half_life_over_the_root_of_its_weights():
    history, half_lives = np.array([[4, 2, 0, 9], [0, 0, 0, 0], [5, 0, 0, 0]]), (1.0, 5.0)
    ages = np.array([[2, 1, np.inf, 0], [np.inf] * 4, [0, np.inf, np.inf, np.inf]])
    vectors = normal(3, 4, WIDTH)
    pooled = layers.recency_pooled(tf.constant(vectors), tf.constant(history), half_lives)
    expected = np.zeros((3, 2, WIDTH))
    for row, place in np.ndindex(3, 2):
        weights = 0.5 ** (ages[row] / half_lives[place])
        if weights.any():
            expected[row, place] = weights @ vectors[row] / weights.sum() ** 0.5
    np.testing.assert_allclose(pooled, expected.reshape(3, -1), rtol=1e-6)


def made_encoder(**options):
    layer = layers.HistoryEncoder(2, 4, heads=2, feed_forward=5, max_length=6, dtype="float64", **options)
    layer(tf.zeros([1, 5, 4], tf.float64), tf.ones([1, 5], tf.bool))
    for number, variable in enumerate(layer.variables):
        variable.assign(normal(*variable.shape, seed=10 + number))
    return layer


@each_mode
def test_a_history_is_the_same_with_padding_on_either_side_and_between(compiled):
    layer = made_encoder()
    items = normal(3, 4)
    places = ([0, 1, 2], [2, 3, 4], [0, 2, 4])
    padded, is_item = np.full([4, 5, 4], 7.0), np.zeros([4, 5], bool)
    for row, at in enumerate(places):
        padded[row, at], is_item[row, at] = items, True
    found = compiled(layer)(tf.constant(padded), tf.constant(is_item)).numpy()
    alone = layer(tf.constant(items[np.newaxis]), tf.ones([1, 3], tf.bool)).numpy()[0]
    np.testing.assert_allclose(found[:3], [alone] * 3, rtol=1e-12, atol=1e-13)
    assert not found[3].any()  # a user without a history


def test_a_history_is_the_output_of_its_newest_place_which_no_later_one_changes():
    layer = made_encoder()
    items, is_item = tf.constant(normal(2, 5, 4)), tf.ones([2, 5], tf.bool)
    outputs = layer.encoder(items, is_item, causal=True).numpy()
    for length in range(1, 6):
        newest = layer(items[:, :length], is_item[:, :length])
        np.testing.assert_allclose(newest, outputs[:, length - 1], rtol=1e-12, atol=1e-13)


def test_an_encoder_that_is_not_causal_sees_later_tokens():
    layer = made_encoder()
    items, is_item = normal(1, 5, 4), tf.ones([1, 5], tf.bool)
    other = items.copy()
    other[0, 4] += 1
    for causal, is_same in ((True, True), (False, False)):
        one, two = (layer.encoder(tf.constant(x), is_item, causal=causal)[0, 0].numpy() for x in (items, other))
        assert np.array_equal(one, two) == is_same


def test_a_tower_is_dense_layers_of_all_features():
    layer = layers.Tower([4, 2], dtype="float64")
    features = [normal(5, 3), normal(5, 2, seed=1)]
    found = layer([tf.constant(x) for x in features])
    (hidden, bias), (kernel, last) = ((dense.kernel.numpy(), dense.bias.numpy()) for dense in layer.dense)
    expected = np.maximum(np.concatenate(features, 1) @ hidden + bias, 0) @ kernel + last
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_score_is_a_product_of_the_vectors_for_an_index(similarity, learned):
    layer = layers.Score(similarity, temperature=0.2, learned=learned, dtype="float64")
    users, items, bias = normal(4, 3), normal(4, 3, seed=1), normal(4, seed=2)
    items[1] = 0
    lengths = np.linalg.norm(users, axis=1)[:, np.newaxis] * np.linalg.norm(items, axis=1)
    products = users @ items.T / 0.2
    expected = products if similarity == "dot" else products / np.where(lengths > 0, lengths, 1)
    scores = layer(tf.constant(users), tf.constant(items), tf.constant(bias))
    np.testing.assert_allclose(scores, np.diag(expected) + bias, rtol=1e-12)
    left, right = layer.user_vectors(tf.constant(users), has_bias=True), layer.item_vectors(items, bias)
    np.testing.assert_allclose(tf.matmul(left, right, transpose_b=True), expected + bias, rtol=1e-12)
    assert len(layer.trainable_variables) == learned


@pytest.mark.parametrize("compiled", ["eager", "graph", "xla"])
def test_equal_vectors_have_equal_directions_wherever_they_lie(compiled):
    layer = layers.Score("cosine")
    vectors = normal(100, 4).astype(np.float32)
    fn = layer.item_vectors if compiled == "eager" else tf.function(layer.item_vectors, jit_compile=compiled == "xla")
    found = fn(tf.constant(np.tile(vectors, (13, 1)))).numpy().reshape(13, 100, 4)
    assert (found == found[0]).all()
    shorter = fn(tf.constant(np.tile(vectors[:1], (13, 1)))).numpy()
    assert (shorter == shorter[0]).all()
    wide = vectors.astype(np.float64)
    np.testing.assert_allclose(found[0], wide / np.linalg.norm(wide, axis=1, keepdims=True), rtol=3e-7)


def test_cutpoints_stay_in_order_and_expected_ratings_are_means():
    layer = layers.CumulativeLogits(5, dtype="float64")
    layer(tf.zeros([1], tf.float64))
    np.testing.assert_allclose(-layer(tf.zeros([1], tf.float64))[0], [-1.5, -0.5, 0.5, 1.5], rtol=1e-6)
    layer.steps.assign([-8.0, 0.0, 3.0])
    logits = layer(tf.constant([0.3, -9.0]))
    cutpoints = -1.5 + np.concatenate([[0], np.cumsum(np.log1p(np.exp([-8.0, 0.0, 3.0])))])
    np.testing.assert_allclose(logits, np.array([[0.3], [-9.0]]) - cutpoints, rtol=1e-6)
    above = 1 / (1 + np.exp(-logits.numpy()))
    shares = np.concatenate([[[1], [1]], above], 1) - np.concatenate([above, [[0], [0]]], 1)
    ratings = [1.0, 2.0, 3.0, 4.0, 5.5]
    np.testing.assert_allclose(layer.expected(logits, ratings), shares @ ratings, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.EmbeddingTable(4, 2, shards=5), "shards=5 must be from 1 to rows=4"),
        (lambda: made()[0](LISTS, pooling="max"), "pooling='max' is none of none, mean, sum"),
        (
            lambda: made()[0](LISTS, weights=WEIGHTS),
            "weights are given, but pooling='none' would ignore them; use pooling='mean' or 'sum'",
        ),
        (
            lambda: made()[0](LISTS, weights=WEIGHTS[:, :1], pooling="mean"),
            "weights have shape (3, 1), but rows (3, 4); each row has its weight",
        ),
        (lambda: layers.recency_weights(LISTS, 0), "half_life=0 must be above 0"),
        (lambda: layers.Tower([]), "sizes is empty; give at least the size of the vectors, e.g. [64, 32]"),
        (lambda: layers.Score("euclid"), "similarity='euclid' is none of dot, cosine"),
        (lambda: layers.Score(temperature=math.nan), "temperature=nan must be above 0"),
        (lambda: layers.CumulativeLogits(1), "levels=1 must be at least 2"),
        (
            lambda: layers.CumulativeLogits(3).expected(tf.zeros([2, 2]), [1, 2]),
            "ratings=[1, 2] must be 3 numbers, one for each level",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)

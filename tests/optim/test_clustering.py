"""Clustering against NumPy in float64 and tensorflow_model_optimization."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import optim, paths, testing
from framework.config import UserError, base_config
from framework.optim.clustering import _sizes, _sums, cluster_means, find_clusters
from tests.compile_modes import FAST_MODES, MODES

ZERO = np.int64(0)


def settings(**values):
    """Returns the section `cluster` of a resolved config."""
    return ConfigDict({**base_config().cluster.to_dict(), "name": "kmeans", "begin": 1, **values})


def lloyd(weights, clusters):
    """Returns the cluster of each weight, 0 for zeros, and the centroids after 30 iterations, in float64."""
    flat = weights.ravel().astype(np.float64)
    others = flat[flat != 0]
    count = clusters - (len(others) < len(flat))
    below, above = others[others < 0].max(), others[others > 0].min()
    centroids = np.linspace(others.min(), others.max() - (above - below), count)
    centroids += np.where(centroids > below, above - below, 0)  # none in the gap
    for _ in range(30):
        nearest = np.abs(others[:, None] - centroids).argmin(1)
        for place in {*nearest}:
            centroids[place] = others[nearest == place].mean()
    index = np.zeros(flat.shape, int)
    index[flat != 0] = 1 + np.abs(others[:, None] - centroids).argmin(1)
    return index.reshape(weights.shape), centroids


def pruned(shape, share=0.0, dtype=np.float64, seed=0):
    draws = np.random.default_rng(seed)
    return (draws.normal(size=shape) * (draws.uniform(size=shape) >= share)).astype(dtype)


@pytest.mark.parametrize("share", [0.0, 0.8])
@pytest.mark.parametrize("mode", FAST_MODES)
def test_clusters_are_those_of_lloyds_algorithm(mode, share):
    weights = pruned((40, 25), share)
    index, centroids, sizes = MODES[mode](lambda w: find_clusters(w, 8))(tf.constant(weights))
    wanted, means = lloyd(weights, 8)
    np.testing.assert_array_equal(index, wanted)
    np.testing.assert_allclose(centroids[1 : len(means) + 1], means, rtol=1e-12)
    assert centroids[0] == 0 and (np.asarray(centroids[len(means) + 1 :]) == 0).all()
    np.testing.assert_array_equal(sizes, np.bincount(wanted.ravel(), minlength=9))


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize(
    ("values", "clusters"), [([-3.0, -1e-6, 0.0, 2e-6, 5.0], 5), ([-3.0, 1e-6, 2e-6, 5.0], 4), ([0.0, 0.5], 2)]
)
def test_values_that_are_few_enough_are_the_clusters(mode, values, clusters):
    """None is moved, however near two of them are."""
    weights = np.random.default_rng(0).choice(np.float32(values), size=(20, 7))
    index, centroids, _ = MODES[mode](lambda w: find_clusters(w, clusters))(tf.constant(weights))
    np.testing.assert_array_equal(np.asarray(centroids)[np.asarray(index)], weights)


def test_a_cluster_of_more_weights_than_float32_counts_has_its_size():
    assert list(_sizes(tf.zeros([2**24 + 6], tf.int32), 2, tf.float32).numpy()) == [2**24 + 6, 0]


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_sums_are_added_in_the_order_of_the_weights(mode, dtype):
    """By every way to compute a step, to the last bit; float16 is summed by another operation."""
    draws = np.random.default_rng(7)
    index, values = draws.integers(0, 5, 3000), (20 * draws.normal(size=3000)).astype(dtype)
    expected = [values[index == place].cumsum(dtype=dtype)[-1] for place in range(5)]
    sums = MODES[mode](lambda v, i: _sums(v, i, 6))(tf.constant(values), tf.constant(index, tf.int32))
    if dtype != "float16":  # which XLA sums in float32
        np.testing.assert_array_equal(sums, [*expected, 0], strict=False)
    np.testing.assert_allclose(sums, [*expected, 0], rtol=0, atol=2e-2 * np.abs(expected).max())
    assert sums.dtype == dtype


def test_no_cluster_lies_in_the_gap_that_pruning_leaves():
    draws = np.random.default_rng(6)
    weights = np.float32(draws.uniform(4, 5, (30, 4)) * draws.integers(-1, 2, (30, 4)))
    _, centroids, sizes = find_clusters(tf.constant(weights), 7)
    assert (sizes.numpy()[:7] > 0).all() and (np.abs(centroids.numpy()[1:7]) > 4).all()


@pytest.mark.parametrize("mode", FAST_MODES)
def test_a_variable_of_zeros_has_no_other_cluster(mode):
    index, centroids, sizes = MODES[mode](lambda w: find_clusters(w, 3))(tf.zeros((4, 2)))
    assert not np.asarray(index).any() and not np.asarray(centroids).any()
    np.testing.assert_array_equal(sizes, [8, 0, 0, 0])


@pytest.mark.parametrize("mode", FAST_MODES)
def test_means_are_exact_where_nothing_changed(mode):
    """A mean of equal numbers, summed and divided, is another number in one of three cases."""
    centroids = np.float32([0, *np.random.default_rng(1).normal(size=5)])
    index = np.random.default_rng(2).integers(0, 6, (50, 40))
    sizes = np.bincount(index.ravel(), minlength=6).astype(np.float32)
    means = MODES[mode](cluster_means)(*map(tf.constant, (centroids[index], index, centroids, sizes)))
    np.testing.assert_array_equal(means, centroids)


@pytest.mark.parametrize(("mode", "momentum"), [("eager", 0.0), ("graph", 0.875)])
def test_an_update_is_that_of_the_centroids_by_mean_gradients(mode, momentum):
    """A linear regression by SGD of the weights, and in NumPy of the centroids alone."""
    draws = np.random.default_rng(3)
    x, y = draws.normal(size=(64, 12)), draws.normal(size=(64, 5))
    kernel = tf.Variable(pruned((12, 5), 0.5))
    clusterer = optim.Clusterer(settings(clusters=4, begin=0), {"kernel": kernel})
    clusterer.restart()
    index, centroids = clusterer.indices["kernel"].numpy(), clusterer.centroids["kernel"].numpy()
    rate, decay = 1 / 16, 1 / 64  # exact in float32, as tf_keras keeps the rate
    optimizer = keras.optimizers.SGD(rate, momentum, weight_decay=decay, jit_compile=False)
    optimizer.build([kernel])

    def step(t):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.constant(x) @ kernel - y))
        optimizer.apply_gradients([(tape.gradient(loss, kernel), kernel)])
        clusterer.after_update(t, t - 1)

    step, velocity = MODES[mode](step), np.zeros(5)
    for t in range(1, 21):
        step(tf.constant(t, tf.int64))
        slopes = 2 * x.T @ (x @ centroids[index] - y) / y.size
        of_centroids = np.array([0, *(slopes[index == place].mean() for place in (1, 2, 3)), 0])  # zeros stay
        centroids = centroids * (1 - rate * decay)
        velocity = momentum * velocity - rate * of_centroids
        centroids = centroids + velocity
        np.testing.assert_allclose(kernel.numpy(), centroids[index], rtol=0, atol=1e-13)
    assert len(np.unique(kernel)) == 4 and np.abs(centroids - clusterer.centroids["kernel"]).max() < 1e-13


def test_weights_and_clusters_are_those_of_the_wrapper_of_tfmot():
    """From the same centroids, while no weight is nearer to another one: the wrapper looks at every step."""
    clustering = pytest.importorskip("tensorflow_model_optimization").clustering.keras
    experimental = pytest.importorskip("tensorflow_model_optimization.python.core.clustering.keras.cluster_config")
    plain = keras.Sequential([keras.Input([12]), keras.layers.Dense(5)])
    plain.layers[0].kernel.assign(pruned((12, 5), dtype=np.float32))
    clusterer = optim.Clusterer(settings(clusters=6, begin=0), {"kernel": plain.layers[0].kernel})
    before = plain.layers[0].kernel.numpy()
    clusterer.restart()
    twin = keras.Sequential([keras.Input([12]), keras.layers.Dense(5)])
    twin.layers[0].kernel.assign(before)
    wrapped = clustering.cluster_weights(
        twin,
        number_of_clusters=6,
        cluster_centroids_init=clustering.CentroidInitialization.LINEAR,
        cluster_gradient_aggregation=experimental.GradientAggregation.AVG,
    )
    (layer,) = wrapped.layers
    layer.cluster_centroids["kernel"].assign(clusterer.centroids["kernel"][1:])
    wrapped(np.zeros((1, 12), np.float32))
    index = clusterer.indices["kernel"].numpy()
    np.testing.assert_array_equal(layer.pulling_indices["kernel"].numpy() + 1, index)
    np.testing.assert_array_equal(layer.layer.kernel, plain.layers[0].kernel)

    draws = np.random.default_rng(4)
    x, y = (draws.normal(size=(32, width)).astype(np.float32) for width in (12, 5))
    optimizers = {id(model): keras.optimizers.SGD(0.01, jit_compile=False) for model in (plain, wrapped)}
    for t in range(1, 6):
        for model in (plain, wrapped):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
            weights = model.trainable_variables
            optimizers[id(model)].apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        clusterer.after_update(tf.constant(t, tf.int64), ZERO)
        wrapped(x)
        np.testing.assert_array_equal(layer.pulling_indices["kernel"].numpy() + 1, index)
        np.testing.assert_allclose(layer.layer.kernel, plain.layers[0].kernel, rtol=0, atol=1e-6)
    stripped = clustering.strip_clustering(wrapped)
    assert len(np.unique(stripped.layers[0].kernel)) == clusterer.distinct()["kernel"] == 6
    assert np.abs(plain.layers[0].kernel.numpy() - before).max() > 1e-3


@pytest.mark.parametrize("mode", FAST_MODES)
def test_clusters_are_found_when_due_and_a_step_that_is_left_out_changes_nothing(mode):
    draws = np.random.default_rng(5)
    weights = {"a/kernel": tf.Variable(pruned((6, 5), 0.3, np.float32)), "a/bias": tf.Variable(tf.ones(5))}
    average = {path: tf.Variable(draws.normal(size=v.shape).astype(np.float32)) for path, v in weights.items()}
    clustered = optim.clustered_variables(settings(), weights)
    clusterer = optim.Clusterer(settings(clusters=4, begin=3), clustered, [average])
    names = ("indices/a/kernel", "centroids/a/kernel", "sizes/a/kernel")
    assert {*paths.variables(clusterer)} == {"active", *names}
    update = MODES[mode](clusterer.after_update)
    for t in range(1, 6):
        kernel = weights["a/kernel"]
        kernel.assign_add(draws.normal(size=(6, 5)).astype(np.float32) * (kernel.numpy() != 0))
        dense, before = kernel.numpy(), testing.bits(clusterer)
        update(tf.constant(t, tf.int64), ZERO, tf.constant(False))
        assert testing.bits(clusterer) == before
        np.testing.assert_array_equal(kernel, dense)
        update(tf.constant(t, tf.int64), ZERO, *([tf.constant(True)] if t % 2 else []))
        if t < 3:
            assert testing.bits(clusterer) == before
            np.testing.assert_array_equal(kernel, dense)
            continue
        if t == 3:
            index, _ = lloyd(dense, 4)
            of_average = average["a/kernel"].numpy()
            assert len(np.unique(of_average)) == 4
        np.testing.assert_array_equal(clusterer.indices["a/kernel"], index)
        for place in range(1, 4):
            mean = dense[index == place].astype(np.float64).mean()
            np.testing.assert_allclose(kernel.numpy()[index == place], mean, rtol=1e-6)
        assert (kernel.numpy()[index == 0] == 0).all() and clusterer.distinct() == {"a/kernel": 4}
        np.testing.assert_array_equal(average["a/kernel"], of_average)
    assert (weights["a/bias"].numpy() == 1).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"include": "c/.*"},
            "cluster.include='c/.*' matches none of the parameters that can be clustered: a/kernel, b/kernel."
            " A regex must match a whole path.",
        ),
        (
            {"exclude": ".*"},
            "cluster.name='kmeans': no parameter is clustered. Those that can be are trained, of rank 2 or more and no"
            " bias: a/kernel, b/kernel.",
        ),
    ],
)
def test_a_choice_of_nothing_is_refused(values, message):
    weights = {path: tf.Variable(tf.ones((2, 3))) for path in ("a/kernel", "a/gamma", "b/kernel")}
    with pytest.raises(UserError) as error:
        optim.clustered_variables(settings(**values), weights)
    assert str(error.value) == message


def test_a_variable_of_zeros_is_refused_at_the_start():
    weights = {"a/kernel": tf.Variable(pruned((4, 3))), "b/kernel": tf.Variable(np.zeros((4, 3)))}
    clusterer = optim.Clusterer(settings(begin=0), weights)
    clusterer.refuse_useless_start()  # of a run that goes on
    clusterer.restart()
    with pytest.raises(UserError) as error:
        clusterer.refuse_useless_start()
    assert str(error.value) == (
        "cluster.name='kmeans': all weights of b/kernel are 0 at the start, so they would never be trained. Leave these"
        " out by --config.cluster.exclude."
    )

"""Weight clustering: from one update on, the weights of a variable share a few values, each that of a cluster.

    clusterer = Clusterer(config.cluster, clustered_variables(config.cluster, trained), [average.averages])
    clusterer.after_update(t, step)        # after update t = 1, 2, …
    clusterer.distinct()                   # {'dense/kernel': 16, …}

The clusters are found once, by Lloyd's algorithm from centroids on a line; from then on each weight stays in its
cluster, and after each update becomes the mean of the cluster. For updates that are linear in the gradients, such as
those of SGD with momentum and decay, that is the same update of the centroids by the mean of the gradients of their
weights. Han et al. take the sum. Weights that are exactly 0 have a cluster of their own, which stays 0.

Source: Han et al., 2016, "Deep compression". tensorflow_model_optimization has the means as `GradientAggregation.AVG`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from framework import compat, paths
from framework.errors import UserError
from framework.optim.due import if_due
from framework.optim.selection import matrices, selected

DISTINCT = "distinct_values"  # name in rows of the log and in result.json
_ITERATIONS = 30
_COUNTED = (tf.float32, tf.float64, tf.int32)  # the dtypes of sums by DenseBincount

_Clusters = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # the cluster of each weight, centroids, numbers of weights


def clustered_variables(settings: ConfigDict, trained: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """Returns {path: variable} of the parameters that are clustered.

    Args:
      settings: `config.cluster`.
      trained: {path: variable} of the parameters that are trained; frozen ones are never clustered.

    Raises:
      UserError: `include` or `exclude` matches nothing, or nothing is left.
    """
    legal = matrices(trained)
    chosen = selected("cluster", settings, legal, "parameters that can be clustered")
    if not chosen:
        raise UserError(
            f"cluster.name='{settings.name}': no parameter is clustered. Those that can be are trained, of rank 2 or"
            f" more and no bias: {', '.join(legal) or 'none'}."
        )
    return {path: legal[path] for path in chosen}


class Clusterer(tf.Module):
    """The clusters of variables.

    Args:
      settings: `config.cluster`, resolved.
      clustered: {path: variable}.
      followers: {path: variable} each, whose variables at the paths of `clustered` follow the weights, such as
        averages: they become the means of their clusters when the clusters are found.

    Attributes:
      indices: {path: uint8 variable of the same shape}; the cluster of each weight: 0 has the value 0, and
        1 to `clusters` the others. All 0 before the clusters are found.
      centroids: {path: floating variable [clusters + 1]}; 0 for a cluster without weights.
      sizes: {path: floating variable [clusters + 1]}; the number of weights of each cluster.
      active: bool variable; whether the clusters are found. The module tracks nothing else.
    """

    def __init__(
        self,
        settings: ConfigDict,
        clustered: Mapping[str, tf.Variable],
        followers: Sequence[Mapping[str, tf.Variable]] = (),
    ) -> None:
        super().__init__("cluster")
        self.begin: int = settings.begin
        self.clusters: int = settings.clusters
        # The model is saved as the model, not as part of its clusterer.
        self._clustered = compat.untracked(self, dict(clustered))
        self._followers = compat.untracked(self, [(path, one[path]) for one in followers for path in clustered])
        self.indices = {
            path: tf.Variable(tf.zeros(v.shape, tf.uint8), trainable=False) for path, v in clustered.items()
        }
        zeros = {path: tf.zeros([self.clusters + 1], _value(v).dtype) for path, v in clustered.items()}
        self.centroids = {path: tf.Variable(value, trainable=False) for path, value in zeros.items()}
        self.sizes = {path: tf.Variable(value, trainable=False) for path, value in zeros.items()}
        self.active = tf.Variable(False, trainable=False)

    def after_update(self, updates: tf.Tensor, step: tf.Tensor, applied: tf.Tensor | None = None) -> None:
        """Finds the clusters if they are due, and gives the weights of each cluster one value.

        Args:
          updates: int64 scalar; updates made, including this one.
          step: int64 scalar; not used.
          applied: bool scalar; False leaves clusters and weights as they are. None is as True.
        """
        is_on = tf.cast(updates, tf.int64) >= self.begin
        is_on = is_on if applied is None else is_on & applied
        if_due(is_on & ~self.active.read_value(), self._find, applied is not None)
        if_due(is_on, self._share, applied is not None)

    def share_all(self) -> None:
        """Gives the weights and followers of each cluster one value, such as after they were assigned."""
        if bool(self.active):
            self._share()
            self._share_followers()

    def restart(self) -> None:
        """Forgets the clusters, and finds those of the present weights if they are due before the first update."""
        self.active.assign(False)
        for variables in (self.indices, self.centroids, self.sizes):
            for variable in variables.values():
                variable.assign(tf.zeros_like(variable))
        if not self.begin:
            self.after_update(tf.constant(0, tf.int64), tf.constant(0, tf.int64))

    def distinct(self) -> dict[str, int]:
        """Returns {path: number of distinct values of the present weights}."""
        return {path: len(np.unique(_value(variable).numpy())) for path, variable in self._clustered.items()}

    def row(self) -> dict[str, float]:
        """Returns the number that is logged: the most distinct values of a variable; {} before there are clusters."""
        return {DISTINCT: max(self.distinct().values())} if bool(self.active) else {}

    def refuse_useless_start(self) -> None:
        """Raises UserError if all weights of a variable are 0 when clusters are found before the first update."""
        if not bool(self.active):
            return
        if empty := [path for path, index in self.indices.items() if not index.numpy().any()]:
            raise UserError(
                f"cluster.name='kmeans': all weights of {', '.join(empty)} are 0 at the start, so they would never be"
                " trained. Leave these out by --config.cluster.exclude."
            )

    def _find(self) -> None:
        """Finds the clusters of the present weights, and makes followers the means of their clusters."""
        for path, variable in self._clustered.items():
            index, centroids, sizes = find_clusters(_value(variable), self.clusters)
            self.indices[path].assign(index)
            self.centroids[path].assign(centroids)
            self.sizes[path].assign(sizes)
        self._share_followers()
        self.active.assign(True)

    def _share(self) -> None:
        """Makes the weights the means of their clusters, on every replica."""
        for path, variable in self._clustered.items():
            means = self._means(path, _value(variable))
            self.centroids[path].assign(means)
            weights = _values_of(means, self.indices[path].read_value())
            for copy in paths.copies(variable):
                copy.assign(weights)

    def _share_followers(self) -> None:
        for path, follower in self._followers:
            means = self._means(path, follower.read_value())
            follower.assign(_values_of(means, self.indices[path].read_value()))

    def _means(self, path: str, values: tf.Tensor) -> tf.Tensor:
        index, centroids, sizes = self.indices[path], self.centroids[path], self.sizes[path]
        return cluster_means(values, index.read_value(), centroids.read_value(), sizes.read_value())


def find_clusters(weights: tf.Tensor, clusters: int) -> _Clusters:
    """Returns the clusters of weights.

    They are the cluster of each weight (uint8, of the shape of `weights`), the centroids and the numbers of weights
    [clusters + 1].

    Weights that are 0 are in cluster 0, whose centroid is 0. The others have at most `clusters` clusters, one less if
    there are zeros: their distinct values, if these are so few; else those of Lloyd's algorithm, which begins with
    centroids at equal distances from the least to the largest, not counting the gap around 0 that pruning leaves, and
    takes a fixed number of iterations. A weight halfway between two centroids has the lower one.

    Args:
      weights: floating, of any shape, finite.
      clusters: 2 to 255.
    """
    flat = tf.reshape(weights, [-1])
    is_zero = tf.equal(flat, 0)
    infinity = tf.constant(float("inf"), flat.dtype)
    least = tf.reduce_min(tf.where(is_zero, infinity, flat))
    largest = tf.reduce_max(tf.where(is_zero, -infinity, flat))
    count = clusters - tf.cast(tf.reduce_any(is_zero), tf.int32)  # of those that are not 0
    places = tf.range(clusters)

    few = tf.where(places < count, _least_values(tf.where(is_zero, infinity, flat), clusters), infinity)
    steps = tf.cast(places, flat.dtype) / tf.cast(tf.maximum(count - 1, 1), flat.dtype)
    below = tf.reduce_max(tf.where(flat < 0, flat, -infinity))
    above = tf.reduce_min(tf.where(flat > 0, flat, infinity))
    gap = tf.where((below > -infinity) & (above < infinity), above - below, 0)
    line = least + (largest - gap - least) * steps
    line = tf.where(places < count, tf.where(line > below, line + gap, line), infinity)

    def assigned(centroids: tf.Tensor) -> tf.Tensor:
        middles = (centroids[1:] + centroids[:-1]) / 2
        return tf.where(is_zero, 0, tf.searchsorted(middles, flat) + 1)

    def improved(step: tf.Tensor, centroids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        whole, index = tf.concat([tf.zeros([1], flat.dtype), centroids], 0), assigned(centroids)
        return step + 1, cluster_means(flat, index, whole, _sizes(index, clusters + 1, flat.dtype))[1:]

    start = (tf.constant(0), line)
    _, lloyd = tf.while_loop(lambda step, _: step < _ITERATIONS, improved, start, parallel_iterations=1)
    is_few = tf.gather(few, count - 1) >= largest
    centroids = tf.where(is_few, few, lloyd)
    index = assigned(centroids)
    sizes = _sizes(index, clusters + 1, flat.dtype)
    centroids = tf.concat([tf.zeros([1], flat.dtype), tf.where(sizes[1:] > 0, centroids, 0)], 0)
    return tf.reshape(tf.cast(index, tf.uint8), weights.shape), centroids, sizes


def cluster_means(values: tf.Tensor, index: tf.Tensor, centroids: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Returns the mean of the values of each cluster: [clusters + 1], the first of which stays 0.

    The sums are of differences to the present centroids: their rounding errors are parts of a change, not of a weight,
    and values that are equal to their centroids leave these as they are, to the last bit.

    Args:
      values: floating, of any shape.
      index: of the same shape, integers: the cluster of each.
      centroids: [clusters + 1]; those of clusters without values stay.
      sizes: [clusters + 1]; the number of values of each cluster, in their dtype.
    """
    count = centroids.shape[0]
    flat, index = tf.reshape(values, [-1]), tf.cast(tf.reshape(index, [-1]), tf.int32)
    sums = _sums(flat - _values_of(centroids, index), index, count)
    means = centroids + sums / tf.maximum(sizes, 1)
    return tf.where(tf.range(count) > 0, means, tf.zeros_like(means))


def _sizes(index: tf.Tensor, count: int, dtype: tf.DType) -> tf.Tensor:
    """Returns how many entries of int32 `index` have each of the values 0 to `count` - 1: [count], in a dtype."""
    # Counted as integers: a float32 that counts by ones stays at 2**24.
    return tf.cast(_sums(tf.ones_like(index), index, count), dtype)


def _sums(values: tf.Tensor, index: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the sums of the values of each cluster, added in their order: [count].

    Args:
      values: [n], any numbers.
      index: int32 [n], 0 to `count` - 1: the cluster of each.
      count: number of clusters.
    """
    if values.dtype not in _COUNTED or tf.config.list_physical_devices("GPU"):  # where it is not deterministic
        return tf.math.unsorted_segment_sum(values, index, count)
    # The same bits in a tenth of the time. It adds up each row by itself, so there is one.
    row = {"input": index[tf.newaxis], "weights": values[tf.newaxis]}
    return tf.raw_ops.DenseBincount(**row, size=count, binary_output=False)[0]


def _least_values(values: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the `count` least distinct values in their order, the last of them again if there are fewer."""
    places = tf.range(count)
    infinity = tf.constant(float("inf"), values.dtype)

    def add(place: tf.Tensor, last: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        following = tf.reduce_min(tf.where(values > last, values, infinity))
        value = tf.where(tf.equal(following, infinity) & (place > 0), last, following)
        return place + 1, value, tf.where(tf.equal(places, place), value, found)

    start = (tf.constant(0), -infinity, tf.zeros([count], values.dtype))
    return tf.while_loop(lambda place, *_: place < count, add, start, parallel_iterations=1)[2]


def _values_of(centroids: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the centroid of each weight."""
    # In a graph on a CPU it takes two thirds of the time of tf.gather.
    return tf.gather_nd(centroids, tf.cast(index, tf.int32)[..., tf.newaxis])


def _value(variable: tf.Variable) -> tf.Tensor:
    return paths.copies(variable)[0].read_value()

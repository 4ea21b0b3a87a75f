"""Schedules of pruning in each way to compute a step, and in half precision; clusters in half precision.

The table is in framework/optim/README.md.

The polynomial schedule is in test_pruned_runs.py.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths, precision
from tests.interrupted import interrupted
from tests.optim.test_clustering import lloyd
from tests.small import build, differing, snapshot
from tests.test_equivalence import assert_copies_agree, distance

HALF = {"prune.sparsity": 0.5, "prune.begin": "2 steps", "prune.end": "8 steps", "prune.every": "2 steps"}
CONSTANT = {**HALF, "prune.schedule": "constant"}
# {name: (settings, shares of zeros in the end)}. The last two of six inputs fill up no group of four.
SCHEDULES = {
    "polynomial": (HALF, {"first/kernel": 1 / 2, "last/kernel": 1 / 2}),
    "constant": (CONSTANT, {"first/kernel": 1 / 2, "last/kernel": 1 / 2}),
    "2:4": ({**CONSTANT, "prune.pattern": "2:4"}, {"first/kernel": 1 / 3, "last/kernel": 1 / 2}),
    "keep": ({"prune.schedule": "keep"}, {"first/kernel": 1 / 3, "last/kernel": 1 / 3}),
}
FOLLOWED = {"ema.decay": 0.9, "lookahead.every": 3, "optimizer.name": "adamw", "optimizer.weight_decay": 0.01}
XLA = {"train.compile": "xla"}
SHARED = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "train.micro_batches": 2}


def make_model(cfg):
    """Returns a model of which a third of the weights are 0, for a schedule that keeps them."""

    def kernel(shape, dtype=None, **kwargs):
        values = np.random.default_rng(shape[0]).normal(size=shape) / 2
        if cfg.prune.schedule == "keep":
            values.flat[::3] = 0
        return tf.constant(values, dtype)

    first = keras.layers.Dense(8, "tanh", name="first", kernel_initializer=kernel)
    full = precision.full(cfg.train.precision)
    return keras.Sequential([first, keras.layers.Dense(3, name="last", kernel_initializer=kernel, dtype=full)])


def make(schedule, **more):
    """Returns a run that prunes by a schedule."""
    return build(functions={"make_model": make_model}, **{**SCHEDULES[schedule][0], **more})


def trained(schedule, **more):
    built = make(schedule, **FOLLOWED, **{"train.precision": "float64", **more})
    built.train_block(10)
    return built


@pytest.fixture(scope="module")
def graph():
    """Returns a function from a schedule to a run of operations on one device, of whole batches."""
    return functools.cache(trained)


def zeros(variables, paths_of):
    return {path: float(np.mean(variables[path].numpy() == 0)) for path in paths_of}


def cases(fast, slow):
    return [*fast, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


OTHERS = ("constant", "2:4", "keep")
WAYS = {(name, way): more for name in OTHERS for way, more in {"xla": XLA, "shared": SHARED}.items()}
FAST_WAYS = [("keep", "shared")]


@pytest.mark.parametrize(("schedule", "way"), cases(FAST_WAYS, [each for each in WAYS if each not in FAST_WAYS]))
def test_every_way_to_compute_a_step_has_the_same_masks(graph, schedule, way):
    built, wanted, shares = trained(schedule, **WAYS[schedule, way]), graph(schedule), SCHEDULES[schedule][1]
    for name in ("prune", "model", "ema", "lookahead"):
        one, other = (paths.variables(getattr(run.state, name)) for run in (built, wanted))
        if name == "prune":
            for path, mask in other.items():
                np.testing.assert_array_equal(one[path], mask, err_msg=path)
        else:
            assert distance(*({p: v.numpy() for p, v in each.items()} for each in (one, other))) <= 1e-12
    for run in (built, wanted):
        for variables in (paths.variables(run.model), run.state.ema.averages, run.state.lookahead.slow):
            assert zeros(variables, shares) == shares
    assert_copies_agree(built)


HALVES = [(name, half) for name in SCHEDULES for half in ("float16", "bfloat16")]
FAST_HALVES = [("polynomial", "bfloat16")]


@pytest.mark.parametrize(("schedule", "half"), cases(FAST_HALVES, [each for each in HALVES if each not in FAST_HALVES]))
def test_in_half_precision_the_full_weights_have_the_masks(schedule, half):
    scale = {"loss_scale.initial": 8.0} if half == "float16" else {}
    built = make(schedule, **{"train.precision": half, **scale})
    built.train_block(10)
    assert int(built.state.updates) == 10
    assert built.state.prune.sparsities() == SCHEDULES[schedule][1]
    for path, mask in built.state.prune.masks.items():
        weights = paths.variables(built.model)[path]
        assert weights.dtype == tf.float32
        np.testing.assert_array_equal(weights.numpy() != 0, mask)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_in_half_precision_the_full_weights_have_the_clusters(half, mode):
    """They are those of Lloyd's algorithm on the weights of a run without clusters, and stay as weights go on."""
    scale = {"loss_scale.initial": 8.0} if half == "float16" else {}
    settings = {**HALF, **scale, "train.precision": half, "train.compile": mode}
    clusters = {"cluster.name": "kmeans", "cluster.clusters": 4, "cluster.begin": "8 steps"}
    dense, built = (build(functions={"make_model": make_model}, **{**settings, **more}) for more in ({}, clusters))
    dense.train_block(8)
    built.train_block(8)
    expected = {path: lloyd(paths.variables(dense.model)[path].numpy(), 4) for path in built.state.cluster.indices}
    for path, (index, means) in expected.items():
        weights = paths.variables(built.model)[path]
        assert weights.dtype == tf.float32 and built.state.cluster.centroids[path].dtype == tf.float32
        np.testing.assert_array_equal(built.state.cluster.indices[path], index)
        np.testing.assert_allclose(weights.numpy(), np.array([0, *means])[index], rtol=0, atol=1e-6)
    before = {path: built.state.cluster.centroids[path].numpy() for path in expected}
    built.train_block(2)
    assert int(built.state.updates) == 10 and built.state.cluster.distinct() == dict.fromkeys(expected, 4)
    for path, (index, _) in expected.items():
        centroids = built.state.cluster.centroids[path].numpy()
        np.testing.assert_array_equal(built.state.cluster.indices[path], index)
        np.testing.assert_array_equal(paths.variables(built.model)[path].numpy(), centroids[index])
        assert (centroids[1:4] != before[path][1:4]).all() and centroids[0] == 0


RESUMED = [(name, way) for name in OTHERS for way in ("graph", "xla")]
FAST_RESUMED = [("keep", "graph")]


@pytest.mark.parametrize(
    ("schedule", "mode"), cases(FAST_RESUMED, [each for each in RESUMED if each not in FAST_RESUMED])
)
def test_a_resumed_run_ends_in_the_same_bits(schedule, mode, tmp_path):
    whole, resumed = interrupted(lambda: make(schedule, **FOLLOWED, **{"train.compile": mode}), tmp_path, 5, 5)
    assert not resumed.state.prune.masks["first/kernel"].numpy().all()
    resumed.train_block(5)
    assert differing(snapshot(whole), snapshot(resumed)) == set()

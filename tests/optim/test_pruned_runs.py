"""Pruning and clustering in whole runs: compile modes, skips, micro-batches, replicas, resume, averages, starts."""

import json

import numpy as np
import pytest
import tf_keras as keras

from framework import metrics, paths, testing
from framework.checkpoint.mean import restore_mean
from framework.config import UserError
from framework.run import loop
from tests.interrupted import interrupted
from tests.small import HOT_IN_HALF, build, differing, snapshot
from tests.test_equivalence import assert_copies_agree, distance

# Masks at updates 2, 4, 6, 8; 48 and 24 weights are pruned, and keep 10 and 5.
PRUNED = {"prune.sparsity": 0.8, "prune.begin": "2 steps", "prune.end": "8 steps", "prune.every": "2 steps"}
SHARES = {"first/kernel": 38 / 48, "last/kernel": 19 / 24}
CLUSTERED = {"cluster.name": "kmeans", "cluster.clusters": 4, "cluster.begin": "8 steps"}
DECAYED = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.01}
AVERAGED = {**PRUNED, **CLUSTERED, **DECAYED, "ema.decay": 0.9, "lookahead.every": 3}
TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}


def without_norm(cfg):
    """Returns a model in which no statistics depend on how a batch is cut."""
    return keras.Sequential([keras.layers.Dense(8, "tanh", name="first"), keras.layers.Dense(3, name="last")])


def masks(built):
    return {path: mask.numpy() for path, mask in built.state.prune.masks.items()}


def indices(built):
    return {path: index.numpy() for path, index in built.state.cluster.indices.items()}


def zeros(variables):
    return {path: float(np.mean(variables[path].numpy() == 0)) for path in SHARES}


def distinct(variables):
    return {path: len(np.unique(variables[path].numpy())) for path in SHARES}


@pytest.fixture(scope="module")
def graph():
    return trained()


def trained(**more):
    double = {"train.precision": "float64"}
    built = build(functions={"make_model": without_norm}, **{**AVERAGED, **double, **more})
    built.train_block(10)
    return built


def test_the_last_weights_and_what_follows_them_have_the_sparsity(graph):
    assert graph.state.prune.sparsities() == SHARES
    assert zeros(paths.variables(graph.model)) == zeros(graph.state.ema.averages) == SHARES
    assert zeros(graph.state.lookahead.slow) == SHARES
    with graph.weights("ema"):
        assert zeros(paths.variables(graph.model)) == SHARES
    assert graph.sparsity() == {"sparsity": 57 / 72, "sparsity_overall": 57 / 83}


def test_the_last_weights_and_their_average_have_few_values(graph):
    """Zeros are one of them."""
    assert graph.state.cluster.distinct() == distinct(paths.variables(graph.model)) == dict.fromkeys(SHARES, 4)
    assert distinct(graph.state.ema.averages) == dict.fromkeys(SHARES, 4)
    for path, index in indices(graph).items():
        np.testing.assert_array_equal(index == 0, ~masks(graph)[path])
        weights = paths.variables(graph.model)[path].numpy()
        np.testing.assert_array_equal(graph.state.cluster.centroids[path].numpy()[index], weights)


@pytest.mark.parametrize(
    "more",
    [
        {**TWO, "train.micro_batches": 2},
        pytest.param({"train.compile": "eager", "train.micro_batches": 4}, marks=pytest.mark.slow),
        pytest.param({"train.compile": "xla"}, marks=pytest.mark.slow),
        pytest.param({"train.compile": "xla_update"}, marks=pytest.mark.slow),
        pytest.param({"train.compile": "xla_gradients", **TWO}, marks=pytest.mark.slow),
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_every_way_to_compute_a_step_has_the_same_masks_and_clusters(graph, more):
    built = trained(**more)
    for path, mask in masks(graph).items():
        np.testing.assert_array_equal(masks(built)[path], mask, err_msg=path)
        np.testing.assert_array_equal(indices(built)[path], indices(graph)[path], err_msg=path)
    for name in ("model", "ema", "lookahead"):
        one, other = (paths.variables(getattr(run.state, name)) for run in (built, graph))
        assert distance(*({p: v.numpy() for p, v in each.items()} for each in (one, other))) <= 1e-12
    assert zeros(paths.variables(built.model)) == zeros(built.state.ema.averages) == SHARES
    assert zeros(built.state.lookahead.slow) == SHARES
    assert distinct(paths.variables(built.model)) == distinct(built.state.ema.averages) == dict.fromkeys(SHARES, 4)
    assert_copies_agree(built)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_a_skipped_step_of_float16_makes_no_masks(mode):
    """Steps 2 and 3 overflow, so update 4 is step 6."""
    half = {"train.precision": "float16", "train.compile": mode, "loss_scale.initial": 8.0}
    built = build(heat={(1, 3): HOT_IN_HALF, (2, 3): HOT_IN_HALF}, **PRUNED, **half)
    built.train_block(1)
    before = snapshot(built)
    built.train_block(2)
    changed = differing(before, snapshot(built))
    assert {path for path in changed if not path.startswith("loss_scale/")} == {"step", "skipped", "skipped_in_row"}
    assert all(mask.all() for mask in masks(built).values())
    built.train_block(1)
    assert int(built.state.updates) == 2 and all(mask.all() for mask in masks(built).values())  # of sparsity 0
    built.train_block(2)
    kept = {path: round(mask.size * (1 - 0.8 * (1 - (1 - 2 / 6) ** 3))) for path, mask in masks(built).items()}
    assert {path: mask.sum() for path, mask in masks(built).items()} == kept
    built.train_block(4)
    assert int(built.state.updates) == 8 and built.state.prune.sparsities() == SHARES


@pytest.mark.parametrize(
    ("mode", "first"),
    [("graph", 9), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("graph", 5), ("xla", 9)))],
)
def test_a_resumed_run_ends_in_the_same_bits(mode, first, tmp_path):
    whole, resumed = interrupted(lambda: build(**AVERAGED, **{"train.compile": mode}), tmp_path, first, 10 - first)
    assert not masks(resumed)["first/kernel"].all()
    assert bool(resumed.state.cluster.active) == indices(resumed)["first/kernel"].any() == (first == 9)
    resumed.train_block(10 - first)
    names = ("prune/masks", "cluster/indices", "cluster/centroids")
    assert {"cluster/active", *(f"{name}/first/kernel" for name in names)} <= snapshot(whole).keys()
    assert differing(snapshot(whole), snapshot(resumed)) == set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    built = build(
        tmp_path_factory.mktemp("pruned") / "run",
        **{**AVERAGED, "log.every": "5 steps", "checkpoint.every": "5 steps", "eval.splits": ("test", "test@ema")},
    )
    return built, loop.train(built)


def test_the_log_and_the_result_say_the_sparsity_and_the_distinct_values(finished):
    built, result = finished
    rows = [row for row in testing.rows(built) if "sparsity" in row]
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[0]["sparsity"] < rows[1]["sparsity"] == 57 / 72
    assert result["sparsity"] == {"sparsity": 57 / 72, "sparsity_overall": 57 / 99, "variables": SHARES}
    assert [row.get("distinct_values") for row in rows] == [None, 4]
    assert result["distinct_values"] == dict.fromkeys(SHARES, 4)
    stored = json.loads((built.workdir / "result.json").read_text())
    assert all(stored[name] == result[name] for name in ("sparsity", "distinct_values"))


def test_the_mean_of_checkpoints_has_the_newest_masks_and_clusters(finished):
    built, _ = finished
    target = build(**AVERAGED)
    folders = [built.checkpoints.directory.path(step) for step in (5, 10)]
    restore_mean(target.state, folders)
    assert zeros(paths.variables(target.model)) == zeros(target.state.ema.averages) == SHARES
    assert distinct(paths.variables(target.model)) == distinct(target.state.ema.averages) == dict.fromkeys(SHARES, 4)


@pytest.mark.parametrize("which", ["ema", pytest.param("model", marks=pytest.mark.slow)])
def test_a_run_that_starts_from_a_pruned_one_may_keep_its_zeros_and_values(finished, tmp_path, which):
    """The clusters are those of the values that the weights have, of which none is moved."""
    source, own = finished[0], {**CLUSTERED, "cluster.begin": "", "prune.schedule": "keep", "ema.decay": 0.9}
    built = build(tmp_path / "run", init_from=str(source.workdir), init_weights=which, **own)
    built.open()
    kept, taken = masks(built), source.state.ema.averages if which == "ema" else paths.variables(source.model)
    for path in SHARES:
        for variables in (paths.variables(built.model), built.state.ema.averages):
            np.testing.assert_array_equal(variables[path], taken[path])
    assert zeros(paths.variables(built.model)) == zeros(built.state.ema.averages) == SHARES
    built.train_block(3)
    assert zeros(paths.variables(built.model)) == zeros(built.state.ema.averages) == SHARES
    assert distinct(paths.variables(built.model)) == distinct(built.state.ema.averages) == dict.fromkeys(SHARES, 4)
    for path, mask in masks(built).items():
        np.testing.assert_array_equal(mask, kept[path])


def test_a_run_that_starts_from_dense_weights_has_no_zeros_to_keep(tmp_path):
    built = build(tmp_path / "run", functions={"make_model": without_norm}, **{"prune.schedule": "keep"})
    with pytest.raises(UserError, match="so nothing would be pruned"):
        built.open()


def test_masks_at_the_start_are_of_the_weights_that_are_taken(tmp_path):
    dense = build(tmp_path / "dense")
    loop.train(dense)
    now = {"prune.sparsity": 0.5, "prune.schedule": "constant", "prune.begin": "", "prune.end": "5 steps"}
    built = build(tmp_path / "run", init_from=str(dense.workdir), **{**now, "ema.decay": 0.9, "lookahead.every": 5})
    built.open()
    for path in SHARES:
        weights = paths.variables(dense.model)[path].numpy()
        wanted = np.where(np.abs(weights) >= np.median(np.abs(weights)), weights, 0)
        for variables in (paths.variables(built.model), built.state.ema.averages, built.state.lookahead.slow):
            np.testing.assert_array_equal(variables[path], wanted)


def test_frozen_parameters_are_not_pruned():
    frozen = {"optimizer.groups": ("first/.*: frozen",)}
    built = build(**PRUNED, **frozen)
    assert list(built.state.prune.masks) == ["last/kernel"]
    with pytest.raises(
        UserError, match=r"^prune\.include='first/\.\*' matches none of the parameters that can be pruned"
    ):
        build(**PRUNED, **frozen, **{"prune.include": "first/.*"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "key"),
    [({**PRUNED, "prune.end": "80%"}, "prune.end"), ({**CLUSTERED, "cluster.begin": "80%"}, "cluster.begin")],
    ids=["masks", "clusters"],
)
def test_a_longer_run_must_have_the_masks_and_clusters_of_the_shorter_one(settings, key, tmp_path):
    percent = {**settings, "schedule.name": "constant"}
    loop.train(build(tmp_path / "run", **percent))
    with pytest.raises(UserError) as error:
        loop.train(build(tmp_path / "run", **percent, **{"train.duration": "20 steps"}))
    assert str(error.value) == (
        f"train.duration='20 steps' instead of '10 steps' changes {key} from 8 to 16 steps."
        f" Type --config.{key}='8 steps' too."
    )


def wrapped(cfg):
    """Returns a model in the wrapper of tensorflow_model_optimization."""
    sparsity = pytest.importorskip("tensorflow_model_optimization").sparsity.keras
    layers = [sparsity.prune_low_magnitude(layer) for layer in without_norm(cfg).layers]
    return keras.Sequential([keras.Input([6]), *layers])


WRAPPED = (
    "make_model wraps prune_low_magnitude_first, prune_low_magnitude_last by prune_low_magnitude of"
    " tensorflow_model_optimization, which does not "
)
INSTEAD = "Return the layers without it, and type e.g. --config.prune.sparsity=0.8."


@pytest.mark.parametrize(
    ("more", "value"),
    [
        (TWO, "runtime.strategy='mirrored'"),
        ({"train.micro_batches": 2}, "train.micro_batches=2"),
        (PRUNED, "prune.sparsity=0.8"),
    ],
    ids=["replicas", "micro-batches", "both"],
)
def test_a_model_in_the_wrapper_of_tfmot_is_refused_where_that_does_not_work(more, value):
    with pytest.raises(UserError) as error:
        build(functions={"make_model": wrapped}, **more)
    assert str(error.value) == f"{WRAPPED}work with {value}. {INSTEAD}"


def test_a_model_clustered_by_tfmot_is_not_clustered_again():
    def make_model(cfg):
        clustering = pytest.importorskip("tensorflow_model_optimization").clustering.keras
        options = {"number_of_clusters": 4, "cluster_centroids_init": clustering.CentroidInitialization.LINEAR}
        layers = [clustering.cluster_weights(layer, **options) for layer in without_norm(cfg).layers]
        return keras.Sequential([keras.Input([6]), *layers])

    with pytest.raises(UserError) as error:
        build(functions={"make_model": make_model}, **CLUSTERED)
    assert str(error.value) == (
        "make_model wraps cluster_first, cluster_last by cluster_weights of tensorflow_model_optimization, which does"
        " not work with cluster.name='kmeans'. Return the layers without it."
    )


def test_a_model_in_the_wrapper_of_tfmot_is_warned_of_elsewhere(caplog):
    build(functions={"make_model": wrapped})
    assert f"{WRAPPED}mask the weights after the last update. {INSTEAD}" in caplog.messages


@pytest.mark.parametrize(("name", "settings"), [("sparsity", PRUNED), ("distinct_values", CLUSTERED)])
def test_a_metric_that_hides_a_number_of_the_row_is_refused(name, settings):
    class Anything(metrics.Mean):
        mode = "max"

        def values(self, outputs, batch):
            return batch["weight"], batch["weight"]

    functions = {"make_metrics": lambda cfg: {name: Anything()}}
    with pytest.raises(UserError, match=f"make_metrics names a metric '{name}', which every step reports already"):
        build(functions=functions, **settings)

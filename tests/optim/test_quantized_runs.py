"""Quantisation in whole runs: compile modes, skips, micro-batches, replicas, resume, warm starts of pruned runs."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.checkpoint.checkpoints import Checkpoints
from framework.config import UserError
from framework.run import loop
from tests.optim.test_quantization import rounded
from tests.small import HOT_IN_HALF, build, differing, snapshot
from tests.test_equivalence import assert_copies_agree, distance

INT8 = {"quantize.name": "int8", "quantize.momentum": 0.75}
DOUBLE = {**INT8, "train.precision": "float64"}
CLUSTERED = {"cluster.name": "kmeans", "cluster.clusters": 4}
TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}


def without_norm(cfg):
    """Returns a model in which no statistics depend on how a batch is cut."""
    return keras.Sequential([keras.layers.Dense(8, "tanh", name="first"), keras.layers.Dense(3, name="last")])


def ranges(built):
    return {point: variable.numpy() for point, variable in built.state.quantize.ranges.items()}


def trained(**more):
    built = build(functions={"make_model": without_norm}, **{**DOUBLE, **more})
    built.train_block(10)
    return built


@pytest.fixture(scope="module")
def graph():
    return trained()


def of_batches(built, count):
    """Returns {step: inputs} of the first batches."""
    return [built.data.at(step)["x"].numpy().astype(np.float64) for step in range(count)]


def test_ranges_are_the_extremes_of_batches_averaged_over_updates(graph):
    assert list(ranges(graph)) == ["first/input", "first/product", "first/output", "last/output"]
    wanted = None
    for x in of_batches(graph, 10):
        seen = np.array([min(x.min(), 0), max(x.max(), 0)])
        wanted = seen if wanted is None else 0.75 * wanted + 0.25 * seen
    np.testing.assert_allclose(ranges(graph)["first/input"], wanted, rtol=1e-12)


def test_a_trained_model_computes_what_the_formula_says(graph):
    """Weights are rounded by channel and activations by their ranges; without the tape, as in an evaluation."""
    weights = {path: variable.numpy() for path, variable in paths.variables(graph.model).items()}
    x = of_batches(graph, 1)[0]
    of = ranges(graph)

    def product(x, layer):
        kernel = weights[f"{layer}/kernel"]
        bound = np.abs(kernel).max(0)
        return x @ rounded(kernel, -bound, bound, first=1) + weights[f"{layer}/bias"]

    hidden = np.tanh(rounded(product(rounded(x, *of["first/input"]), "first"), *of["first/product"]))
    logits = rounded(product(rounded(hidden, *of["first/output"]), "last"), *of["last/output"])
    np.testing.assert_allclose(graph.model(tf.constant(x), training=False), logits, atol=1e-12)


@pytest.mark.parametrize(
    "more",
    [
        {**TWO, "train.micro_batches": 2},
        pytest.param({"train.compile": "eager", "train.micro_batches": 4}, marks=pytest.mark.slow),
        pytest.param({"train.compile": "xla", "train.micro_batches": 2}, marks=pytest.mark.slow),
        pytest.param({"train.compile": "xla_update"}, marks=pytest.mark.slow),
        pytest.param({"train.compile": "xla_gradients", **TWO}, marks=pytest.mark.slow),
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_every_way_to_compute_a_step_has_the_same_ranges(graph, more):
    built = trained(**more)
    for name in ("model", "quantize"):
        one, other = (paths.variables(getattr(run.state, name)) for run in (built, graph))
        of_each = [{p: v.numpy() for p, v in each.items() if v.dtype.is_floating} for each in (one, other)]
        assert distance(*of_each) <= 1e-12
    assert_copies_agree(built)


def test_rounding_begins_and_ranges_are_frozen_when_they_should():
    settings = {"quantize.begin": "3 steps", "quantize.freeze": "5 steps"}
    plain = build(functions={"make_model": without_norm}, **{"train.precision": "float64"})
    built = build(functions={"make_model": without_norm}, **DOUBLE, **settings)
    for run in (plain, built):
        run.train_block(3)
    of_each = [{p: v.numpy() for p, v in paths.variables(run.model).items()} for run in (plain, built)]
    assert distance(*of_each) <= 1e-14  # as without: nothing was rounded in these updates
    assert bool(built.state.quantize.active)
    for run in (plain, built):
        run.train_block(2)
    of_each = [{p: v.numpy() for p, v in paths.variables(run.model).items()} for run in (plain, built)]
    assert distance(*of_each) > 1e-6
    at_five = ranges(built)
    built.train_block(3)
    for point, value in at_five.items():
        np.testing.assert_array_equal(ranges(built)[point], value)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_a_skipped_step_of_float16_moves_no_range_and_no_cluster(mode):
    """Steps 2 and 3 overflow."""
    half = {"train.precision": "float16", "train.compile": mode, "loss_scale.initial": 8.0}
    half |= {**CLUSTERED, "cluster.begin": "1 step"}
    built = build(heat={(1, 3): HOT_IN_HALF, (2, 3): HOT_IN_HALF}, **INT8, **half)
    built.train_block(1)
    before = snapshot(built)
    built.train_block(2)
    changed = differing(before, snapshot(built))
    assert {path for path in changed if not path.startswith("loss_scale/")} == {"step", "skipped", "skipped_in_row"}
    assert built.state.cluster.active and built.state.cluster.distinct() == {"first/kernel": 4, "last/kernel": 4}
    built.train_block(1)
    moved = differing(before, snapshot(built))
    assert {path for path in before if path.startswith(("quantize/ranges/", "cluster/centroids/"))} <= moved
    assert not any(path.startswith("cluster/indices/") for path in moved)


@pytest.mark.parametrize("precision", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_ranges_of_half_precision_are_those_of_its_activations(precision):
    scale = {"loss_scale.initial": 8.0} if precision == "float16" else {}
    built = build(**INT8, **{"train.precision": precision, **scale})
    built.train_block(3)
    assert int(built.state.updates) == 3
    wanted = None
    for x in of_batches(built, 3):
        x = tf.cast(tf.cast(x, precision), tf.float64).numpy()
        seen = np.array([min(x.min(), 0), max(x.max(), 0)])
        wanted = seen if wanted is None else 0.75 * wanted + 0.25 * seen
    assert built.state.quantize.ranges["first/input"].dtype == tf.float32
    np.testing.assert_allclose(ranges(built)["first/input"], wanted, rtol=1e-6)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_in_the_same_bits(mode, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    whole, resumed = (build(**INT8, **{"train.compile": mode}) for _ in range(2))
    whole.train_block(5)
    checkpoints.save(whole.state, {})
    whole.train_block(5)
    checkpoints.close()
    checkpoints.restore(resumed.state)
    resumed.train_block(5)
    assert {"quantize/ranges/first/input", "quantize/active"} <= snapshot(whole).keys()
    assert differing(snapshot(whole), snapshot(resumed)) == set()


def test_a_pruned_run_is_clustered_and_quantised_and_keeps_its_zeros(tmp_path):
    """In each output channel the rounded kernel has no more values than the kernel."""
    pruned = {"prune.sparsity": 0.8, "prune.schedule": "constant", "prune.begin": "", "prune.end": "8 steps"}
    source = build(tmp_path / "pruned", **pruned)
    loop.train(source)
    zeros = {path: v.numpy() == 0 for path, v in paths.variables(source.model).items() if path.endswith("kernel")}
    assert sum(map(np.sum, zeros.values())) == 57
    keep = {"init_from": str(source.workdir), "prune.schedule": "keep"}
    built = build(tmp_path / "run", **INT8, **CLUSTERED, **keep)
    built.open()
    assert not built.state.quantize.active and not any(map(np.any, ranges(built).values()))
    built.train_block(5)
    assert built.state.quantize.active
    for path, is_zero in zeros.items():
        weights = paths.variables(built.model)[path].numpy()
        np.testing.assert_array_equal(weights == 0, is_zero)
        bound = np.abs(weights.astype(np.float64)).max(0)
        levels = rounded(weights, -bound, bound, first=1)
        assert (levels[is_zero] == 0).all()
        assert len(np.unique(weights)) == 4
        assert all(len(np.unique(levels[:, channel])) <= 4 for channel in range(levels.shape[1]))


@pytest.mark.slow
def test_an_own_step_takes_the_extremes_of_all_its_passes():
    """Two forward passes of a step: the extremes are those of both."""

    def make_step(cfg, tools):
        def step(state, batch):
            def loss(micro_batch, factor):
                logits = state.model(micro_batch["x"] * factor, training=True)
                return {"size": _term(logits, micro_batch)}, {}

            results = [tools.gradients(lambda part, f=factor: loss(part, f), batch) for factor in (1.0, 3.0)]
            tools.apply({path: sum(result.gradients[path] for result in results) for path in results[0].gradients})
            return results[0].terms, {}

        return step

    built = build(functions={"make_model": without_norm, "make_step": make_step}, **DOUBLE)
    built.train_block(1)
    x = of_batches(built, 1)[0]
    np.testing.assert_allclose(ranges(built)["first/input"], [3 * x.min(), 3 * x.max()], rtol=1e-12)


def test_a_layer_that_a_step_calls_where_no_range_is_seen_is_refused():
    """Its kernel would be rounded, and its activations would not."""

    def make_model(cfg):
        model = without_norm(cfg)
        model.teacher = keras.layers.Dense(3, trainable=False)
        return model

    def make_loss(cfg):
        def loss(model, batch, training):
            return {"gap": _term(model(batch["x"]) - model.teacher(batch["x"]), batch)}, {}

        return loss

    def make_step(cfg, tools):
        def step(state, batch):
            def loss(part):
                return {"gap": _term(state.model(part["x"]) - part["wanted"], part)}, {}

            result = tools.gradients(loss, {**batch, "wanted": state.model.teacher(batch["x"])})
            tools.apply(result.gradients)
            return result.terms, {}

        return step

    functions = {"make_model": make_model, "make_loss": make_loss, "make_step": make_step}
    built = build(functions=functions, **DOUBLE)
    with pytest.raises(UserError) as error:
        built.train_block(1)
    assert str(error.value) == (
        "quantize.name='int8': the step calls teacher outside of tools.gradients, where ranges of activations are"
        " not seen, or not at all. Type --config.quantize.exclude='teacher'."
    )


def _term(values, batch):
    from framework import losses

    weight = tf.cast(batch["weight"], values.dtype)
    return losses.Term(tf.reduce_sum(tf.reduce_sum(values**2, 1) * weight), tf.reduce_sum(weight))


@pytest.mark.slow
def test_a_longer_run_must_begin_to_round_at_the_same_update(tmp_path):
    percent = {**INT8, "quantize.begin": "50%", "schedule.name": "constant"}
    loop.train(build(tmp_path / "run", **percent))
    with pytest.raises(UserError) as error:
        loop.train(build(tmp_path / "run", **percent, **{"train.duration": "20 steps"}))
    assert str(error.value) == (
        "train.duration='20 steps' instead of '10 steps' changes quantize.begin from 5 to 10 steps."
        " Type --config.quantize.begin='5 steps' too."
    )


def wrapped(cfg):
    """Returns a model quantised by tensorflow_model_optimization."""
    quantization = pytest.importorskip("tensorflow_model_optimization").quantization.keras
    return quantization.quantize_model(keras.Sequential([keras.Input([6]), *without_norm(cfg).layers]))


@pytest.mark.parametrize(
    ("more", "value"),
    [
        (TWO, "runtime.strategy='mirrored'"),
        ({"train.micro_batches": 2}, "train.micro_batches=2"),
        (INT8, "quantize.name='int8'"),
    ],
    ids=["replicas", "micro-batches", "both"],
)
def test_a_model_quantised_by_tfmot_is_refused_where_that_does_not_work(more, value):
    with pytest.raises(UserError) as error:
        build(functions={"make_model": wrapped}, **more)
    assert str(error.value) == (
        "make_model wraps quant_first, quant_last by quantize_model of tensorflow_model_optimization, which does not"
        f" work with {value}. Return the model without it, and type --config.quantize.name=int8."
    )

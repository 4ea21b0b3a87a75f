"""What replicas train is what one device trains."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, rng
from framework.checkpoint.checkpoints import Checkpoints
from tests.distribute.replicated import DOUBLE, contrastive, model_with, on, weights
from tests.interrupted import interrupted
from tests.small import HOT, HOT_IN_HALF, build, differing, snapshot
from tests.test_equivalence import assert_copies_agree, distance


@functools.cache
def one_device(name, mode="graph"):
    """A run of 24 steps on one device, and its rows: several tests compare replicas with it."""
    functions, settings = RUNS[name]
    built = build(functions=functions, **settings, **{"train.compile": mode})
    return built, built.train_block(24)


CLIPPED = {**DOUBLE, "ema.decay": 0.9, "clip.name": "global_norm", "clip.threshold": 0.3}
RUNS = {
    "dropout": (model_with(), CLIPPED),
    "normalised": (model_with(lambda: keras.layers.BatchNormalization(name="norm")), DOUBLE),
    "contrastive": ({**model_with(), "make_loss": contrastive}, DOUBLE),
}


@pytest.mark.parametrize(
    ("replicas", "mode", "micro_batches"),
    [(4, "graph", 4), *(pytest.param(2, *way, marks=pytest.mark.slow) for way in (("graph", 2), ("xla", 1)))],
)
def test_dropout_penalty_clip_and_average_are_those_of_one_device(replicas, mode, micro_batches):
    one, rows = one_device("dropout", mode)
    more = {"train.micro_batches": micro_batches, "train.compile": mode}
    many = build(functions=model_with(), **on(replicas, **CLIPPED, **more))
    found = many.train_block(24)
    assert_copies_agree(many)
    assert distance(weights(many), weights(one)) <= 1e-12
    for path, average in one.state.ema.averages.items():
        np.testing.assert_allclose(many.state.ema.averages[path].numpy(), average.numpy(), rtol=1e-11, atol=1e-13)
    for step in range(24):
        assert found.row(step) == pytest.approx(rows.row(step), rel=1e-11)
    assert many.train_block.compiled.traces == 1
    assert many.eval_blocks["test"]() == pytest.approx(one.eval_blocks["test"](), rel=1e-11)


def test_masks_are_those_of_one_device_bit_for_bit():
    seen = {}
    for count in (1, 4):
        built = build(functions=model_with(), **(on(4) if count == 4 else {}))
        replicas = built.replicas
        layer = built.model.get_layer("drop")

        def masks(index, count=count, layer=layer):
            with rng.at_example(index * 16 // count):
                return layer(tf.ones([16 // count, 8]), training=True)

        @tf.function(autograph=False)
        def run(replicas=replicas, masks=masks):
            with rng.scope(rng.key(0), 3):
                return replicas.gather(masks)

        seen[count] = run().numpy()
    assert seen[1].tobytes() == seen[4].tobytes() and 0 < (seen[1] == 0).mean() < 0.5


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_each_replica_reads_its_part_of_the_batches_of_one_device(placement):
    built = build(**on(4, **{"data.placement": placement}))
    for step in (0, 7, 1_000_003):
        whole = built.data.at(step)
        parts = [built.data.shard(first, 4).at(step) for first in (0, 4, 8, 12)]
        for name, tensor in whole.items():
            assert np.concatenate([part[name].numpy() for part in parts]).tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_streamed_and_resident_data_train_the_same_bits(mode):
    states = []
    for placement in ("resident", "stream"):
        built = build(functions=model_with(), **on(2, **{"data.placement": placement, "train.compile": mode}))
        built.train_block(6)
        built.train_block(4)
        states.append(snapshot(built))
    assert differing(*states) == set()


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_an_overflow_on_the_last_replica_alone_skips_the_update_on_all(mode):
    skip = {"train.on_nonfinite": "skip", "train.nonfinite_limit": 3, "ema.decay": 0.9, "train.compile": mode}
    built = build(heat={(4, 15): HOT}, **on(4, **skip))
    built.train_block(4)
    before = snapshot(built)
    assert not math.isfinite(built.train_block(1).row(0)["loss"])
    assert differing(before, snapshot(built)) == {"step", "skipped", "skipped_in_row"}
    assert_copies_agree(built)
    built.train_block(1)
    assert int(built.state.updates) == 5
    assert_copies_agree(built)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_an_overflow_of_float16_on_the_last_replica_alone_lowers_the_scale_of_all(mode):
    half = {"train.precision": "float16", "loss_scale.initial": 256.0, "train.compile": mode}
    built = build(heat={(4, 15): HOT_IN_HALF}, **on(2, **half))
    built.train_block(4)
    before = snapshot(built)
    assert not math.isfinite(built.train_block(1).row(0)["gradient_norm"])
    counts = {"step", "skipped", "skipped_in_row", "loss_scale/scale", "loss_scale/good"}
    assert differing(before, snapshot(built)) == counts
    assert float(built.state.loss_scale.scale) == 128


@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_synchronised_batch_normalisation_is_that_of_one_device(replicas):
    one, _ = one_device("normalised")
    synchronised = model_with(lambda: keras.layers.BatchNormalization(name="norm", synchronized=True))
    many = build(functions=synchronised, **on(replicas, **DOUBLE, **{"train.compile": "graph"}))
    many.train_block(24)
    assert_copies_agree(many)
    assert distance(weights(many), weights(one)) <= 1e-11
    for name in ("moving_mean", "moving_variance"):
        left, right = (getattr(built.model.get_layer("norm"), name).numpy() for built in (many, one))
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_batch_normalisation_of_each_replica_moves_the_mean_of_all(mode):
    """Each normalises by its own statistics; the moving averages are the mean of theirs, on every one of them."""
    settings = {**DOUBLE, "train.compile": mode}
    norm = model_with(lambda: keras.layers.BatchNormalization(name="norm"))
    many = build(functions=norm, **on(2, **settings))
    first = many.model.layers[0]
    halves = np.split(first(many.data.at(0)["x"]).numpy(), 2)
    many.train_block(1)
    assert_copies_agree(many)
    layer = many.model.get_layer("norm")
    mean = np.mean([half.mean(0) for half in halves], 0) * 0.01
    variance = 0.99 + np.mean([half.var(0) for half in halves], 0) * 0.01
    # tf_keras makes 1 - momentum in float32.
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-7)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-7)


@pytest.mark.slow  # fast: tests/losses/test_retrieval.py, on two replicas
@pytest.mark.parametrize("replicas", [2, 4])
def test_negatives_of_all_replicas_are_those_of_one_device(replicas):
    one, rows = one_device("contrastive")
    many = build(functions=RUNS["contrastive"][0], **on(replicas, **DOUBLE, **{"train.compile": "graph"}))
    found = many.train_block(24)
    assert distance(weights(many), weights(one)) <= 1e-12
    assert found.row(23)["loss"] == pytest.approx(rows.row(23)["loss"], rel=1e-12)


def pairwise(cfg):
    """Each example's outputs against those of all others, each pair by itself: a second copy would be a negative."""

    def loss(model, batch, training):
        features = model(batch["x"], training=training)
        logits = tf.matmul(features, losses.all_gather(tf.tanh(features)), transpose_b=True)
        own = losses.gather_offset(features) + tf.range(tf.shape(features)[0])
        wanted = tf.one_hot(own, tf.shape(logits)[1], dtype=logits.dtype)
        values = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits), 1)
        weight = tf.cast(batch["weight"], values.dtype)
        return {"pairs": losses.BatchDependent(tf.reduce_sum(values * weight), tf.reduce_sum(weight))}, {}

    loss.needs_collectives = True
    return loss


@pytest.mark.parametrize("make_loss", [pytest.param(contrastive, marks=pytest.mark.slow), pairwise])
def test_what_looks_at_a_step_with_negatives_sees_each_once(make_loss):
    functions = {**model_with(), "make_loss": make_loss}
    settings = {**DOUBLE, "train.compile": "graph"}
    one, many = build(functions=functions, **settings), build(functions=functions, **on(2, **settings))
    for path, gradient in one.train_block.inspect().items():
        np.testing.assert_allclose(many.train_block.inspect()[path], gradient, rtol=1e-10, atol=1e-12)
    terms = [run.train_block.dry_run(run.train_block.batch()).terms for run in (one, many)]
    losses_of = [[float(term.sum / term.weight) for term in found.values()] for found in terms]
    assert losses_of[1] == pytest.approx(losses_of[0], rel=1e-12)


@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_eagerly_replicas_take_the_steps_that_they_take_in_a_graph(micro_batches):
    """Eager tensors of a batch look like constants, but dropout makes the loss depend on the place in the batch."""
    settings = {"train.micro_batches": micro_batches, "train.precision": "float64"}
    rows = [build(**on(2, **{**settings, "train.compile": mode})).train_block(2).rows for mode in ("eager", "graph")]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro_batches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_on_one_device_what_could_communicate_is_cut_into_micro_batches_as_anything(micro_batches):
    norm = keras.layers.BatchNormalization
    rows = [
        build(functions=model_with(lambda s=s: norm(name="norm", synchronized=s)), **DOUBLE, **cut).train_block(6).rows
        for s in (True, False)
        for cut in [{"train.micro_batches": micro_batches, "train.compile": "graph"}]
    ]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-10)


def test_resumed_on_fewer_replicas_it_goes_on_within_rounding(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    whole, _ = one_device("dropout")
    part = None
    for settings, steps in ((on(4, **CLIPPED), 9), (on(2, **CLIPPED), 8), (CLIPPED, 7)):
        part = build(functions=model_with(), **settings)
        checkpoints.restore(part.state)
        part.train_block(steps)
        checkpoints.save(part.state, {})
        checkpoints.close()
    assert int(part.state.step) == 24
    assert distance(weights(part), weights(whole)) <= 1e-12


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_stopped_on_replicas_and_resumed_on_as_many_it_ends_in_the_same_bits(mode, tmp_path):
    norm = model_with(lambda: keras.layers.BatchNormalization(name="norm"))
    settings = on(2, **{"train.compile": mode, "ema.decay": 0.9})
    whole, resumed = interrupted(lambda: build(functions=norm, **settings), tmp_path, 4, 6)
    resumed.train_block(6)
    assert differing(snapshot(whole), snapshot(resumed)) == set()

"""Replicas train what one device would: draws, averages, skips, collectives inside of the forward pass, resume."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, paths, rng, testing
from framework.checkpoint.checkpoints import Checkpoints, digest
from framework.config import UserError
from framework.distribute.replicas import Replicas
from framework.run.build import on_one_device
from tests.small import HOT, HOT_IN_HALF, build, differing, snapshot
from tests.test_equivalence import assert_copies_agree, distance

DOUBLE = {"train.precision": "float64", "train.block_steps": 24, "train.duration": "24 steps"}


def on(replicas, **settings):
    return {"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas, **settings}


def weights(built):
    return {path: variable.numpy().astype(np.float64) for path, variable in paths.trainable(built.model).items()}


def model_with(*norm):
    """Dropout and, between, what is given."""

    def make_model(cfg):
        return keras.Sequential(
            [
                keras.layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-3), name="first"),
                *(make() for make in norm),
                layers.Dropout(0.25, name="drop"),
                keras.layers.Dense(3, dtype=keras.backend.floatx(), name="last"),
            ]
        )

    return {"make_model": make_model}


@pytest.mark.parametrize(("replicas", "mode", "micro_batches"), [(2, "graph", 2), (4, "xla", 1), (4, "graph", 4)])
def test_dropout_penalty_clip_and_average_are_those_of_one_device(replicas, mode, micro_batches):
    settings = {**DOUBLE, "ema.decay": 0.9, "clip.name": "global_norm", "clip.threshold": 0.3}
    one = build(functions=model_with(), **settings, **{"train.compile": mode})
    rows = one.train_block(24)
    more = {"train.micro_batches": micro_batches, "train.compile": mode}
    many = build(functions=model_with(), **on(replicas, **settings, **more))
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


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_streamed_and_resident_data_train_the_same_bits(mode):
    states = []
    for placement in ("resident", "stream"):
        built = build(functions=model_with(), **on(2, **{"data.placement": placement, "train.compile": mode}))
        built.train_block(6)
        built.train_block(4)
        states.append(snapshot(built))
    assert differing(*states) == set()


@pytest.mark.parametrize("mode", ["graph", "xla"])
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


def test_an_overflow_of_float16_on_the_last_replica_alone_lowers_the_scale_of_all():
    half = {"train.precision": "float16", "loss_scale.initial": 256.0, "train.compile": "xla"}
    built = build(heat={(4, 15): HOT_IN_HALF}, **on(2, **half))
    built.train_block(4)
    before = snapshot(built)
    assert not math.isfinite(built.train_block(1).row(0)["gradient_norm"])
    counts = {"step", "skipped", "skipped_in_row", "loss_scale/scale", "loss_scale/good"}
    assert differing(before, snapshot(built)) == counts
    assert float(built.state.loss_scale.scale) == 128


@pytest.mark.parametrize("replicas", [2, 4])
def test_synchronised_batch_normalisation_is_that_of_one_device(replicas):
    settings = {**DOUBLE, "train.compile": "graph"}
    one = build(functions=model_with(lambda: keras.layers.BatchNormalization(name="norm")), **settings)
    one.train_block(24)
    synchronised = model_with(lambda: keras.layers.BatchNormalization(name="norm", synchronized=True))
    many = build(functions=synchronised, **on(replicas, **settings))
    many.train_block(24)
    assert_copies_agree(many)
    assert distance(weights(many), weights(one)) <= 1e-11
    for name in ("moving_mean", "moving_variance"):
        left, right = (getattr(built.model.get_layer("norm"), name).numpy() for built in (many, one))
        np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["graph", "xla"])
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


def contrastive(cfg):
    """Each example's outputs under two maps against those of all others."""

    def loss(model, batch, training):
        features = model(batch["x"], training=training)  # [part, 3]
        queries, keys = features, tf.tanh(features)
        logits = tf.matmul(queries, losses.all_gather(keys), transpose_b=True)
        own = losses.gather_offset(keys) + tf.range(tf.shape(keys)[0])
        return {"contrast": losses.BatchDependent(*losses.sparse_cross_entropy(logits, own, batch["weight"]))}, {}

    loss.needs_collectives = True
    return loss


@pytest.mark.parametrize("replicas", [2, 4])
def test_negatives_of_all_replicas_are_those_of_one_device(replicas):
    functions = {**model_with(), "make_loss": contrastive}
    settings = {**DOUBLE, "train.compile": "graph"}
    one, many = build(functions=functions, **settings), build(functions=functions, **on(replicas, **settings))
    rows, found = one.train_block(24), many.train_block(24)
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


@pytest.mark.parametrize("make_loss", [contrastive, pairwise])
def test_what_looks_at_a_step_with_negatives_sees_each_once(make_loss):
    functions = {**model_with(), "make_loss": make_loss}
    settings = {**DOUBLE, "train.compile": "graph"}
    one, many = build(functions=functions, **settings), build(functions=functions, **on(2, **settings))
    for path, gradient in one.train_block.inspect().items():
        np.testing.assert_allclose(many.train_block.inspect()[path], gradient, rtol=1e-10, atol=1e-12)
    terms = [run.train_block.dry_run(run.train_block.batch()).terms for run in (one, many)]
    losses_of = [[float(term.sum / term.weight) for term in found.values()] for found in terms]
    assert losses_of[1] == pytest.approx(losses_of[0], rel=1e-12)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_eagerly_replicas_take_the_steps_that_they_take_in_a_graph(micro_batches):
    """Eager tensors of a batch look like constants, but dropout makes the loss depend on the place in the batch."""
    settings = {"train.micro_batches": micro_batches, "train.precision": "float64"}
    rows = [build(**on(2, **{**settings, "train.compile": mode})).train_block(4).rows for mode in ("eager", "graph")]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro_batches", [1, 2])
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
    whole = build(functions=model_with(), **DOUBLE)
    whole.train_block(24)
    part = None
    for settings, steps in ((on(4, **DOUBLE), 9), (on(2, **DOUBLE), 8), (DOUBLE, 7)):
        part = build(functions=model_with(), **settings)
        checkpoints.restore(part.state)
        part.train_block(steps)
        checkpoints.save(part.state, {})
        checkpoints.close()
    assert int(part.state.step) == 24
    assert distance(weights(part), weights(whole)) <= 1e-12


@pytest.mark.parametrize("mode", [pytest.param("graph", marks=pytest.mark.slow), "xla"])
def test_stopped_on_replicas_and_resumed_on_as_many_it_ends_in_the_same_bits(mode, tmp_path):
    norm = model_with(lambda: keras.layers.BatchNormalization(name="norm"))
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    settings = on(4, **{"train.compile": mode, "ema.decay": 0.9})
    whole = build(functions=norm, **settings)
    whole.train_block(4)
    checkpoints.save(whole.state, {})
    whole.train_block(6)
    checkpoints.close()
    resumed = build(functions=norm, **settings)
    checkpoints.restore(resumed.state)
    resumed.train_block(6)
    assert differing(snapshot(whole), snapshot(resumed)) == set()


def test_gradients_that_travel_in_bfloat16_are_rounded_to_it():
    """One SGD step of rate 1: what the weights moved by is the sum of two rounded halves."""
    settings = {"optimizer.name": "sgd", "schedule.learning_rate": 1.0, "schedule.warmup": "", "train.compile": "graph"}
    full, narrow = (
        build(functions=model_with(), **on(2, **settings, **{"runtime.all_reduce_dtype": dtype}))
        for dtype in ("full", "bfloat16")
    )
    start = weights(full)
    full.train_block(1)
    narrow.train_block(1)
    moved = {path: (start[path] - weights(full)[path], start[path] - weights(narrow)[path]) for path in start}
    for exact, rounded in moved.values():
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert 1e-5 < error < 2**-7


def test_what_looks_at_a_step_sees_the_whole_batch():
    norm = model_with(lambda: keras.layers.BatchNormalization(name="norm"))
    many = build(functions=norm, **on(2))
    before = snapshot(many)
    found = many.train_block.inspect()
    assert differing(before, snapshot(many)) == set()
    fresh = build(functions=norm, **{"train.compile": "graph"}).train_block.inspect()
    for path, gradient in fresh.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "functions", "message"),
    [
        (
            {"data.batch_size": 30},
            {},
            "data.batch_size=30 is not divisible by 4 replicas (runtime.strategy='mirrored')."
            " Use --config.data.batch_size=28 or 32.",
        ),
        (
            {"eval.batch_size": 2},
            {},
            "eval.batch_size=2 is not divisible by 4 replicas (runtime.strategy='mirrored')."
            " Use --config.eval.batch_size=4.",
        ),
        (
            {"train.micro_batches": 8},
            {},
            "data.batch_size=16 is not divisible by 4 replicas of 8 micro-batches (runtime.strategy='mirrored')."
            " Use --config.data.batch_size=32.",
        ),
        (
            {"runtime.devices": 5, "runtime.virtual_devices": 0},
            {},
            "runtime.devices=5 is more than there are: CPU:0, CPU:1, CPU:2, CPU:3. Use --config.runtime.devices=4, or"
            " --config.runtime.virtual_devices=5 to try it on virtual CPU devices.",
        ),
        (
            {"train.compile": "xla"},
            model_with(lambda: keras.layers.BatchNormalization(synchronized=True)),
            "train.compile='xla': the forward pass communicates between replicas (synchronised BatchNorm, or"
            " needs_collectives), which XLA cannot compile. Use --config.train.compile=graph.",
        ),
        (
            {"train.micro_batches": 2},
            model_with(lambda: keras.layers.BatchNormalization(synchronized=True)),
            "train.micro_batches=2: the forward pass communicates between replicas (synchronised BatchNorm, or"
            " needs_collectives), which a loop over micro-batches cannot. Use --config.train.micro_batches=1.",
        ),
        (
            {},
            {"make_loss": lambda cfg: _without_collectives(contrastive(cfg))},
            "term 'contrast' compares the examples of a batch with one another, and each of 4 replicas sees but its"
            " own. Gather the features with losses.all_gather and set needs_collectives=True on the loss, or use"
            " --config.runtime.strategy=one_device.",
        ),
    ],
)
def test_what_replicas_cannot_do_is_refused(settings, functions, message):
    with pytest.raises(UserError) as error:
        build(functions=functions, **on(4, **settings))
    assert str(error.value) == message


def _without_collectives(loss):
    del loss.needs_collectives
    return loss


def test_the_batch_size_of_one_replica_makes_the_global_one():
    built = build(**on(4, **{"data.replica_batch_size": 8}))
    assert built.config.data.batch_size == built.data.batch_size == 32
    built.train_block(1)


def test_totals_are_sums_and_gathered_parts_stand_in_order():
    built = build(**on(4))
    replicas = built.replicas

    def local(index):
        return {"a": tf.constant([index, 1]), "b": (tf.constant(0.5 * index), tf.constant([[1.0, index]]))}

    found = tf.function(lambda: replicas.all_reduce_sum(local))()
    assert found["a"].numpy().tolist() == [6, 4]
    assert float(found["b"][0]) == 3.0 and found["b"][1].numpy().tolist() == [[4.0, 6.0]]
    assert replicas.gather(lambda index: tf.constant([index, 10 + index])).numpy().tolist() == [
        0,
        10,
        1,
        11,
        2,
        12,
        3,
        13,
    ]
    assert Replicas().all_reduce_sum(lambda index: tf.constant(index + 2)).numpy() == 2


def test_sums_go_to_the_devices_they_come_from(monkeypatch):
    """With any other destination TensorFlow copies all to one device, and NCCL is never asked."""
    ops = tf.distribute.ReductionToOneDevice
    reduce, destinations = ops.reduce_implementation, []

    def recorded(self, reduce_op, value, destination, options):
        destinations.append([tensor.device for tensor in destination.values])
        return reduce(self, reduce_op, value, destination, options)

    replicas = build(**on(4)).replicas
    monkeypatch.setattr(ops, "reduce_implementation", recorded)
    found = tf.function(lambda: replicas.all_reduce_sum(lambda index: (tf.constant(index), tf.constant(0.5))))()
    assert [int(found[0]), float(found[1])] == [6, 2.0]
    assert destinations == [list(replicas.devices)] * 2


def test_replicas_agree_on_the_mean_of_what_each_moved():
    replicas = build(**on(4)).replicas
    kinds = {tf.VariableAggregation.MEAN: tf.float32, tf.VariableAggregation.SUM: tf.float64}
    on_read = tf.VariableSynchronization.ON_READ
    with replicas.scope():
        moved = [
            tf.Variable(tf.zeros([2], dtype), trainable=False, synchronization=on_read, aggregation=kind)
            for kind, dtype in kinds.items()
        ]
        shared = tf.Variable(7.0, trainable=False)

    @tf.function(autograph=False)
    def move():
        replicas.run(lambda index: [variable.assign([index, -index]) for variable in moved])
        replicas.sync_mean([moved[0], shared, moved[1]])

    move()
    for variable in moved:
        assert [copy.numpy().tolist() for copy in paths.copies(variable)] == [[1.5, -1.5]] * 4
    assert shared.numpy() == 7.0


def test_an_assigned_variable_has_its_value_on_every_replica():
    """Assigned as a whole, what is summed when read would be divided by the replicas."""
    replicas = build(**on(4)).replicas
    state, kinds = tf.Module(), tf.VariableAggregation
    with replicas.scope():
        for name, kind in {"mean": kinds.MEAN, "sum": kinds.SUM, "first": kinds.ONLY_FIRST_REPLICA}.items():
            on_read = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": kind}
            setattr(state, name, tf.Variable([1.0, 2.0], trainable=False, **on_read))
        state.mirrored = tf.Variable([3.0], trainable=False)
    for name, value in {"mean": [0.1, 0.2], "sum": [0.3, 0.4], "first": [5, 6], "mirrored": [7]}.items():
        variable, wanted = getattr(state, name), np.float32(value)
        paths.assign(variable, wanted)
        assert [copy.numpy().tolist() for copy in paths.copies(variable)] == [wanted.tolist()] * 4


def test_check_replicas_of_an_experiment():
    testing.check_replicas("tests/tiny.py", {"train.precision": "float64"}, replicas=2, steps=6)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_replicas_train_on_the_augmented_pictures_of_one_device(placement):
    settings = {"train.precision": "float64", "data.placement": placement}
    testing.check_replicas("tests/pictures.py", settings, replicas=2, steps=4)


def test_check_replicas_finds_a_loss_that_is_a_mean_of_its_own_part(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from tests.tiny import *\n"
        "from tests.tiny import get_config, make_data, make_model, make_schedule\n"
        "import tensorflow as tf\n"
        "from framework import losses\n\n\n"
        "def make_loss(cfg):\n"
        "    def loss(model, batch, training):\n"
        "        logits = model(batch['image'], training=training)\n"
        "        spread = tf.math.reduce_std(logits, axis=0)  # of this replica's examples\n"
        "        term = losses.sparse_cross_entropy(logits / spread, batch['label'], batch['weight'])\n"
        "        return {'cross_entropy': term}, {'logits': logits}\n\n"
        "    return loss\n\n\n"
        "def make_metrics(cfg):\n"
        "    return {}\n"
    )
    overrides = {"train.precision": "float64", "checkpoint.best_metric": ""}
    with pytest.raises(AssertionError, match=r"2 replicas and one device disagree after 3 steps: .* of 'dense"):
        testing.check_replicas(str(wrong), overrides, replicas=2, steps=3)


def test_alone_it_is_the_same_state_from_the_same_data():
    """What exports are made of."""
    norm = model_with(lambda: keras.layers.BatchNormalization(name="norm"))
    many = build(functions=norm, **on(2, **{"ema.decay": 0.9}))
    many.train_block(3)
    alone = on_one_device(many)
    assert alone.replicas.strategy is None and on_one_device(alone) is alone
    assert alone.data is many.data
    assert digest(alone.state) == digest(many.state)
    assert alone.eval_blocks["test"]() == pytest.approx(many.eval_blocks["test"](), rel=1e-5)

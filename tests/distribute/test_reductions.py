"""What replicas exchange, and what they cannot do."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths, testing
from framework.checkpoint.checkpoints import digest
from framework.config import UserError
from framework.distribute.replicas import Replicas
from framework.run.build import on_one_device
from tests.distribute.replicated import contrastive, model_with, on, weights
from tests.small import build, differing, snapshot


@pytest.fixture(scope="module")
def four():
    """Four replicas, of a run that is not trained."""
    return build(**on(4)).replicas


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


def test_totals_are_sums_and_gathered_parts_stand_in_order(four):
    replicas = four

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


def test_sums_go_to_the_devices_they_come_from(monkeypatch, four):
    """With any other destination TensorFlow copies all to one device, and NCCL is never asked."""
    ops = tf.distribute.ReductionToOneDevice
    reduce, destinations = ops.reduce_implementation, []

    def recorded(self, reduce_op, value, destination, options):
        destinations.append([tensor.device for tensor in destination.values])
        return reduce(self, reduce_op, value, destination, options)

    replicas = four
    monkeypatch.setattr(ops, "reduce_implementation", recorded)
    found = tf.function(lambda: replicas.all_reduce_sum(lambda index: (tf.constant(index), tf.constant(0.5))))()
    assert [int(found[0]), float(found[1])] == [6, 2.0]
    assert destinations == [list(replicas.devices)] * 2


def test_replicas_agree_on_the_mean_of_what_each_moved(four):
    replicas = four
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


def test_an_assigned_variable_has_its_value_on_every_replica(four):
    """Assigned as a whole, what is summed when read would be divided by the replicas."""
    replicas = four
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

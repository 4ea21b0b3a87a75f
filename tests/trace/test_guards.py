"""Ids and labels out of range, and assertions that do not hold: one line that names them, the same in every mode.

Each loss adds what an operation computes from `id` to the prediction of one weight; in one batch, an id is bad.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses
from framework.config import UserError
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.trace.graphs import called
from framework.trace.guards import IN_RANGE
from tests import small
from tests.step import blocks

ROWS, STEP, PLACE = 7, 2, 5  # the batch of step counter 2 has the bad id at place 5
MODES = ("eager", "graph", "xla", "xla_gradients", "xla_update")


def ids(bad, split):
    """{field: array}; without a bad id every example's id is a row, and its label a class."""
    rng = np.random.default_rng(4)
    found = rng.integers(0, ROWS - 1, small.EXAMPLES).astype(np.int32)
    place = small.place_of(STEP, PLACE) if split == "train" else STEP * small.BATCH + PLACE
    if bad is not None:
        found[place] = bad
    return {"id": found, "x": rng.normal(size=(small.EXAMPLES, 4)).astype(np.float32)}


def functions(compute, bad, split="train", transform=None, is_trained=False):
    """An experiment whose loss is the mean of (x w + compute(batch))**2; `bad` is an id of a split."""

    def make_data(cfg, wanted):
        source = Source(ids(bad if wanted == split else None, wanted), "ids")
        return make_batches(source, cfg, training=wanted == "train", transform=transform)

    def make_model(cfg):
        inputs = keras.Input([4])
        outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")(inputs)
        model = keras.Model(inputs, outputs)
        model.table = keras.layers.Embedding(ROWS, 1, name="table", trainable=is_trained)
        return model

    def make_loss(cfg):
        def loss(model, batch, training):
            values = (model(batch["x"], training=training)[:, 0] + compute(model, batch)) ** 2
            return {"squares": losses.Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    return {"make_data": make_data, "make_model": make_model, "make_loss": make_loss}


def build(compute, bad=ROWS, split="train", transform=None, is_trained=False, **settings):
    return small.build(
        functions=functions(compute, bad, split, transform, is_trained), **{"optimizer.name": "sgd", **settings}
    )


def told(run, *arguments):
    """The line with which a block, or an evaluation, ends."""
    with pytest.raises(UserError) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def embedded(model, batch):
    return model.table(batch["id"])[:, 0]


LINE = (
    "step 3 cannot be taken: layer 'table' takes 7, which is none of the rows 0 to 6; it comes from"
    " 'id' of the batch, example 5. Nothing of this step is saved."
)


FAST_MODES = ("graph", "xla")


@pytest.mark.parametrize(
    "mode", [mode if mode in FAST_MODES else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES]
)
def test_an_id_that_is_no_row_ends_the_run_before_its_step(mode):
    built = build(embedded, **{"train.compile": mode, "train.on_nonfinite": "skip"})
    start = blocks.snapshot(built)
    assert told(built.train_block, 5) == LINE
    assert int(built.state.step) == int(built.state.updates) == 2
    ended = small.snapshot(built)
    blocks.put_back(built, start)
    built.train_block(2)
    assert small.differing(small.snapshot(built), ended) == set()


SLOW_WAYS = [("graph", "stream"), ("xla", "resident"), ("eager", "resident")]
WAYS = [
    pytest.param({"train.micro_batches": 4, "train.compile": "graph"}, marks=pytest.mark.slow),
    {"train.micro_batches": 4, "train.compile": "xla"},
    pytest.param({"data.placement": "stream", "train.compile": "xla"}, marks=pytest.mark.slow),
    {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "train.compile": "xla"},
    pytest.param(
        {
            "runtime.strategy": "mirrored",
            "runtime.virtual_devices": 2,
            "train.micro_batches": 2,
            "train.compile": "xla",
        },
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("settings", WAYS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_it_is_found_however_the_step_is_cut(settings):
    assert told(build(embedded, **settings).train_block, 5) == LINE


@pytest.mark.parametrize(
    ("mode", "placement"),
    [("graph", "resident"), ("xla", "stream"), *(pytest.param(*way, marks=pytest.mark.slow) for way in SLOW_WAYS)],
)
def test_evaluation_names_batch_and_id(mode, placement):
    built = build(embedded, split="test", **{"train.compile": mode, "data.placement": placement})
    built.train_block(4)
    line = told(built.eval_blocks["test"])
    assert line.startswith("evaluation, batch 2: layer 'table' takes 7, which is none of the rows 0 to 6")


TABLE = np.arange(ROWS, dtype=np.float32)
LOGITS = np.zeros([small.BATCH, ROWS], np.float32)


def numbers(values):
    return tf.cast(values, tf.float32)


def in_a_function(model, batch):
    return tf.function(lambda id: tf.function(lambda row: tf.gather(TABLE, row))(id + 0))(batch["id"])


def in_a_branch(model, batch):
    return tf.cond(batch["x"][0, 0] < 9.0, lambda: tf.gather(TABLE, batch["id"]), lambda: tf.zeros([small.BATCH]))


def asserted(model, batch):
    tf.debugging.assert_less(batch["id"], ROWS, message="ids are rows")
    return 0.0


def asserted_of_floats(model, batch):
    tf.debugging.assert_less(numbers(batch["id"]), float(ROWS), message="ids are rows")
    return 0.0


def asserted_in_a_function(model, batch):
    tf.function(lambda id: asserted(model, {"id": id}))(batch["id"])
    return 0.0


def labelled(model, batch):
    term = losses.sparse_cross_entropy(LOGITS, batch["id"], tf.ones([small.BATCH]))
    return term.sum * 0.01


def sliced(model, batch):
    return tf.constant(TABLE)[batch["id"][PLACE]]


# Of each: what computes, the bad id, and what is said of it.
KINDS = {
    "gather": (lambda model, batch: tf.gather(TABLE, batch["id"]), 7, "takes 7, which is none of the rows 0 to 6"),
    "negative": (lambda model, batch: tf.gather(TABLE, batch["id"]), -1, "takes -1, which is none of the rows 0 to 6"),
    "computed": (
        lambda model, batch: tf.gather(TABLE, batch["id"] + 1),
        6,
        "takes 7, which is none of the rows 0 to 6",
    ),
    "batch_dims": (
        lambda model, batch: tf.gather(LOGITS, batch["id"], batch_dims=1),
        9,
        "takes 9, which is none of the rows 0 to 6",
    ),
    "gather_nd": (
        lambda model, batch: tf.gather_nd(TABLE, batch["id"][:, tf.newaxis]),
        8,
        "takes 8, which is no place",
    ),
    "slice": (sliced, 7, "takes 7, which is none of -7 to 6"),
    "scatter": (
        lambda model, batch: tf.reduce_sum(
            tf.tensor_scatter_nd_add(tf.constant(TABLE), batch["id"][:, tf.newaxis], tf.ones([small.BATCH]))
        ),
        7,
        "takes 7, which is no place",
    ),
    "labels": (labelled, 7, "takes 7, which is none of the classes 0 to 6"),
    "tf.nn": (
        lambda model, batch: tf.nn.sparse_softmax_cross_entropy_with_logits(batch["id"], LOGITS),
        -1,
        "takes -1, which is none of the rows 0 to 6",  # deterministic, it gathers
    ),
    "keras": (
        lambda model, batch: keras.losses.sparse_categorical_crossentropy(batch["id"], LOGITS, from_logits=True),
        7,
        "takes 7, which is none of the rows 0 to 6",
    ),
    "function": (in_a_function, 7, "takes 7, which is none of the rows 0 to 6"),
    "branch": (in_a_branch, 7, "takes 7, which is none of the rows 0 to 6"),
    "divided": (lambda model, batch: numbers(60 // (batch["id"] + 1)), -1, "takes 0, by which whole numbers"),
    "assert": (asserted, 7, "an assertion does not hold: ids are rows"),
    "assert of floats": (asserted_of_floats, 7, "an assertion does not hold: ids are rows"),
    "assert in a function": (asserted_in_a_function, 7, "an assertion does not hold: ids are rows"),
    "check_numerics": (
        lambda model, batch: tf.debugging.check_numerics(1.0 / (7.0 - numbers(batch["id"])), "1 / (7 - id)") * 0.0,
        7,
        "takes inf, which is not finite: 1 / (7 - id)",
    ),
}
FAST = ("labels", "function", "assert of floats")


@pytest.mark.parametrize("kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_every_kind_is_named_alike_by_kernels_and_by_xla(kind):
    compute, bad, said = KINDS[kind]
    lines = {told(build(compute, bad, **{"train.compile": mode}).train_block, 4) for mode in ("graph", "xla")}
    (line,) = lines
    assert line.startswith("step 3 cannot be taken: ") and said in line and "'id' of the batch" in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"computed"}))
def test_what_is_in_range_is_let_pass(kind):
    assert len(build(KINDS[kind][0], None, **{"train.compile": "xla"}).train_block(4).rows) == 4


def test_padding_may_have_any_label():
    def masked(model, batch):
        weight = numbers(batch["id"] >= 0)
        return losses.sparse_cross_entropy(LOGITS, batch["id"], weight).sum * 0.01

    for mode in ("graph", "xla"):
        assert len(build(masked, -1, **{"train.compile": mode}).train_block(4).rows) == 4


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_a_transform_is_looked_at_too(placement):
    def transform(batch):
        return {**batch, "x": batch["x"] + tf.gather(TABLE, batch["id"])[:, tf.newaxis]}

    mode = {"resident": "xla", "stream": "graph"}[placement]
    built = build(lambda model, batch: 0.0, transform=transform, **{"train.compile": mode, "data.placement": placement})
    line = told(built.train_block, 4)
    assert line.startswith("step 3 cannot be taken: transform (test_guards.py:") and "takes 7, which is none of" in line


def in_a_loop(model, batch):
    return tf.map_fn(lambda id: tf.gather(TABLE, id), batch["id"], fn_output_signature=tf.float32)


def test_what_xla_would_pass_over_in_a_loop_is_refused_at_the_start():
    for mode in ("xla", "xla_gradients"):
        with pytest.raises(UserError, match=r"in a loop or function of its own.*--config\.train\.compile=graph"):
            build(in_a_loop, **{"train.compile": mode})
    assert build(in_a_loop, **{"train.compile": "auto"}).probe.unread


def test_what_is_known_to_be_in_range_is_let_pass_in_a_loop():
    def in_range(model, batch):
        pick = lambda id: tf.gather(TABLE, tf.clip_by_value(id, 0, ROWS - 1), name=IN_RANGE)  # noqa: E731
        return tf.map_fn(pick, batch["id"], fn_output_signature=tf.float32)

    assert not build(in_range, **{"train.compile": "auto"}).probe.unread


def test_what_no_guard_is_needed_for_has_none():
    """Constants, shapes and counters, a one-hot of anything, and the largest of what the model says."""

    def compute(model, batch):
        fixed = tf.gather(TABLE, [1, 2])
        best = tf.gather(TABLE, tf.argmax(tf.one_hot(batch["id"], ROWS), -1))
        return tf.reduce_sum(fixed) + best + batch["x"][:, 1]

    built = build(compute, **{"train.compile": "xla"})
    assert built.probe.unread == () and len(built.train_block(4).rows) == 4


FIXED = {
    "positions": (lambda model, batch: tf.reduce_sum(model.table(tf.range(tf.shape(batch["x"])[1] + 4))), 7),
    "constant": (lambda model, batch: tf.reduce_sum(model.table(tf.constant([1, 9]))), 9),
    "long": (lambda model, batch: tf.reduce_sum(model.table(tf.range(2**17))), ROWS),
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("positions", "graph"),
        ("long", "xla"),
        *(pytest.param(kind, "xla", marks=pytest.mark.slow) for kind in ("positions", "constant")),
    ],
)
def test_an_index_that_is_out_of_range_in_every_batch_is_refused(kind, mode):
    """As positions are that a table of positions does not have; of a long index no value is computed for it."""
    compute, number = FIXED[kind]
    line = told(build(compute, None, **{"train.compile": mode}).train_block, 4)
    what = f"layer 'table' takes {number}, which is none of the rows 0 to {ROWS - 1}, whatever the batch is."
    assert line.startswith(f"step 1 cannot be taken: {what}")


def test_the_first_branch_is_that_of_a_condition_that_holds():
    """A map of protobuf lists the two in another order in every process."""
    trace = tf.function(lambda x: tf.cond(x > 0, lambda: tf.exp(x), lambda: tf.sin(x)), autograph=False)
    graph = trace.get_concrete_function(tf.TensorSpec([], tf.float32)).graph
    operation = next(operation for operation in graph.get_operations() if operation.type in ("If", "StatelessIf"))
    attributes = dict(operation.node_def.attr)
    for names in (sorted(attributes), sorted(attributes, reverse=True)):
        definition = SimpleNamespace(attr={name: attributes[name] for name in names})
        branches = called(SimpleNamespace(type=operation.type, graph=operation.graph, node_def=definition))
        assert [[op.type for op in branch.get_operations() if op.type in ("Exp", "Sin")] for branch in branches] == [
            ["Exp"],
            ["Sin"],
        ]


def test_a_table_that_is_looked_up_in_a_function_trains_alike():
    trained = {}
    replicas = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
    for mode, settings in {"graph": {}, "xla": {"train.compile": "xla"}, "replicas": replicas}.items():

        def compute(model, batch):
            return tf.function(lambda id: model.table(id)[:, 0])(batch["id"])

        built = build(compute, None, is_trained=True, **settings)
        before = built.model.table.get_weights()[0]
        built.model.table.set_weights([np.ones_like(before)])
        built.train_block(3)
        trained[mode] = built.model.table.get_weights()[0]
    assert np.abs(trained["graph"] - 1).max() > 1e-3
    for found in trained.values():
        np.testing.assert_allclose(found, trained["graph"], rtol=1e-5)

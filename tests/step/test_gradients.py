"""What accumulation must not change, and what it does: dropout, L2 and BatchNorm, against NumPy in float64.

Whole steps over batches whose last one is padded: of its four micro-batches one is ragged and one holds padding alone.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, paths, rng
from framework.compile import jit
from framework.config import UserError
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.distribute.replicas import Replicas
from framework.step.forward import total
from framework.step.gradients import Objective
from framework.step.step import batch_gradients
from tests.small import BATCH, build

UPDATES, EXAMPLES, FEATURES, HIDDEN, CLASSES = 6, 58, 6, 8, 3
RATE, DROP, L2, MOMENTUM, EPSILON = 0.1, 0.25, 0.01, 0.8, 1e-3
SETTINGS = {
    "data.remainder": "pad",
    "train.duration": f"{UPDATES} steps",
    "train.precision": "float64",
    "optimizer.name": "sgd",
    "schedule.name": "constant",
    "schedule.learning_rate": RATE,
    "schedule.warmup": "",
}
MICRO = (1, 2, 4)
CASES = [("graph", 1, ""), ("graph", 4, ""), ("xla", 4, ""), ("graph", 4, "body"), ("xla", 2, "body")]
SLOW_CASES = [("graph", 2, ""), ("xla", 1, ""), ("xla", 2, ""), ("eager", 4, "")]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES]


def make_data(cfg, split):
    draw = np.random.default_rng(3)
    fields = {
        "x": draw.normal(size=(EXAMPLES, FEATURES)),
        "label": draw.integers(0, CLASSES, EXAMPLES).astype(np.int32),
        "number": np.arange(EXAMPLES, dtype=np.int32),
    }
    return make_batches(Source(fields, origin="made up"), cfg, training=split == "train")


class Body(keras.layers.Layer):
    """Everything that accumulation could get wrong."""

    def __init__(self):
        super().__init__(name="body")
        self.dense = keras.layers.Dense(HIDDEN, "tanh", kernel_regularizer=keras.regularizers.L2(L2))
        # tf_keras makes a float32 of 1 - momentum if that is a Python float, whatever the dtype of the averages.
        self.norm = keras.layers.BatchNormalization(momentum=np.float64(MOMENTUM), epsilon=EPSILON)
        self.drop = layers.Dropout(DROP)

    def call(self, x, training=None):
        return self.drop(self.norm(self.dense(x), training=training), training=training)


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.body, self.head = Body(), keras.layers.Dense(CLASSES)

    def call(self, x, training=None):
        kept = self.body(x, training=training)
        return self.head(kept), kept


def make_loss(cfg):
    def loss(model, batch, training):
        logits, kept = model(batch["x"], training=training)
        return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {"kept": kept}

    return loss


class Kept:
    """Which elements dropout left, of each example by its number; a sum over micro-batches, each example in one."""

    mode = "max"

    def empty(self):
        return np.zeros(EXAMPLES * HIDDEN)

    def update(self, outputs, batch):
        kept = tf.cast(outputs["kept"] != 0, tf.float64) * tf.cast(batch["weight"], tf.float64)[:, tf.newaxis]
        return tf.reshape(tf.scatter_nd(batch["number"][:, tf.newaxis], kept, [EXAMPLES, HIDDEN]), [-1])

    def merge(self, total, state):
        return total + state

    def result(self, state):
        return 0.0


@functools.cache
def trained(mode, micro, remat):
    """(variables after all updates, rows of numbers, batches)."""
    functions = {
        "make_data": make_data,
        "make_model": lambda cfg: Net(),
        "make_loss": make_loss,
        "make_metrics": lambda cfg: {"kept": Kept()},
    }
    settings = {"train.compile": mode, "train.micro_batches": micro, "train.remat": remat}
    built = build(functions=functions, **SETTINGS, **settings)
    variables = paths.variables(built.model)
    for path, variable in variables.items():
        variable.assign(start()[path])
    batches = [{k: v.numpy() for k, v in built.data.at(step).items()} for step in range(UPDATES)]
    block = built.train_block(UPDATES)
    rows = [block.row(i) | {"kept": block.layout.unpack(block.rows[i])["kept"]} for i in range(UPDATES)]
    return {path: variable.numpy() for path, variable in variables.items()}, rows, batches


@functools.cache
def start():
    draw = np.random.default_rng(8)
    return {
        "body/dense/kernel": draw.normal(0, 0.5, (FEATURES, HIDDEN)),
        "body/dense/bias": draw.normal(0, 0.1, HIDDEN),
        "body/norm/gamma": draw.uniform(0.5, 1.5, HIDDEN),
        "body/norm/beta": draw.normal(0, 0.3, HIDDEN),
        "body/norm/moving_mean": draw.normal(0, 0.1, HIDDEN),
        "body/norm/moving_variance": draw.uniform(0.5, 1.5, HIDDEN),
        "head/kernel": draw.normal(0, 0.5, (HIDDEN, CLASSES)),
        "head/bias": draw.normal(0, 0.1, CLASSES),
    }


def mask(step):
    """Bool [BATCH, HIDDEN]: what dropout leaves of the batch of a step, drawn in one piece."""
    with rng.scope(rng.key(0), step):
        return rng.random_bits16("body/drop", BATCH, HIDDEN).numpy() >= rng.threshold(DROP)


def one_micro_batch(w, batch, kept, weight):
    """Gradients and the sum of the loss of a micro-batch, its mean and variance; `weight` is that of the batch."""
    hidden = np.tanh(batch["x"] @ w["body/dense/kernel"] + w["body/dense/bias"])
    mean, variance = hidden.mean(axis=0), hidden.var(axis=0)
    inverse = 1 / np.sqrt(variance + EPSILON)
    normal = (hidden - mean) * inverse
    factor = kept / (1 - DROP)
    dropped = (normal * w["body/norm/gamma"] + w["body/norm/beta"]) * factor
    logits = dropped @ w["head/kernel"] + w["head/bias"]
    log_share = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(hidden))
    d_logits = np.exp(log_share)
    d_logits[rows, batch["label"]] -= 1
    d_logits *= (batch["weight"] / weight)[:, None]
    d_scaled = d_logits @ w["head/kernel"].T * factor
    d_normal = d_scaled * w["body/norm/gamma"]
    # Of the mean and variance of this micro-batch, padding included.
    d_hidden = inverse * (d_normal - d_normal.mean(axis=0) - normal * (d_normal * normal).mean(axis=0))
    d_dense = d_hidden * (1 - hidden**2)
    gradients = {
        "body/dense/kernel": batch["x"].T @ d_dense,
        "body/dense/bias": d_dense.sum(axis=0),
        "body/norm/gamma": (d_scaled * normal).sum(axis=0),
        "body/norm/beta": d_scaled.sum(axis=0),
        "head/kernel": dropped.T @ d_logits,
        "head/bias": d_logits.sum(axis=0),
    }
    return gradients, -(log_share[rows, batch["label"]] * batch["weight"]).sum(), mean, variance


def reference(micro, batches):
    """Variables after all updates, and (cross-entropy, penalty) of each."""
    w, rows = dict(start()), []
    for step, batch in enumerate(batches):
        weight, kept = batch["weight"].astype(np.float64).sum(), mask(step)
        kernel = w["body/dense/kernel"]
        gradients, loss = {"body/dense/kernel": 2 * L2 * kernel}, 0.0
        for part in np.split(np.arange(BATCH), micro):
            found, value, mean, variance = one_micro_batch(
                w, {k: v[part] for k, v in batch.items()}, kept[part], weight
            )
            gradients = {path: gradients.get(path, 0) + value for path, value in found.items()}
            loss += value / weight
            for name, now in (("mean", mean), ("variance", variance)):
                path = f"body/norm/moving_{name}"
                w[path] = MOMENTUM * w[path] + (1 - MOMENTUM) * now
        rows.append((loss, L2 * (kernel**2).sum()))
        w |= {path: w[path] - RATE * gradient for path, gradient in gradients.items()}
    return w, rows


@pytest.mark.parametrize(("mode", "micro", "remat"), CASES)
def test_dropout_l2_and_batch_norm_are_those_of_numpy(mode, micro, remat):
    """BatchNorm normalises each micro-batch by its own statistics, and its averages move once for each."""
    variables, rows, batches = trained(mode, micro, remat)
    wanted, numbers = reference(micro, batches)
    assert variables.keys() == wanted.keys()
    for path, value in wanted.items():
        assert np.linalg.norm(variables[path] - value) <= 1e-12 * np.linalg.norm(value), path
    for row, (cross_entropy, penalty) in zip(rows, numbers, strict=True):
        assert row["loss/cross_entropy"] == pytest.approx(cross_entropy, rel=1e-12)
        assert row["loss/penalty"] == pytest.approx(penalty, rel=1e-12)
        assert row["loss"] == pytest.approx(cross_entropy + penalty, rel=1e-12)


@pytest.mark.parametrize(("mode", "micro", "remat"), CASES)
def test_masks_are_those_of_one_piece_to_the_bit(mode, micro, remat):
    _, rows, batches = trained(mode, micro, remat)
    for step, (row, batch) in enumerate(zip(rows, batches, strict=True)):
        wanted = np.zeros([EXAMPLES, HIDDEN])
        real = batch["weight"] > 0
        wanted[batch["number"][real]] = mask(step)[real]
        assert (row["kept"].reshape(EXAMPLES, HIDDEN) == wanted).all()
        assert 0.6 < mask(step).mean() < 0.9


def test_the_batches_are_what_they_are_called_and_the_semantics_differ():
    batches = trained("graph", 1, "")[2]
    assert batches[3]["weight"].reshape(4, 4).sum(axis=1).tolist() == [4, 4, 2, 0]
    one, two, four = (reference(micro, batches)[0] for micro in MICRO)
    for left, right in ((one, two), (two, four), (one, four)):
        for path in ("body/norm/moving_mean", "body/norm/moving_variance", "body/dense/kernel"):
            assert np.linalg.norm(left[path] - right[path]) > 1e-3 * np.linalg.norm(right[path])


def make_coupled_loss(cfg):
    def loss(model, batch, training):
        terms, outputs = make_loss(cfg)(model, batch, training)
        return {"matching": losses.BatchDependent(*terms["cross_entropy"])}, outputs

    return loss


def make_step_of_coupled(cfg, tools):
    def step(state, batch):
        found = tools.gradients(lambda part: make_coupled_loss(cfg)(state.model, part, True), batch)
        tools.apply(found.gradients)
        return found.terms, found.metrics

    return step


@pytest.mark.parametrize(("name", "make"), [("make_loss", make_coupled_loss), ("make_step", make_step_of_coupled)])
def test_what_compares_examples_is_not_cut_into_micro_batches(name, make):
    functions = {"make_data": make_data, "make_model": lambda cfg: Net(), "make_loss": make_loss, name: make}
    assert build(functions=functions, **SETTINGS).train_block(1).row(0)["loss"] > 0
    with pytest.raises(UserError) as caught:
        build(functions=functions, **SETTINGS, **{"train.micro_batches": 4})
    assert str(caught.value) == (
        "train.micro_batches=4: term 'matching' compares the examples of a batch with one another, and micro-batches"
        " would hide most of them. Use --config.train.micro_batches=1."
    )


def test_the_total_adds_its_terms_in_an_order_of_its_own():
    """See `test_global_norm_adds_in_an_order_of_its_own`."""
    terms = {name: losses.Term(tf.constant(0.1), tf.constant(3.0)) for name in "abcde"}
    added = tf.function(lambda: total(terms), autograph=False).get_concrete_function()
    assert "AddN" not in {op.type for op in added.graph.get_operations()}
    assert float(added()) == pytest.approx(0.5 / 3, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_of_a_table_has_the_sums_of_its_rows(compiled, dtype):
    """Rows looked up once, again and again, and never, the first among them; added in order, so to the bit."""
    draw = np.random.default_rng(0)
    indices = np.array([[0, 3, 3], [5, 0, 3]], np.int32)
    upstream = draw.normal(size=(2, 3, 4)).astype(dtype)
    table = tf.Variable(draw.normal(size=(7, 4)).astype(dtype))

    def one_pass(batch):
        looked_up = tf.nn.embedding_lookup(table, batch["index"])
        return {"sum": losses.Term(tf.reduce_sum(looked_up * upstream), tf.constant(1.0))}, {}

    def gradient(index):
        objective = Objective(one_pass, {"table": table}, {}, table.dtype)
        return batch_gradients(objective, {"index": index}, Replicas()).gradients["table"]

    function = jit(gradient) if compiled else tf.function(gradient, autograph=False)
    expected = np.zeros([7, 4], dtype)
    np.add.at(expected, indices, upstream)
    np.testing.assert_array_equal(function(tf.constant(indices)), expected)

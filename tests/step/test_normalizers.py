"""Weights of terms are computed from the batch alone: no forward pass, no draw, nothing moved."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, paths, rng
from framework.config import UserError
from framework.distribute.replicas import Replicas
from framework.step.gradients import Objective
from framework.step.normalizers import check_not_constant, term_normalizers
from framework.step.step import batch_gradients
from tests.small import build

SPECS = {
    "x": tf.TensorSpec([8, 4], tf.float32),
    "label": tf.TensorSpec([8], tf.int32),
    "weight": tf.TensorSpec([8], tf.float32),
}
TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}  # eagerly, examples are tensors like any others
TABLE = np.array([0.5, 2.0, 3.25], np.float32)


def make_batch(seed=0):
    random = np.random.default_rng(seed)
    return {
        "x": tf.constant(random.normal(size=(8, 4)), tf.float32),
        "label": tf.constant(random.integers(0, 3, 8), tf.int32),
        "weight": tf.constant(random.integers(0, 3, 8), tf.float32),
    }


def make_model():
    model = keras.Sequential(
        [keras.layers.Dense(5), keras.layers.BatchNormalization(), layers.Dropout(0.5), keras.layers.Dense(3)]
    )
    model.build([None, 4])
    rng.name_streams(paths.objects(model))
    return model


def in_mode(mode, function):
    return function if mode == "eager" else tf.function(function, autograph=False, jit_compile=mode == "xla")


def terms_of(model, batch):
    """Terms weighted in all the ways that a batch can say."""
    values = losses.sparse_cross_entropy(model(batch["x"], training=True), batch["label"], batch["weight"])
    weight, label = batch["weight"], batch["label"]
    with tf.init_scope():
        tensor = tf.constant(TABLE)  # made outside of the trace, which captures it
    chosen = {
        "plain": values.weight,
        "constant": tf.constant(7.0),
        "table": tf.reduce_sum(weight * tf.gather(tf.constant(TABLE), label)),
        "tensor": tf.reduce_sum(weight * tf.gather(tensor, label)),
        "branch": tf.cond(tf.reduce_sum(weight) > 100, lambda: tf.zeros([]), lambda: tf.reduce_max(weight)),
        "loop": tf.while_loop(lambda i, s: i < 4, lambda i, s: (i + 1, s + weight[i]), (0, tf.zeros([])))[1],
        "inner": tf.function(lambda w: 2 * tf.reduce_sum(w))(weight),
        "ones": tf.ones([]),
    }
    return {name: losses.Term(values.sum, value) for name, value in chosen.items()}, {}


@pytest.mark.parametrize("mode", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_weights_are_those_of_numpy_and_nothing_moves(mode):
    model = make_model()
    before = [variable.numpy() for variable in model.variables]
    with rng.scope(rng.key(0), 0):
        weights = in_mode(mode, term_normalizers(lambda batch: terms_of(model, batch), SPECS))
    for seed in (1, 2):
        batch = make_batch(seed)
        weight, label = batch["weight"].numpy(), batch["label"].numpy()
        found = {name: float(value) for name, value in weights(batch).items()}
        assert found == {
            "plain": weight.sum(),
            "constant": 7.0,
            "table": pytest.approx((weight * TABLE[label]).sum(), rel=1e-6),
            "tensor": pytest.approx((weight * TABLE[label]).sum(), rel=1e-6),
            "branch": weight.max(),
            "loop": weight[:4].sum(),
            "inner": 2 * weight.sum(),
            "ones": 1.0,
        }
    for variable, old in zip(model.variables, before, strict=True):
        assert variable.numpy().tobytes() == old.tobytes(), variable.name


def test_no_forward_pass_is_part_of_it():
    model = make_model()
    with rng.scope(rng.key(0), 0):
        weights = term_normalizers(lambda batch: terms_of(model, batch), SPECS)
    graph = weights.get_concrete_function(SPECS).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert "Sum" in operations and graph.variables == ()
    assert not {kind for kind in operations if "MatMul" in kind or "Random" in kind or "Assign" in kind}


def test_several_arguments_keep_their_order():
    def run(index, batch):
        weight = batch["weight"][index] + 10 * tf.cast(index, tf.float32)
        return {"one": losses.Term(tf.zeros([]), weight)}, {}

    weights = term_normalizers(run, tf.TensorSpec([], tf.int32), SPECS)
    batch = make_batch()
    assert float(weights(tf.constant(3), batch)["one"]) == batch["weight"].numpy()[3] + 30


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_micro_batches_draw_and_weigh_as_one_piece(mode):
    """Dropout's masks, class weights and ragged weights: four parts have the gradient of the whole, twice in a step.

    The trace that weights are taken from does not count: the second pass draws what it would draw in one piece.
    """
    model, batch = make_model(), make_batch(3)
    model.layers[1].trainable = False  # the statistics of a part are not those of the whole
    variables = {path: v for path, v in paths.trainable(model).items() if not path.startswith("batch_normalization")}

    def one_pass(part):
        share = part["weight"] * tf.gather(tf.constant(TABLE), part["label"])
        logits = model(part["x"], training=True)
        return {
            "table": losses.sparse_cross_entropy(logits, part["label"], share),
            "plain": losses.sparse_cross_entropy(2 * logits, part["label"], part["weight"]),
        }, {}

    positions = {1: [], 4: []}

    def gradients(micro_batches):
        def run():
            with rng.scope(rng.key(4), 2):
                passes = []
                objective = Objective(one_pass, variables, {}, tf.float32)
                for _ in range(2):
                    passes.append(batch_gradients(objective, batch, Replicas(), micro_batches))
                    positions[micro_batches].append(rng.save_counters())
                return passes

        return in_mode(mode, run)()

    for whole, parts in zip(gradients(1), gradients(4), strict=True):
        for name in whole.terms:
            assert float(parts.terms[name].weight) == pytest.approx(float(whole.terms[name].weight), rel=1e-6)
            assert float(parts.terms[name].sum) == pytest.approx(float(whole.terms[name].sum), rel=1e-5)
        for path, gradient in whole.gradients.items():
            error = np.linalg.norm(parts.gradients[path] - gradient)
            assert error <= 2e-6 * np.linalg.norm(gradient), path
    assert positions[4] == positions[1] == [{"dropout": 1}, {"dropout": 2}]


def weighted_by(variable_of, nested=False):
    """A loss whose term 'mine' is weighted by a variable of the model."""

    def factor(model, batch):
        if nested:
            return tf.function(lambda w: tf.reduce_sum(variable_of(model)) * tf.reduce_sum(w))(batch["weight"])
        return tf.reduce_sum(variable_of(model)) * tf.reduce_sum(batch["weight"])

    def run(model, batch, training):
        term = losses.sparse_cross_entropy(model(batch["x"], training=training), batch["label"], batch["weight"])
        return {"fine": term, "mine": losses.Term(term.sum, factor(model, batch))}, {}

    return run


MESSAGE = (
    "the weight of term 'mine' is computed from the variable '{}'. A weight is a function of the batch alone: put"
    " factors that depend on the model into Term.sum."
)


HIDDEN = (
    "the weight of term 'mine' comes out of a tf.function, which hides whether it is computed from the variable '{}'."
    " Take tf.function off the loss: steps are compiled anyway."
)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("variable_of", "name"),
    [
        (lambda model: model.layers[0].kernel, "dense/kernel:0"),
        (lambda model: model.layers[1].moving_mean, "batch_normalization/moving_mean:0"),
    ],
)
def test_a_weight_that_depends_on_the_model_is_refused(variable_of, name, nested):
    model = make_model()
    loss = weighted_by(variable_of, nested)
    with pytest.raises(UserError) as caught, rng.scope(rng.key(0), 0):
        term_normalizers(lambda batch: loss(model, batch, True), SPECS)
    message = HIDDEN if nested else MESSAGE
    assert str(caught.value) == message.format(variable_of(model).name)


def test_a_weight_that_depends_on_the_output_is_refused():
    model = make_model()

    def run(batch):
        logits = model(batch["x"], training=True)
        return {"mine": losses.Term(tf.reduce_sum(logits), tf.reduce_sum(tf.nn.softmax(logits)))}, {}

    with pytest.raises(UserError) as caught, rng.scope(rng.key(0), 0):
        term_normalizers(run, SPECS)
    assert str(caught.value) in {MESSAGE.format(variable.name) for variable in model.variables}


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_building_a_run_refuses_it_too(micro_batches):
    loss = weighted_by(lambda model: model.layers[0].kernel)
    with pytest.raises(UserError) as caught:
        build(functions={"make_loss": lambda cfg: loss}, **{"train.micro_batches": micro_batches})
    assert str(caught.value) == MESSAGE.format("first/kernel:0")


CONSTANT = (
    "the weight of term 'mine' is the same for every batch and part of one, but its sum is of the examples: such terms"
    " do not add up to a mean. Use a weight of the examples, e.g. losses.Term(tf.reduce_sum(values * batch['weight']),"
    " tf.reduce_sum(batch['weight'])), and put a constant into Term.sum."
)


@pytest.mark.parametrize(
    ("is_refused", "term"),
    [
        (True, lambda values, weight: (tf.reduce_mean(values), tf.constant(1.0))),
        (True, lambda values, weight: (tf.reduce_sum(values * weight), 2.0 * tf.ones([]))),
        (True, lambda values, weight: (tf.reduce_sum(values * weight), tf.cast(tf.shape(values)[0], tf.float32))),
        (True, lambda values, weight: (tf.function(tf.reduce_mean)(values), tf.ones([]))),
        (True, lambda values, weight: (tf.cond(values[0] > 0, lambda: values[1], lambda: 0.0), tf.ones([]))),
        (False, lambda values, weight: (tf.reduce_sum(values * weight), tf.reduce_sum(weight))),
        (False, lambda values, weight: (tf.reduce_sum(values), tf.reduce_sum(tf.cast(values > 0, tf.float32)))),
        (False, lambda values, weight: (tf.constant(3.0), tf.ones([]))),
        (False, lambda values, weight: (tf.constant(3.0), tf.reduce_sum(weight))),
    ],
)
def test_a_weight_of_no_example_is_refused_beside_a_sum_that_is_of_them(is_refused, term):
    def trace(values, weight):
        check_not_constant({"mine": tuple(map(tf.identity, term(values, weight)))}, {values.op, weight.op})
        return values

    spec = tf.TensorSpec([8], tf.float32)
    with pytest.raises(UserError) if is_refused else contextlib.nullcontext() as caught:
        tf.function(trace, autograph=False).get_concrete_function(spec, spec)
    assert not is_refused or str(caught.value) == CONSTANT


@pytest.mark.parametrize("where", ["training", "coupled", "evaluation", "own step"])
def test_wherever_the_term_is_computed(where):
    def mine(model, batch, training):
        values = tf.reduce_sum(model(batch["x"], training=training), -1)
        kind = losses.BatchDependent if where == "coupled" else losses.Term
        return {"mine": kind(tf.reduce_mean(values), tf.constant(1.0))}, {}

    def make_loss(cfg):
        def loss(model, batch, training):
            is_here = training != (where == "evaluation") and where != "own step"
            logits = model(batch["x"], training=training)
            fine = losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])
            return mine(model, batch, training) if is_here else ({"mine": fine}, {})

        return loss

    def make_step(cfg, tools):
        def step(state, batch):
            found = tools.gradients(lambda part: mine(state.model, part, True), batch)
            tools.apply(found.gradients)
            return found.terms, found.metrics

        return step

    functions = {"make_loss": make_loss} | ({"make_step": make_step} if where == "own step" else {})
    with pytest.raises(UserError) as caught:
        build(functions=functions)
    assert str(caught.value) == CONSTANT


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("graph", {"train.micro_batches": 4}),
        ("graph", {}),
        ("graph", TWO),
        *(pytest.param("xla", settings, marks=pytest.mark.slow) for settings in ({}, {"train.micro_batches": 4}, TWO)),
        *(pytest.param("eager", settings, marks=pytest.mark.slow) for settings in ({}, {"train.micro_batches": 4})),
    ],
)
def test_a_constant_weight_of_examples_is_refused_and_that_of_a_penalty_is_not(mode, settings):
    """It would be counted once for each part and batch, whatever that holds."""

    def make_loss(weight, total):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)
            term = losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])
            other = total(model, logits)
            return {"fine": term, "mine": losses.Term(other, weight)}, {}

        return {"make_loss": lambda cfg: loss}

    def weights_alone(model, logits):
        return tf.reduce_sum(tf.square(model.layers[0].kernel))

    settings = {**settings, "train.compile": mode}
    with pytest.raises(UserError) as caught:
        build(functions=make_loss(16.0 * tf.ones([]), lambda model, logits: tf.reduce_sum(logits)), **settings)
    assert str(caught.value) == CONSTANT
    penalty = build(functions=make_loss(tf.ones([]), weights_alone), **settings)
    kernel = penalty.model.layers[0].kernel.numpy()
    row = penalty.train_block(1).row(0)
    assert row["loss/mine"] == pytest.approx((kernel.astype(np.float64) ** 2).sum(), rel=1e-5)

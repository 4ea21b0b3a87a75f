"""Losses, metrics, draws and models that a block cannot take are refused in one line."""

import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, metrics
from framework.config import UserError
from tests.step.blocks import build, with_model


def refusal(functions, **overrides):
    with pytest.raises(UserError) as caught:
        build("graph", functions, **overrides)
    return str(caught.value)


def test_draws_that_a_resumed_run_would_not_repeat_are_refused():
    layer = with_model(lambda: [keras.layers.Dropout(0.2)])
    assert refusal(layer).startswith(
        "'dropout' (keras.layers.Dropout) draws random numbers that a resumed run would not draw again. Write"
        " framework.layers.Dropout; "
    )


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        (lambda logits: tf.reduce_sum(logits), "SymbolicTensor"),
        (lambda logits: {"a": tf.reduce_sum(logits)}, "dict of SymbolicTensor"),
        (lambda logits: ({}, {"logits": logits}), "(an empty dict, dict of SymbolicTensor)"),
        (lambda logits: ({"a": losses.Term(logits, logits)}, logits), "(dict of Term, SymbolicTensor)"),
    ],
)
def test_a_loss_of_another_form_is_refused(returned, shown):
    make_loss = {"make_loss": lambda cfg: lambda model, batch, training: returned(model(batch["image"]))}
    assert refusal(make_loss) == (
        f"the loss returned {shown}. It must return ({{name: Term(sum, weight)}}, {{name: tensor}}): its terms, and the"
        " outputs that metrics read."
    )


@pytest.mark.parametrize(("reduce", "shape"), [(tf.reduce_sum, "()"), (tf.identity, "(128, 10)")])
def test_a_term_that_is_a_tensor_is_refused_with_what_makes_one(reduce, shape):
    def loss(model, batch, training):
        logits = model(batch["image"])
        return {"a": reduce(logits)}, {"logits": logits}

    assert refusal({"make_loss": lambda cfg: loss}) == (
        f"term 'a' of the loss is a tensor of shape {shape}, not a Term, so nobody knows what padding adds to it. Give"
        " the loss of each example to losses.mean(values, batch['weight']): it returns their weighted sum and the"
        " sum of the weights."
    )


def test_a_term_of_the_name_of_the_penalties_is_refused():
    """It would have been overwritten in silence."""

    def loss(model, batch, training):
        return {"penalty": losses.Term(tf.reduce_sum(model(batch["image"])), tf.ones([]))}, {}

    assert refusal({"make_loss": lambda cfg: loss}) == (
        "the loss returned a term 'penalty', which is what model.losses are called. Give it another name."
    )


@pytest.mark.parametrize(
    ("term", "shapes"),
    [
        (lambda values, weight: losses.Term(values * weight, tf.reduce_sum(weight)), "(128,) and ()"),
        (lambda values, weight: losses.Term(tf.reduce_sum(values * weight), weight), "() and (128,)"),
    ],
)
def test_a_term_of_another_shape_is_refused(term, shapes):
    def make_loss(cfg):
        def loss(model, batch, training):
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], model(batch["image"]))
            return {"mine": term(values, batch["weight"])}, {}

        return loss

    assert refusal({"make_loss": make_loss}) == (
        f"term 'mine' of the loss has a sum and a weight of shapes {shapes}. Both are scalars, e.g."
        " Term(tf.reduce_sum(values * weight), tf.reduce_sum(weight))."
    )


def test_a_model_that_is_never_called_is_refused():
    def make_loss(cfg):
        def loss(model, batch, training):
            return {"mine": losses.Term(tf.reduce_sum(batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    def make_model(cfg):
        return keras.Sequential([keras.layers.Dense(1)])

    waiting = {"make_model": make_model, "make_loss": make_loss, "make_metrics": lambda cfg: {}}
    told = "is never called by make_loss, and so has no variables. Call it there, or begin it with keras.Input(shape)."
    assert refusal(waiting, **{"checkpoint.best_metric": ""}) == f"the model {told}"
    several = {**waiting, "make_model": lambda cfg: {"a": make_model(cfg)}}
    assert refusal(several, **{"checkpoint.best_metric": ""}) == f"the model 'a' {told}"


def test_a_metric_of_another_form_is_refused():
    class Scalar(metrics.Accuracy):
        def update(self, outputs, batch):
            return super().update(outputs, batch)[0]

    assert refusal({"make_metrics": lambda cfg: {"mine": Scalar()}}, **{"checkpoint.best_metric": ""}) == (
        "metric 'mine': update returned shape (), but empty() has 2 numbers. A state is a vector of fixed length,"
        " e.g. tf.stack([sum, weight])."
    )

    class Empty(metrics.Accuracy):
        def empty(self):
            return 0.0

    assert refusal({"make_metrics": lambda cfg: {"mine": Empty()}}, **{"checkpoint.best_metric": ""}) == (
        "metric 'mine': empty returned 0.0. It must return the state of no examples, a vector, e.g. np.zeros(2)."
    )

    class Number(metrics.Accuracy):
        def update(self, outputs, batch):
            return 3.0

    assert refusal({"make_metrics": lambda cfg: {"mine": Number()}}, **{"checkpoint.best_metric": ""}) == (
        "metric 'mine': update returned 3.0. It must return the state of a batch, a floating tensor of 2 numbers, e.g."
        " tf.stack([sum, weight])."
    )

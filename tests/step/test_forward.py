"""framework/step/forward.py: what a loss or a step function returns by mistake is refused in one line."""

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, metrics
from framework.errors import UserError
from tests import small


def refusal(**functions):
    with pytest.raises(UserError) as caught:
        small.build(functions=functions)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits_loss(cfg):
    def loss(model, batch, training):
        logits = tf.cast(model(batch["x"], training=training), tf.float32)
        return {"error": losses.mean(logits[:, 0] ** 2, batch["weight"])}, {"logits": logits}

    return loss


def step_that_returns(returned):
    """Returns the functions of an experiment whose step returns returned(result)."""

    def make_step(cfg, tools):
        def step(state, batch):
            result = tools.gradients(lambda part: logits_loss(cfg)(state.model, part, True), batch)
            tools.apply(result.gradients)
            return returned(result)

        return step

    make_metrics = {"make_metrics": lambda cfg: {"accuracy": metrics.Accuracy()}}
    return {"make_loss": logits_loss, "make_step": make_step, **make_metrics}


FORM = (
    ". It must return (terms, metric states), e.g. `return result.terms, result.metrics` of `result ="
    " tools.gradients(…)`."
)
TERM = ". A term is losses.Term(sum, weight), such as result.terms['mine'] of `result = tools.gradients(…)`."
SCALARS = ". Both are scalars, e.g. Term(tf.reduce_sum(values * weight), tf.reduce_sum(weight))."
STATE = (
    ", but its state is a vector of 2 numbers. Return result.metrics of `result = tools.gradients(…)`, or {'accuracy':"
    " metric.update(outputs, batch)}."
)

STEPS = {
    "nothing": (lambda result: None, "the step returned NoneType" + FORM),
    "the terms alone": (lambda result: result.terms, "the step returned dict" + FORM),
    "a tensor": (lambda result: result.terms["error"].sum, "the step returned SymbolicTensor" + FORM),
    "a tensor for a term": (
        lambda result: ({"mine": result.terms["error"].sum}, {}),
        "the step returned the term 'mine' as SymbolicTensor" + TERM,
    ),
    "a number for a term": (lambda result: ({"mine": 0.5}, {}), "the step returned the term 'mine' as float" + TERM),
    "no term": (lambda result: ({"mine": None}, {}), "the step returned the term 'mine' as NoneType" + TERM),
    "a pair for a term": (
        lambda result: ({"mine": tuple(result.terms["error"])}, {}),
        "the step returned the term 'mine' as (SymbolicTensor, SymbolicTensor)" + TERM,
    ),
    "a term of vectors": (
        lambda result: ({"mine": losses.Term(tf.zeros([3]), tf.ones([]))}, {}),
        "term 'mine' of the step has a sum and a weight of shapes (3,) and ()" + SCALARS,
    ),
    "a term of Python": (
        lambda result: ({"mine": losses.Term(0.5, 1.0)}, {}),
        "term 'mine' of the step has a sum and a weight of types float and float" + SCALARS,
    ),
    "a term without a name": (
        lambda result: ({0: result.terms["error"]}, {}),
        "the step returned a term under the name 0. Names are text: write '0'.",
    ),
    "a number for a state": (
        lambda result: (result.terms, {"accuracy": 0.5}),
        "the step returned the metric 'accuracy' as float" + STATE,
    ),
    "a mean for a state": (
        lambda result: (result.terms, {"accuracy": tf.reduce_mean(result.metrics["accuracy"])}),
        "the step returned the metric 'accuracy' as shape ()" + STATE,
    ),
    "a state without a metric": (
        lambda result: (result.terms, {3: tf.ones([])}),
        "the step returned a metric '3' that make_metrics does not have.",
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_that_returns_something_else_is_refused(case):
    returned, told = STEPS[case]
    assert refusal(**step_that_returns(returned)) == told


def test_a_step_may_leave_metrics_out_and_return_arrays():
    built = small.build(functions=step_that_returns(lambda result: (result.terms, {"accuracy": np.float32([1, 2])})))
    assert built.train_block(1).row(0)["accuracy"] == 0.5


LOSSES = {
    "a sum of Python": (
        lambda logits: ({"mine": losses.Term(0.5, tf.ones([]))}, {}),
        "term 'mine' of the loss has a sum and a weight of types float and SymbolicTensor" + SCALARS,
    ),
    "no weight": (
        lambda logits: ({"mine": losses.Term(tf.reduce_sum(logits), None)}, {}),
        "term 'mine' of the loss has a sum and a weight of types SymbolicTensor and NoneType" + SCALARS,
    ),
    "a term without a name": (
        lambda logits: ({None: losses.Term(tf.reduce_sum(logits), tf.ones([]))}, {}),
        "the loss returned a term under the name None. Names are text: write 'None'.",
    ),
    "no output": (
        lambda logits: ({"mine": losses.Term(tf.reduce_sum(logits), tf.ones([]))}, {"attention": None}),
        "the loss returned the output 'attention' as NoneType. Outputs are tensors, which metrics read: leave out what"
        " is none.",
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_that_returns_something_else_is_refused(case):
    returned, told = LOSSES[case]
    assert refusal(make_loss=lambda cfg: lambda model, batch, training: returned(model(batch["x"]))) == told

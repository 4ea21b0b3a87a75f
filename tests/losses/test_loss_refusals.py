"""What a loss cannot take is refused, at once or where it comes."""

import numpy as np
import pytest
import tensorflow as tf

from framework import losses
from framework.errors import UserError
from tests import small


@pytest.mark.parametrize(
    ("values", "weight"),
    [((4,), (4, 1)), ((4, 1), (1, 4)), ((4, 3), (3,)), ((4, 3), ()), ((4,), (3,)), ((), (1,))],
    ids=str,
)
def test_weights_that_would_be_broadcast_are_refused(values, weight):
    with pytest.raises(UserError) as error:
        losses.mean(np.ones(values), np.ones(weight))
    assert str(error.value) == (
        f"losses.mean: values have shape {values} and weights {weight}. A weight is [batch], or of the shape of the"
        " values: write e.g. weight[:, 0] of a column, values[:, 0] of values [batch, 1]."
    )


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (losses.mean_squared_error, "predictions"),
        (losses.huber, "predictions"),
        (losses.binary_cross_entropy, "logits"),
        (losses.focal, "logits"),
        (losses.hinge, "logits"),
        (losses.categorical_cross_entropy, "logits"),
        (losses.kl_divergence, "logits"),
        (losses.cosine_distance, "predictions"),
    ],
)
def test_predictions_in_a_column_beside_targets_in_a_row_are_refused(function, kind):
    """Of [4, 1] beside [4], a difference would be [4, 4], and the model would learn the mean of all targets."""
    with pytest.raises(UserError) as error:
        function(np.ones([4, 1]), np.ones(4), np.ones(4))
    assert str(error.value) == (
        f"{function.__name__}: {kind} have shape (4, 1) and targets (4,), but each of the {kind} has its target. Write"
        f" e.g. {kind}[:, 0] of {kind} [batch, 1]."
    )


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda x, y, w: losses.focal(x, y, w, gamma=0.5), "focal: gamma=0.5 must be 0 or at least 1; between"),
        (lambda x, y, w: losses.focal(x, y, w, alpha=2), "focal: alpha=2 is not from 0 to 1."),
        (lambda x, y, w: losses.huber(x, y, w, delta=0), "huber: delta=0 is not above 0."),
        (lambda x, y, w: losses.hinge(x, y, w, margin=-1), "hinge: margin=-1 is not above 0."),
        (
            lambda x, y, w: losses.binary_cross_entropy(x, y, w, smoothing=1.0),
            "binary_cross_entropy: smoothing=1.0 is not from 0 to below 1.",
        ),
        (
            lambda x, y, w: losses.binary_cross_entropy(x, y, w, class_weights=(1, 2, 3)),
            r"binary_cross_entropy: class_weights=\[1.0, 2.0, 3.0\] must be 2 numbers of at least 0, one for each",
        ),
    ],
)
def test_settings_that_are_none_are_refused(call, problem):
    with pytest.raises(UserError, match=f"^{problem}"):
        call(np.ones(4), np.ones(4), np.ones(4))


def test_a_softmax_of_one_class_is_refused():
    with pytest.raises(UserError, match=r"categorical_cross_entropy: logits have shape \(4, 1\), but the softmax of a"):
        losses.categorical_cross_entropy(np.ones([4, 1]), np.ones([4, 1]), np.ones(4))


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_a_run_stops_at_a_target_that_is_no_probability_and_names_it(mode):
    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)[:, 0]
            return {"ce": losses.binary_cross_entropy(logits, batch["label"], batch["weight"])}, {}

        return loss

    run = small.build(functions={"make_loss": make_loss}, **{"train.compile": mode})
    with pytest.raises(UserError) as error:
        run.train_block(1)
    problem = str(error.value)
    assert problem.startswith("step 1 cannot be taken:") and "takes 2.0, which is not from 0 to 1" in problem
    assert "'label'" in problem


def test_a_term_times_a_number_is_the_same_part_of_a_loss():
    term = losses.Term(tf.constant(3.0, tf.float64), tf.constant(2.0))
    for scaled in (0.5 * term, term * 0.5, term * np.float32(0.5), term * tf.constant(0.5)):
        assert type(scaled) is losses.Term and scaled.sum.dtype == tf.float64
        assert (float(scaled.sum), float(scaled.weight)) == (1.5, 2.0)
    assert type(2 * losses.BatchDependent(*term)) is losses.BatchDependent
    with pytest.raises(UserError, match=r"^Terms are not added, .* Return \{'a': one, 'b': another\}\.$"):
        term + term
    with pytest.raises(
        UserError, match=r"multiplied by a number or a scalar tensor, not by a Term: write 0\.5 \* term"
    ):
        term * term

"""Probabilities are refused where logits are wanted, by every loss and metric that they would make wrong."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import data, losses, metrics, testing
from framework.errors import UserError

LABELS, YES = np.array([0, 2, 1, 0]), np.array([0, 1, 1, 0], np.float32)
WEIGHT = np.ones(4, np.float32)
OF_CLASSES = {
    "sparse_cross_entropy": lambda x: losses.sparse_cross_entropy(x, LABELS, WEIGHT),
    "sparse_hinge": lambda x: losses.sparse_hinge(x, LABELS, WEIGHT),
    "categorical_cross_entropy": lambda x: losses.categorical_cross_entropy(x, tf.one_hot(LABELS, 3), WEIGHT),
    "kl_divergence": lambda x: losses.kl_divergence(x, tf.one_hot(LABELS, 3), WEIGHT),
    "Perplexity": lambda x: metrics.Perplexity().update({"logits": x}, {"label": LABELS, "weight": WEIGHT}),
    "CalibrationError": lambda x: metrics.CalibrationError().update({"logits": x}, {"label": LABELS, "weight": WEIGHT}),
}
OF_YES = {
    "binary_cross_entropy": lambda x: losses.binary_cross_entropy(x, YES, WEIGHT),
    "focal": lambda x: losses.focal(x, YES, WEIGHT),
    "hinge": lambda x: losses.hinge(x, YES, WEIGHT),
    "BinaryAccuracy": lambda x: metrics.BinaryAccuracy().update({"logits": x}, {"label": YES, "weight": WEIGHT}),
    "Accuracy": lambda x: metrics.Accuracy().update({"logits": x}, {"label": YES, "weight": WEIGHT}),
    "AUC": lambda x: metrics.AUC().update({"logits": x}, {"label": YES, "weight": WEIGHT}),
}
HALF = tf.float16
PASSED_ON = {
    "as it is": lambda x: x,
    "in another dtype": lambda x: tf.cast(tf.cast(x, HALF), tf.float32),
    "in another shape": lambda x: tf.reshape(tf.expand_dims(x, 0), x.shape),
    "some rows": lambda x: tf.gather(x, [0, 1, 2, 3]),
}


def traced(function, *shape):
    tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.float32))


@pytest.mark.parametrize("passed_on", PASSED_ON)
@pytest.mark.parametrize("name", OF_CLASSES)
def test_what_a_softmax_gives_is_no_logits(name, passed_on):
    def wrong(x):
        return OF_CLASSES[name](PASSED_ON[passed_on](tf.nn.softmax(x)))

    with pytest.raises(
        UserError, match=rf"^{name}: the logits are what a softmax gives \('Softmax'\), but {name} take"
    ):
        traced(wrong, 4, 3)


@pytest.mark.parametrize("name", OF_YES)
def test_what_a_sigmoid_gives_is_no_logits(name):
    column = keras.layers.Dense(1, activation="sigmoid", name="answer")
    with pytest.raises(UserError, match=rf"^{name}: the logits are what a sigmoid gives \('answer/Sigmoid'\)"):
        traced(lambda x: OF_YES[name](column(x)[:, 0]), 4, 3)


@pytest.mark.parametrize("name", [*OF_CLASSES, *OF_YES])
def test_what_was_logits_stays_accepted(name):
    """A log-softmax changes nothing in a softmax; a scaled softmax, as of attention, is the user's choice."""
    if name in OF_YES:
        traced(lambda x: OF_YES[name](tf.sigmoid(x)[:, 0] * 4.0), 4, 3)
        return
    traced(lambda x: OF_CLASSES[name](tf.nn.log_softmax(x)), 4, 3)
    traced(lambda x: OF_CLASSES[name](10.0 * tf.nn.softmax(x)), 4, 3)


def tensorflow_loss(outputs, batch):
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], outputs)
    return losses.mean(values, batch["weight"])


def framework_loss(outputs, batch):
    return losses.sparse_cross_entropy(outputs, batch["label"], batch["weight"])


@pytest.mark.parametrize(("term", "begin"), [
    (framework_loss, "sparse_cross_entropy: the logits are what a softmax gives ('net/last/Softmax')"),
    (tensorflow_loss, "a loss takes the softmax of what a softmax gives ('net/last/Softmax')"),
])  # fmt: skip
def test_an_experiment_whose_last_layer_has_a_softmax_is_refused(tmp_path, term, begin):
    source = data.Source({"x": np.zeros([8, 4], np.float32), "label": np.zeros(8, np.int32)}, origin="zeros")

    def loss(model, batch, training):
        outputs = model(batch["x"], training=training)
        return {"cross_entropy": term(outputs, batch)}, {"logits": outputs}

    functions = {
        "make_data": lambda cfg, split: data.make_batches(source, cfg, training=split == "train"),
        "make_model": lambda cfg: keras.Sequential(
            [keras.layers.Dense(3, activation="softmax", name="last")], name="net"
        ),
        "make_loss": lambda cfg: loss,
    }
    with pytest.raises(UserError) as caught:
        testing.build(functions, {"data.batch_size": 8, "train.duration": "2 steps"}, tmp_path / "run")
    assert begin in str(caught.value)
    assert "activation='softmax'" in str(caught.value)

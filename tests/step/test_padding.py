"""framework/step/padding.py: rows of weight 0 are there before the transform, and metrics do not count them."""

import numpy as np
import pytest
import tensorflow as tf

from framework import config, data, losses, metrics
from framework.data.batches import make_batches
from framework.modes import check
from framework.run import preview
from framework.step.padding import check_metrics, padded, with_padding
from tests import small

FACTORS = [0.5, 0.75, 1.0, 1.25, 1.5, 0.0]  # of 6 rows: the last of them has no weight
TOKENS = np.arange(24).reshape(6, 4) % 3
SETTINGS = {"data.batch_size": 6, "eval.batch_size": 6, "data.shuffle": False}


def finalized(**overrides):
    cfg = config.base_config()
    cfg.update_from_flattened_dict({**SETTINGS, **overrides})
    return config.finalize(cfg)


def token_weights(batch):
    mask = tf.cast(batch["ids"] > 0, tf.float32)
    return {**batch, "token_weight": mask * batch["weight"][:, tf.newaxis]}


@pytest.mark.parametrize("placement", ["resident", "stream", "pipeline"])
@pytest.mark.parametrize("own", [None, [2.0, 1, 1, 4, 1, 1]])
def test_a_transform_sees_the_weight_of_padding(placement, own):
    arrays = {"ids": TOKENS} if own is None else {"ids": TOKENS, "weight": np.float32(own)}
    if placement == "pipeline":
        cfg, source = finalized(**{"data.shuffle": True}), tf.data.Dataset.from_tensor_slices(arrays).batch(6)
    else:
        cfg, source = finalized(**{"data.placement": placement}), data.Source(arrays, origin="tokens")
    made = make_batches(source, cfg, training=True, transform=token_weights)
    batch = padded(made)
    weight = np.multiply(own or np.ones(6), FACTORS)
    np.testing.assert_array_equal(batch["ids"], TOKENS)
    np.testing.assert_allclose(batch["weight"], weight)
    np.testing.assert_allclose(batch["token_weight"], (TOKENS > 0) * weight[:, np.newaxis])
    np.testing.assert_array_equal(made.at(0)["weight"], own or np.ones(6))


def test_batches_of_an_experiment_get_the_weights_afterwards():
    class Own:
        batch_size = 6

        def at(self, step):
            return {"x": tf.zeros([6]), "weight": tf.ones([6], tf.float64)}

    np.testing.assert_allclose(padded(Own())["weight"], FACTORS)


def found(metric, outputs=None):
    """Returns the sentences about a metric of a loss of 6 examples of 4 tokens."""
    logits = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    batch = with_padding({"ids": tf.constant(TOKENS), "logits": tf.constant(logits), "weight": tf.ones([6])})
    whole = tf.cast(TOKENS > 0, tf.float32)  # a mask in which padding counts
    batch |= {"right": whole * batch["weight"][:, tf.newaxis], "wrong": whole, "heat": tf.range(6.0)}

    def loss(model, batch, training):
        rows = (outputs or (lambda batch: {}))(batch)
        return {"none": losses.mean(batch["heat"], batch["weight"])}, {"logits": batch["logits"], **rows}

    cfg = config.resolve(config.finalize(config.base_config()), steps_per_epoch=1.0)
    return check_metrics(loss, tf.Module(), {"m": metric}, batch, cfg)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.Perplexity(label="ids", weight="right"),
        metrics.TopKAccuracy(1, label="ids", weight="right"),
        metrics.F1(3, label="ids", weight="right"),
        metrics.ConfusionMatrix(3, label="ids", weight="right"),
        metrics.CalibrationError(label="ids", weight="right"),
        metrics.R2("heat", "heat"),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_metrics_that_leave_padding_out(metric):
    heat = (lambda batch: {"heat": batch["heat"]}) if isinstance(metric, metrics.R2) else None
    assert found(metric, heat) == []


def test_a_weight_of_tokens_that_forgets_the_examples_is_named():
    mask = TOKENS > 0
    hits = mask & (np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32).argmax(-1) == TOKENS)
    numbers = [(hits.sum(), hits[:5].sum()), (mask.sum(), mask[:5].sum())]
    place = 0 if hits[5].any() else 1
    assert mask[5].sum() == 3
    assert found(metrics.TopKAccuracy(1, label="ids", weight="wrong")) == [
        f"metric 'm' counts rows of weight 0: state[{place}] is {numbers[place][0]} over a batch of 6 and"
        f" {numbers[place][1]} over the 5 of them that have a weight. Make 'wrong' 0 in these rows, in the transform:"
        " wrong * batch['weight'][:, tf.newaxis] of tokens."
    ]


class Own(metrics.Sums):
    """A sum over examples of `values(outputs, batch)`."""

    def __init__(self, values):
        self.values = values

    def empty(self):
        return np.zeros(2)

    def update(self, outputs, batch):
        return tf.stack([0.0, tf.reduce_sum(self.values(outputs, batch))])

    def result(self, state):
        return float(state[1])


def test_a_metric_of_ones_own_that_counts_all_rows():
    assert found(Own(lambda outputs, batch: batch["heat"])) == [
        "metric 'm' counts rows of weight 0: state[1] is 15 over a batch of 6 and 10 over the 5 of them that have a"
        " weight. Multiply what update adds up by batch['weight']."
    ]
    assert found(Own(lambda outputs, batch: batch["heat"] * batch["weight"])) == []


def test_a_metric_may_count_what_padding_has_not():
    """How many logits are NaN: none, in padding neither; and a state of NaN is the same state."""
    assert found(Own(lambda outputs, batch: tf.cast(tf.math.is_nan(outputs["logits"]), tf.float32))) == []
    assert found(Own(lambda outputs, batch: tf.constant([np.nan]))) == []


def test_an_output_that_is_a_number_of_the_batch_counts_padding_too():
    def total(batch):
        return {"total": tf.reduce_sum(batch["heat"])}

    told = found(Own(lambda outputs, batch: outputs["total"]), total)
    assert len(told) == 1 and "state[1] is 15 over a batch of 6 and 10 over the 5" in told[0]


def test_a_metric_for_one_batch_size_alone_is_told_of_and_let_pass(caplog):
    assert found(Own(lambda outputs, batch: batch["heat"] * tf.range(6.0))) == []
    start = "whether metric 'm' counts rows of weight 0 is not known, because it cannot be computed for 5 of the 6"
    assert [line.startswith(start) for line in caplog.messages] == [True]


def make_loss(cfg):
    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        return {"loss": losses.mean(values, batch["weight"])}, {"logits": logits}

    return loss


@pytest.mark.parametrize("is_right", [True, False])
def test_a_check_fails_and_training_warns(is_right, caplog, capsys):
    def make_metrics(cfg):
        return {"heat": Own(lambda outputs, batch: batch["weight"] if is_right else tf.ones_like(batch["weight"]))}

    built = small.build(functions={"make_loss": make_loss, "make_metrics": make_metrics})
    before = small.snapshot(built)
    assert check._metrics(built) == (0 if is_right else 1)
    preview.warn_of_padding(built)
    assert not small.differing(before, small.snapshot(built))
    told = (
        "metric 'heat' counts rows of weight 0: state[1] is 16 over a batch of 16 and 12 over the 12 of them that have"
        " a weight. Multiply what update adds up by batch['weight']."
    )
    verdict = "rows of weight 0 do not count" if is_right else f"FAILED: {told}"
    assert capsys.readouterr().out == f"Padding in metrics\n  {verdict}\n\n"
    assert [line for line in caplog.messages if line.startswith("metric")] == ([] if is_right else [told])


def test_a_loss_that_forgets_weights_fails_a_check(capsys):
    def forgets(cfg):
        def loss(model, batch, training):
            model(batch["x"], training=training)
            weight = 0 * batch["weight"] + 1
            return {"loss": losses.mean(3 * weight + 0 * batch["x"][:, 0], weight)}, {}

        return loss

    assert check._loss(small.build(functions={"make_loss": forgets})) == 1
    out = capsys.readouterr().out
    assert "  FAILED: term 'loss' of the loss is 48 / 16 over a batch of 16 and 36 / 12 over the 12 of them" in out

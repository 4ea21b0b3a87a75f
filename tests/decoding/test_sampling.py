import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.decoding import Sample, decode
from framework.decoding.single import draw

LOGITS = np.array([1.0, -0.5, 2.0, 0.3, 1.9, -3.0])


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def left_tokens(logits, method):
    """Returns the ids that top-k and top-p leave, by their definitions."""
    order = np.argsort(-logits, kind="stable")[: method.top_k or len(logits)]
    probabilities = softmax(logits[order] / method.temperature)
    return order[: int(np.searchsorted(np.cumsum(probabilities), method.top_p)) + 1] if method.top_p < 1 else order


def sampled(method, examples, length=1, seed=0, first_example=0, logits=LOGITS):
    """Returns ids [examples, length], all drawn from the same logits; the end token is never drawn."""

    @tf.function(autograph=False)
    def graph():
        wide = tf.constant(np.append(logits, -np.inf), tf.float32)
        step = lambda tokens, state, position: (tf.tile(wide[tf.newaxis], [examples, 1]), state)  # noqa: E731
        begin, key = tf.zeros([examples], tf.int32), rng.key(seed)
        return decode(step, (), begin, len(logits), length, method, rng=key, first_example=first_example)

    return graph().ids.numpy()[:, 0]


METHODS = [Sample(), Sample(0.5), Sample(2.0, top_k=3), Sample(top_p=0.8), Sample(1.5, top_k=5, top_p=0.7)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_frequencies_are_the_probabilities(method):
    ids = sampled(method, 10_000, length=2)
    left = left_tokens(LOGITS, method)
    expected = softmax(LOGITS[left] / method.temperature)
    counts = np.array([(ids == token).sum() for token in left])
    assert counts.sum() == ids.size  # nothing else was drawn
    chi_square = ((counts - ids.size * expected) ** 2 / (ids.size * expected)).sum()
    freedom = len(left) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)  # five standard deviations
    if len(left) > 1:  # two positions of an example are drawn apart
        pairs = np.array([[((ids[:, 0] == a) & (ids[:, 1] == b)).mean() for b in left] for a in left])
        np.testing.assert_allclose(pairs, np.outer(expected, expected), atol=0.02)


def test_the_tokens_that_are_left_are_those_of_the_definition():
    """The largest share takes the least probable of the tokens that are left."""
    draws = np.random.default_rng(0)
    for _ in range(20):
        logits = draws.normal(size=12) * 2
        method = Sample(float(draws.uniform(0.5, 2)), int(draws.integers(0, 12)), float(draws.uniform(0.3, 1)))
        left = left_tokens(logits, method)
        shares = np.linspace(0, 1, 4000, endpoint=False, dtype=np.float32)[:, np.newaxis]
        values = tf.tile(tf.nn.log_softmax(tf.constant(logits[np.newaxis], tf.float32)), [len(shares), 1])
        tokens = draw(method, values, tf.constant(shares)).numpy()
        expected = softmax(logits[left] / method.temperature)
        assert {*tokens.tolist()} == {token for token, p in zip(left.tolist(), expected, strict=True) if p > 1 / 3000}


def test_a_draw_depends_on_seed_example_and_position_alone():
    whole = sampled(Sample(), 40, length=6)
    np.testing.assert_array_equal(sampled(Sample(), 7, length=6, first_example=20), whole[20:27])
    np.testing.assert_array_equal(sampled(Sample(), 40, length=3), whole[:, :3])
    assert (sampled(Sample(), 40, length=6, seed=1) != whole).mean() > 0.5


def test_a_tokens_probability_of_zero_is_never_drawn():
    values = tf.math.log(tf.constant([[0.0, 0.5, 0.0, 0.5, 0.0]] * 3))
    shares = tf.constant([[0.0], [0.5], [1 - 2**-24]])
    assert draw(Sample(), values, shares).numpy().tolist() == [1, 3, 3]

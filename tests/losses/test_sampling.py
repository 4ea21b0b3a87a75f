"""framework/losses/sampling.py: the gradient is noise of a deviation, and descent by it samples a posterior."""

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, rng


def gradients(tables, deviation, step=0, first_example=0):
    with rng.scope(rng.key(3), step, first_example), tf.GradientTape() as tape:
        value = losses.langevin(tables, deviation)
    return [np.asarray(gradient) for gradient in tape.gradient(value, tables)]


def test_the_gradient_is_noise_that_all_replicas_share():
    tables = [tf.Variable(tf.fill([200, 3], 7.0)), tf.Variable(tf.zeros([50, 40]))]
    drawn = gradients(tables, 0.5)
    whole = np.concatenate([gradient.ravel() for gradient in drawn])
    assert whole.std() == pytest.approx(0.5, rel=0.03) and abs(whole.mean()) < 0.03
    for other in (gradients(tables, 0.5), gradients(tables, 0.5, first_example=16)):
        assert all(np.array_equal(*pair) for pair in zip(drawn, other, strict=True))
    assert not np.array_equal(drawn[0], gradients(tables, 0.5, step=1)[0])
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel()[:600])[0, 1]) < 0.15


def test_descent_samples_the_posterior():
    """Of n energies x**2 / 2 the posterior is normal, of variance 1 / n; the loss is c times their mean."""
    n, c, rate = 5, 0.4, 0.1
    table = tf.Variable(tf.zeros([1000, 2]))
    deviation = (2 * c / (n * rate)) ** 0.5

    @tf.function
    def update(step):
        with rng.scope(rng.key(0), step, 0), tf.GradientTape() as tape:
            value = c * tf.reduce_sum(table**2) / 2 + losses.langevin([table], deviation)
        table.assign_sub(rate * tape.gradient(value, table))

    for step in range(150):
        update(tf.constant(step, tf.int64))
    # Of the update x <- (1 - c * rate) * x + noise the variance is 1 / (n * (1 - c * rate / 2)).
    assert table.numpy().var() == pytest.approx(1 / (n * (1 - c * rate / 2)), rel=0.08)


def test_what_counts_once_is_a_share_of_the_weight():
    term = losses.once(tf.constant(2.5, tf.float64), tf.constant([1.0, 0.0, 0.5]))
    assert (float(term.sum), float(term.weight)) == (3.75, 1.5) and term.weight.dtype == tf.float64

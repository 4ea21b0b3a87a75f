"""framework/layers/factors.py against NumPy in float64."""

import numpy as np
import pytest
import tensorflow as tf

from framework import layers

ROWS = {"user": 4, "film": 6}
PRIORS = {"prior": 3.0, "bias_prior": 5.0}


def made(scales=None, **options):
    """Factors of random numbers, and their tables times scales."""
    layer = layers.Factors(ROWS, members=2, factors=3, scales=scales, dtype="float64", **PRIORS, **options)
    layer(tf.constant([0]), tf.constant([0]))
    draws, tables = np.random.default_rng(0), {}
    for name, table in layer.tables.items():
        table.table.assign(draws.normal(size=table.table.shape))
        tables[name] = table.table.numpy() * layer.scales[name].numpy()
    return layer, tables


def test_a_member_is_the_mean_biases_and_a_product():
    scales = {f"{side}_{kind}": 0.5 + np.arange(rows) for side, rows in ROWS.items() for kind in ("factors", "biases")}
    layer, tables = made(scales, mean=3.25)
    user, film = np.array([1, 3, 2]), np.array([5, 1, 1])
    products = (tables["user_factors"][user] * tables["film_factors"][film]).reshape(3, 2, 3).sum(2)
    expected = 3.25 + tables["user_biases"][user] + tables["film_biases"][film] + products
    np.testing.assert_allclose(layer(tf.constant(user), tf.constant(film)), expected, rtol=1e-12)
    squares = {name: (table**2).sum() for name, table in tables.items()}
    penalty = 3 * (squares["user_factors"] + squares["film_factors"])
    penalty += 5 * (squares["user_biases"] + squares["film_biases"])
    np.testing.assert_allclose(layer.penalty(), penalty, rtol=1e-12)


def test_the_initial_factors_have_the_variance_of_their_prior_and_biases_are_zero():
    scales = {f"{side}_{kind}": np.full(5000, 4.0) for side in ("a", "b") for kind in ("factors", "biases")}
    tf.random.set_seed(0)
    layer = layers.Factors({"a": 5000, "b": 5000}, members=2, factors=3, scales=scales, variance=0.5, **PRIORS)
    layer(tf.constant([0]), tf.constant([0]))
    for name, table in layer.tables.items():
        deviation = (0.5 / 3) ** 0.5 if name.endswith("factors") else 0
        assert (table.table.numpy() * 4).std() == pytest.approx(deviation, rel=0.02)


def test_scaled_rows_are_likely_within_one_deviation():
    counts = {"user": np.array([0, 4, 1, 5]), "film": np.array([0, 2, 2, 3, 3, 0])}
    scales = layers.factor_scales(counts, members=2, variance=0.5, **PRIORS)
    of_a_number = (2 * 0.5 / (2 * 10)) ** 0.5  # 2 members, 10 ratings
    for side, count in counts.items():
        # Of an energy of (prior + ratings * square of the other factor) / variance * theta**2 / 2; of a bias it is 1.
        factors, biases = 0.5 / (3 + count * 0.5 / 3), 0.5 / (5 + count)
        np.testing.assert_allclose(scales[f"{side}_factors"] * of_a_number, factors**0.5, rtol=1e-6)
        np.testing.assert_allclose(scales[f"{side}_biases"] * of_a_number, biases**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": {"user": 4}}, "must name two sides, such as {'user': 944, 'film': 1683}"),
        ({"scales": dict.fromkeys(["user_factors"], np.ones(5))}, "scales['user_factors'] has shape [5], not [4]"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError) as caught:
        layers.Factors(**{"rows": ROWS, "members": 2, "factors": 3, **PRIORS, **arguments})
    assert message in str(caught.value)

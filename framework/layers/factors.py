"""Factors of ratings: several models at once, each a mean rating, biases and a product of factors.

    factors = layers.Factors({"user": 944, "film": 1683}, members=16, factors=10, prior=12.0, bias_prior=5.0)
    factors(batch["user"], batch["film"])                                      # [batch, 16], in ratings
    scales = layers.factor_scales({"user": counts, "film": others}, members=16, prior=3.0, bias_prior=3.0)

The members share nothing; their mean is the prediction. Drawn by Langevin sampling (`losses.langevin`), they imitate
Bayesian matrix factorization: Salakhutdinov and Mnih, 2008, "Bayesian probabilistic matrix factorization using Markov
chain Monte Carlo".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework.layers.towers import EmbeddingTable

VARIANCE = 0.65  # of a rating from 1 to 5, given its factors


class Factors(keras.layers.Layer):
    """Rates pairs by several models, each the mean rating, biases and a product of factors of both sides.

    Args:
      rows: {side: number of rows, padding included} of the two sides, such as {'user': 944, 'film': 1683}. The tables
        are called 'user_factors', 'user_biases', 'film_factors', 'film_biases'. Row 0 is padding.
      members: number of models.
      factors: of each model and row.
      prior: variance of ratings, given their factors, over that of factors; the initial factors have it.
      bias_prior: the same of biases, which begin at 0.
      mean: the rating of a pair without factors and biases.
      variance: of a rating, given its factors.
      scales: {table: [rows]}, by what the rows of each table are multiplied, such as those of `factor_scales`; by
        default 1.

    Call: (rows of the first side, rows of the second), integer [batch] each -> ratings by each member, floating
    [batch, members].
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        members: int,
        factors: int,
        prior: float,
        bias_prior: float,
        mean: float = 3.5,
        variance: float = VARIANCE,
        scales: Mapping[str, Sequence[float] | np.ndarray] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(rows) != 2:
            raise ValueError(f"rows={dict(rows)} must name two sides, such as {{'user': 944, 'film': 1683}}")
        self._sides = {side: int(count) for side, count in rows.items()}
        self._sizes = {"members": members, "factors": factors, "mean": mean, "variance": variance}
        self._priors = {"factors": prior, "biases": bias_prior}
        tables, self.scales = {}, {}
        for side, count in self._sides.items():
            for kind in ("factors", "biases"):
                name = f"{side}_{kind}"
                scale = np.ones(count, np.float32) if scales is None else np.asarray(scales[name], np.float32)
                if scale.shape != (count,):
                    raise ValueError(f"scales['{name}'] has shape {[*scale.shape]}, not [{count}], the rows of {side}")
                self.scales[name] = tf.constant(scale[:, np.newaxis])
                deviation = (variance / prior) ** 0.5 / float(scale.max())
                start = "zeros" if kind == "biases" else keras.initializers.RandomNormal(stddev=deviation)
                width = members * (1 if kind == "biases" else factors)
                tables[name] = EmbeddingTable(count, width, start, name=name, dtype=self.dtype_policy)
        self.tables = tables

    def call(self, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        one, other = self._sides
        products = self._rows(f"{one}_factors", first) * self._rows(f"{other}_factors", second)
        products = tf.reshape(products, [-1, self._sizes["members"], self._sizes["factors"]])
        biases = self._sizes["mean"] + self._rows(f"{one}_biases", first) + self._rows(f"{other}_biases", second)
        return biases + tf.reduce_sum(products, 2)

    def penalty(self) -> tf.Tensor:
        """Returns the sum over all members of the squares of factors and biases, by their priors: a scalar."""
        squares = []
        for name, table in self.tables.items():
            prior = self._priors[name.rpartition("_")[2]]
            squares.append(
                prior * tf.reduce_sum(tf.square(tf.cast(self.scales[name], table.table.dtype) * table.table))
            )
        return tf.add_n(squares)

    def _rows(self, name: str, index: tf.Tensor) -> tf.Tensor:
        """Returns rows of a table times their scales, [batch, width]."""
        rows = self.tables[name](index)
        return rows * tf.cast(tf.gather(self.scales[name], index), rows.dtype)

    def get_config(self) -> dict[str, Any]:
        scales = {name: scale.numpy()[:, 0].tolist() for name, scale in self.scales.items()}
        priors = {"prior": self._priors["factors"], "bias_prior": self._priors["biases"]}
        return {**super().get_config(), "rows": dict(self._sides), **self._sizes, **priors, "scales": scales}


def factor_scales(
    counts: Mapping[str, np.ndarray], members: int, prior: float, bias_prior: float, variance: float = VARIANCE
) -> dict[str, np.ndarray]:
    """Returns by what to multiply the rows of the tables of `Factors`, so that one learning rate of SGD suits them all.

    The numbers of a row, if they were independent, are then likely within sqrt(2 * variance / (members * ratings)) of
    the best ones, whatever the row's number of ratings: a learning rate is the share of the way to the best ones, given
    the others.

    Args:
      counts: {side: training ratings of each row, [rows]}, as `rows` of `Factors`; each side has all ratings.
      members, prior, bias_prior, variance: as of `Factors`.

    Returns:
      {table: float32 [rows]}.
    """
    result = {}
    for side, ratings in counts.items():
        precisions = {"factors": prior + ratings * variance / prior, "biases": bias_prior + ratings}
        for kind, precision in precisions.items():
            scale = np.sqrt(members * int(np.sum(ratings)) / (2 * precision))
            result[f"{side}_{kind}"] = scale.astype(np.float32)
    return result

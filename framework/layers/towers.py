"""Parts of two-tower recommenders: shared tables of embeddings, histories, towers and the score of a pair.

    films = layers.EmbeddingTable(1684, 32)                                    # one table for items and histories
    newest = layers.recency_weights(batch["history"], half_life=5.0)           # [batch, length]
    history = films(batch["history"], pooling="mean", weights=newest)          # [batch, 32]
    user = layers.Tower([64, 32])([history, ages(batch["age"])])               # [batch, 32]
    item = layers.Tower([64, 32])([films(batch["film"]), genres(batch["genres"], pooling="mean")])
    score = layers.Score("cosine", temperature=0.1)
    score(user, item)                                                          # [batch]

Rows come from the layers of `framework/layers/ids.py`; row 0 is padding and counts for nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework.layers.dropout import Dropout
from framework.layers.encoder_decoder import Encoder
from framework.layers.ids import PADDING
from framework.layers.normalization import make_normalization
from framework.layers.positions import token_positions
from framework.layers.transformer import check_choice
from framework.trace.guards import IN_RANGE, claim_range

POOLINGS = ("none", "mean", "sum")
SIMILARITIES = ("dot", "cosine")
_TINY = 1e-12  # a vector whose square is below this has no direction


class EmbeddingTable(keras.layers.Layer):
    """Looks up rows of a trained table, which several features may share; each call may pool a list of rows.

    Row 0 is padding: its vector is zeros, it does not count in a mean, and it never trains. An empty list, all padding,
    gives zeros. A row that is not in the table is refused, never clipped: a lookup raises or, where TensorFlow would
    take another row without a word, such as in XLA, gives NaN; a step names the row and its example.

    A regular expression in `optimizer.groups` such as 'films/table.*: frozen' freezes the table.

    Args:
      rows: number of rows, padding included; such as `rows` of a `Lookup`.
      width: size of the vectors.
      initializer: of the table.
      shards: number of variables that the rows are split over, in order, the first ones larger by a row. Parameter
        servers hold them by turns, so a table may be larger than the memory of a server. Checkpoints have the shards,
        so take a number that suits any number of servers, such as 12.

    Call: rows, integer [...] -> floating [..., width]. With `pooling='mean'` or 'sum': rows [..., length] -> [...,
    width], over the last dimension. `weights`, floating [..., length], multiply the vectors, and a mean is divided by
    the sum of the weights; if that is 0, it is zeros.
    """

    def __init__(self, rows: int, width: int, initializer: Any = "uniform", shards: int = 1, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        if not 1 <= shards <= rows:
            raise ValueError(f"shards={shards} must be from 1 to rows={rows}")
        self.rows, self.width, self.count = rows, width, shards
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: Any) -> None:
        if self.count == 1:
            self.table = self._add_table("table", self.rows)
        else:
            sizes = [self.rows // self.count + (shard < self.rows % self.count) for shard in range(self.count)]
            self.table = [self._add_table(f"table_{shard}", size) for shard, size in enumerate(sizes)]
        super().build(input_shape)

    def _add_table(self, name: str, rows: int) -> tf.Variable:
        # A copy of the initializer: Keras gives each call of one the same numbers.
        initializer = type(self.initializer).from_config(self.initializer.get_config())
        return self.add_weight(name, [rows, self.width], initializer=initializer, experimental_autocast=False)

    def call(self, inputs: tf.Tensor, weights: tf.Tensor | None = None, pooling: str = "none") -> tf.Tensor:
        check_choice("pooling", pooling, POOLINGS)
        if weights is not None and pooling == "none":
            raise ValueError("weights are given, but pooling='none' would ignore them; use pooling='mean' or 'sum'")
        if weights is not None and not inputs.shape.is_compatible_with(weights.shape):
            raise ValueError(f"weights have shape {weights.shape}, but rows {inputs.shape}; each row has its weight")
        vectors = self._looked_up(inputs)
        if pooling == "none":
            return vectors
        counts = tf.cast(tf.not_equal(inputs, PADDING), self.compute_dtype)
        if weights is not None:
            counts *= tf.cast(weights, self.compute_dtype)
        total = tf.reduce_sum(vectors * counts[..., tf.newaxis], -2)
        if pooling == "sum":
            return total
        return tf.math.divide_no_nan(total, tf.reduce_sum(counts, -1, keepdims=True))

    def _looked_up(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the vectors of rows, [..., width]: zeros for padding, NaN for what is no row and did not raise."""
        vectors = tf.gather(self.table, rows) if self.count == 1 else self._from_shards(rows)
        vectors = tf.cast(vectors, self.compute_dtype)
        is_item = (rows > PADDING) & (rows < self.rows)
        others = tf.where(tf.equal(rows, PADDING), 0.0, math.nan)
        return tf.where(is_item[..., tf.newaxis], vectors, tf.cast(others, vectors.dtype)[..., tf.newaxis])

    def _from_shards(self, rows: tf.Tensor) -> tf.Tensor:
        claim_range(rows, 0, self.rows - 1)
        if "/job:ps" in self.table[0].device:  # each server gets the rows that it has; XLA and LiteRT could not
            known = tf.clip_by_value(rows, 0, self.rows - 1)  # a server would raise without a word about the example
            return tf.nn.embedding_lookup(list(self.table), known, name=IN_RANGE)
        vectors, first = 0.0, 0
        for table in self.table:
            is_here = (rows >= first) & (rows < first + table.shape[0])
            of_shard = tf.gather(table, tf.where(is_here, rows - first, 0), name=IN_RANGE)
            vectors += tf.where(is_here[..., tf.newaxis], of_shard, 0)
            first += table.shape[0]
        return vectors

    def get_config(self) -> dict[str, Any]:
        sizes = {"rows": self.rows, "width": self.width, "shards": self.count}
        return {**super().get_config(), **sizes, "initializer": keras.initializers.serialize(self.initializer)}


def recency_weights(history: tf.Tensor, half_life: float) -> tf.Tensor:
    """Returns weights of the items of a history that halve with every `half_life` items that came after.

    Args:
      history: integer [batch, length], rows from the oldest to the newest; 0 is padding, on either side or between.
      half_life: above 0, in items.

    Returns:
      float32 [batch, length]: 1 for the newest item, 0 for padding.
    """
    if not half_life > 0:
        raise ValueError(f"half_life={half_life} must be above 0")
    is_item = tf.not_equal(history, PADDING)
    newer = tf.cumsum(tf.cast(is_item, tf.int32), axis=1, exclusive=True, reverse=True)
    weights = tf.pow(tf.constant(0.5 ** (1 / half_life), tf.float32), tf.cast(newer, tf.float32))
    return tf.where(is_item, weights, 0)


def recency_pooled(vectors: tf.Tensor, history: tf.Tensor, half_lives: Sequence[float]) -> tf.Tensor:
    """Returns sums of the vectors of a history by `recency_weights`, one for each half-life, side by side.

    A sum is divided by the root of its weights' sum, so that a long history has a larger vector than a short one, but
    not by as much as it is longer. Of an empty history it is zeros.

    Args:
      vectors: floating [batch, length, width].
      history: integer [batch, length], the rows of these vectors; 0 is padding.
      half_lives: in items.

    Returns:
      [batch, half-lives * width], in the dtype of the vectors.
    """
    weights = tf.stack([recency_weights(history, half_life) for half_life in half_lives], 1)
    weights = tf.math.divide_no_nan(weights, tf.sqrt(tf.reduce_sum(weights, 2, keepdims=True)))
    pooled = tf.matmul(tf.cast(weights, vectors.dtype), vectors)  # [batch, half-lives, width]
    return tf.reshape(pooled, [-1, len(half_lives) * vectors.shape[-1]])


class HistoryEncoder(keras.layers.Layer):
    """Attends to a history of items, each to those before it, and returns the vector of the newest one.

    An `Encoder` with learned positions, which count from the oldest item. Source: Kang & McAuley, 2018, "Self-attentive
    sequential recommendation" (SASRec).

    Args:
      layers, width, heads, feed_forward, dropout, norm, activation: as in `Encoder`.
      max_length: number of positions.

    Call: vectors of items, floating [batch, length, width], from the oldest to the newest, and `is_item`, bool [batch,
    length], False at padding -> [batch, width]; zeros for a history without items. `encoder(vectors, is_item,
    causal=True)` has the vectors of all places, to predict the next item at each of them.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        feed_forward: int,
        dropout: float = 0.0,
        norm: str = "pre",
        activation: str = "relu",
        max_length: int = 50,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"layers": layers, "width": width, "heads": heads, "feed_forward": feed_forward, "dropout": dropout}
        self._arguments: dict[str, Any] = {**sizes, "norm": norm, "activation": activation, "max_length": max_length}
        self.encoder = Encoder(**self._arguments, positions="learned", dtype=self.dtype_policy)

    def call(self, inputs: tf.Tensor, is_item: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        places = token_positions(is_item)
        encoded = self.encoder(inputs, is_item, training=training, positions=places, causal=True)
        last = places[:, -1:] + tf.cast(is_item[:, -1:], tf.int32) - 1  # the place among items of the newest, or -1
        is_newest = is_item & tf.equal(places, last)
        return tf.reduce_sum(tf.where(is_newest[..., tf.newaxis], encoded, 0), 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments}


class Tower(keras.layers.Layer):
    """Concatenates features and passes them through dense layers, the last one without an activation.

    Args:
      sizes: units of each dense layer; the last is the size of the vectors that are compared.
      activation: of all layers but the last.
      dropout: rate, after each activation.
      normalization: between a dense layer and its activation, a kind of `make_normalization`. 'batch' normalises by the
        examples of a replica, so only 'sync_batch' gives several replicas the numbers of one device.

    Call: a tensor, or a list of tensors, floating [batch, ...] that differ in the last dimension alone -> [batch, ...,
    sizes[-1]].
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Any = "relu",
        dropout: float = 0.0,
        normalization: str = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not sizes:
            raise ValueError("sizes is empty; give at least the size of the vectors, e.g. [64, 32]")
        self._arguments = {
            "sizes": list(sizes),
            "activation": keras.activations.serialize(keras.activations.get(activation)),
            "dropout": dropout,
            "normalization": normalization,
        }
        policy = self.dtype_policy
        self.activation = keras.activations.get(activation)
        self.dense = [keras.layers.Dense(size, dtype=policy) for size in sizes]
        self.norms = [make_normalization(normalization, dtype=policy) for _ in sizes[:-1]]
        self.dropouts = [Dropout(dropout, dtype=policy) for _ in sizes[:-1]]

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        x = tf.concat(inputs, -1) if isinstance(inputs, list | tuple) else inputs
        for dense, norm, dropout in zip(self.dense[:-1], self.norms, self.dropouts, strict=True):
            x = dense(x)
            x = self.activation(x if norm is None else norm(x, training=training))
            x = dropout(x, training=training)
        return self.dense[-1](x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments}


class Score(keras.layers.Layer):
    """Scores pairs of a user's and an item's vector: their product, or the cosine of their angle, by a temperature.

    Args:
      similarity: 'dot' or 'cosine'; a vector of zeros has the cosine 0 with any other.
      temperature: above 0; the similarity is divided by it.
      learned: train the logarithm of the temperature, from `temperature` on.

    Call: users and items, floating [..., width], and `bias`, [...], such as the sum of a user's and an item's: it is
    added and not divided by the temperature -> [...].
    """

    def __init__(self, similarity: str = "dot", temperature: float = 1.0, learned: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("similarity", similarity, SIMILARITIES)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature} must be above 0")
        self.similarity, self.temperature, self.learned = similarity, temperature, learned
        self.log_temperature = None
        if learned:  # not in `build`: `user_vectors` and `item_vectors` come first
            start = keras.initializers.Constant(math.log(temperature))
            self.log_temperature = self.add_weight("log_temperature", [], initializer=start)

    def call(self, users: tf.Tensor, items: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
        scores = tf.reduce_sum(self.user_vectors(users) * self.item_vectors(items), -1)
        return scores if bias is None else scores + tf.cast(bias, scores.dtype)

    def user_vectors(self, users: tf.Tensor, has_bias: bool = False) -> tf.Tensor:
        """Returns vectors whose products with those of `item_vectors` are the scores: for a loss, or for an index.

        Args:
          users: floating [..., width].
          has_bias: the items' vectors have a bias; users get a last element of 1 for it.

        Returns:
          [..., width], or [..., width + 1].
        """
        users = self._directed(users)
        if self.log_temperature is not None:
            users *= tf.cast(tf.exp(-self.log_temperature), users.dtype)
        elif self.temperature != 1:
            users *= 1 / self.temperature
        return tf.concat([users, tf.ones_like(users[..., :1])], -1) if has_bias else users

    def item_vectors(self, items: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the vectors of items, [..., width]; with their bias, [...], as the last element, [..., width + 1]."""
        items = self._directed(items)
        return items if bias is None else tf.concat([items, tf.cast(bias, items.dtype)[..., tf.newaxis]], -1)

    def _directed(self, vectors: tf.Tensor) -> tf.Tensor:
        """Returns vectors in the layer's dtype, of length 1 for a cosine."""
        if self.similarity == "cosine":
            full = tf.cast(vectors, self.variable_dtype)
            square = tf.reduce_sum(tf.square(full), -1, keepdims=True)
            # Roots and quotients are rounded correctly: equal vectors stay equal wherever they lie in a batch. `rsqrt`
            # rounds otherwise what fills no SIMD register. Without the second maximum, graphs would take `rsqrt`.
            vectors = full / tf.maximum(tf.sqrt(tf.maximum(square, _TINY)), 0)
        return tf.cast(vectors, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        chosen = {"similarity": self.similarity, "temperature": self.temperature, "learned": self.learned}
        return {**super().get_config(), **chosen}


class CumulativeLogits(keras.layers.Layer):
    """Turns a score into logits of 'the rating is above level k', by trained cutpoints that stay in order.

    Logit k is score - cutpoint k. The loss is `losses.ordinal`; `expected` is the mean rating. Source: McCullagh, 1980,
    "Regression models for ordinal data".

    Args:
      levels: number of ratings, at least 2.

    Call: scores, floating [...] -> [..., levels - 1].
    """

    def __init__(self, levels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if levels < 2:
            raise ValueError(f"levels={levels} must be at least 2")
        self.levels = levels

    def build(self, input_shape: Any) -> None:
        centre = keras.initializers.Constant(1 - self.levels / 2)
        self.first = self.add_weight("first", [], initializer=centre)
        step = keras.initializers.Constant(math.log(math.e - 1))  # whose softplus is 1
        self.steps = self.add_weight("steps", [self.levels - 2], initializer=step)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        first, steps = (tf.cast(x, self.compute_dtype) for x in (self.first, self.steps))
        cutpoints = tf.concat([[first], first + tf.cumsum(tf.nn.softplus(steps))], 0)
        return inputs[..., tf.newaxis] - cutpoints

    def expected(self, logits: tf.Tensor, ratings: Sequence[float]) -> tf.Tensor:
        """Returns the mean rating, [...], of logits [..., levels - 1] and the numbers of all levels, in their order."""
        if len(ratings) != self.levels:
            raise ValueError(f"ratings={[*ratings]} must be {self.levels} numbers, one for each level")
        steps = [high - low for low, high in zip(ratings, ratings[1:], strict=False)]
        return ratings[0] + tf.reduce_sum(tf.sigmoid(logits) * tf.constant(steps, logits.dtype), -1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "levels": self.levels}

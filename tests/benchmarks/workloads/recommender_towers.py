"""What both sides of `recommender_beside_tfrs.py` train: the same towers in tf_keras, on arrays of one file.

    arrays = load("ratings.npz", "train", "history")      # {'film': int32 [ratings], 'history': int32 [ratings, 50]}
    model = Towers("history", users=944, films=1683)
    model.users(batch), model.items(batch["film"])        # [batch, 64] each

Nothing here imports the framework: TensorFlow Recommenders runs in an environment without its packages.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

FEATURES = ("id", "history")
WIDTH, HIDDEN = 64, 256
HALF_LIVES = (1.0, 4.0, 16.0, 64.0)  # of the history, in films
BATCH, LEARNING_RATE, EPOCHS = 512, 2e-3, 10
KS = (10, 100)


def load(path: str, split: str, features: str) -> dict[str, np.ndarray]:
    """Returns the arrays of 'train' or 'test': 'film', and 'user' or 'history' as the features are."""
    with np.load(path) as arrays:
        return {name: arrays[f"{split}_{name}"] for name in ("film", "user" if features == "id" else "history")}


def constant(path: str, name: str) -> np.ndarray:
    """Returns 'share' of each film among the ratings of training, float32 [rows], or 'seen', int32 [users, length]."""
    with np.load(path) as arrays:
        return arrays[name]


class Towers(keras.Model):
    """Vectors of films from a table; those of users from a table too, or from the films they watched last."""

    def __init__(self, features: str, users: int, films: int) -> None:
        super().__init__()
        self.film_table = keras.layers.Embedding(films, WIDTH)
        if features == "id":
            self.user_table = keras.layers.Embedding(users, WIDTH)
        else:
            self.watched = keras.layers.Embedding(films, WIDTH)
            self.hidden = keras.layers.Dense(HIDDEN, activation="relu")
            self.last, self.direct = keras.layers.Dense(WIDTH), keras.layers.Dense(WIDTH, use_bias=False)

    def users(self, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns [batch, WIDTH]."""
        if "user" in batch:
            return self.user_table(batch["user"])
        history = batch["history"]
        ages = np.arange(history.shape[1])[::-1]
        decay = np.array([0.5 ** (ages / half_life) for half_life in HALF_LIVES], np.float32)  # [half-lives, length]
        weights = decay * tf.cast(history > 0, tf.float32)[:, tf.newaxis]
        weights = tf.math.divide_no_nan(weights, tf.sqrt(tf.reduce_sum(weights, 2, keepdims=True)))
        pooled = tf.reshape(tf.matmul(weights, self.watched(history)), [-1, len(HALF_LIVES) * WIDTH])
        return self.last(self.hidden(pooled)) + self.direct(pooled)

    def items(self, film: tf.Tensor) -> tf.Tensor:
        """Returns [batch, WIDTH]."""
        return self.film_table(film)

    def call(self, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return self.users(batch), self.items(batch["film"])

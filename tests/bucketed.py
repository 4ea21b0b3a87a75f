"""A model of tokens in batches of several shapes: embedding, dropout and a dense layer, whose steps NumPy computes.

A token t is worth (t % 7) / 7. The squared error is a mean over the tokens of each field, padding left out, and that of
an example is multiplied by exp(`heat`), which is 0 unless a test sets another one.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import data, layers, losses, optim
from framework.config import base_config

EXAMPLES, VOCABULARY, RATE = {"train": 45, "test": 31}, 20, 0.1
FIELDS = ("source", "target")
HEAT = {}  # {number of a training example: heat}


def get_config(arg):
    config = base_config()
    config.seed = 7
    config.model.dropout = 0.0
    config.model.tokens, config.model.buckets, config.model.group = 64, 3, 1
    config.data.remainder = "pad"
    config.train.duration = "2 epochs"
    config.train.precision = "float64"
    config.train.compile = "graph"
    config.optimizer.name = "sgd"
    config.schedule.learning_rate = RATE
    config.eval.every = config.log.histograms_every = config.checkpoint.every = config.checkpoint.best_metric = ""
    config.log.every = "1 step"
    config.log.images = 0
    return config


def lengths(split):
    """Returns {field: int [examples]}."""
    rng = np.random.default_rng(len(split))
    source = rng.integers(1, 10, EXAMPLES[split])
    return {"source": source, "target": np.clip(source + rng.integers(-2, 3, len(source)), 1, 12)}


def examples(split):
    """Returns the padded arrays: ids [examples, 12] of each field, 0 for padding, the heat and the number."""
    rng = np.random.default_rng(3)
    arrays = {"heat": np.zeros(EXAMPLES[split]), "number": np.arange(EXAMPLES[split])}
    for field, own in lengths(split).items():
        ids = rng.integers(1, VOCABULARY, (EXAMPLES[split], 12))
        arrays[field] = np.where(np.arange(12) < own[:, np.newaxis], ids, 0).astype(np.int32)
    for number, heat in HEAT.items() if split == "train" else ():
        arrays["heat"][number] = heat
    return arrays


def buckets_of(split, cfg):
    model = cfg.model
    return data.Buckets.by_tokens(lengths(split), model.tokens, model.buckets, multiple=4, group=model.group)


def make_data(cfg, split):
    source = data.Source(examples(split), origin="made-up tokens")
    return data.make_batches(source, cfg, training=split == "train", buckets=buckets_of(split, cfg))


def make_model(cfg):
    embedding = keras.layers.Embedding(VOCABULARY, 4, name="embedding")
    return keras.Sequential(
        [embedding, layers.Dropout(cfg.model.dropout, name="drop"), keras.layers.Dense(1, name="last")]
    )


def make_loss(cfg):
    def loss(model, batch, training):
        terms, score = {}, 0.0
        for field in FIELDS:
            ids = batch[field]
            value = model(ids, training=training)[:, :, 0]
            weight = tf.cast(ids > 0, value.dtype) * tf.cast(batch["weight"], value.dtype)[:, tf.newaxis]
            error = value - tf.cast(ids % 7, value.dtype) / 7
            hot = error**2 * tf.exp(tf.cast(batch["heat"], value.dtype))[:, tf.newaxis]
            terms[field] = losses.Term(tf.reduce_sum(hot * weight), tf.reduce_sum(weight))
            score += tf.reduce_sum(value * weight, axis=1)
        return terms, {"score": score}

    return loss


def make_schedule(cfg, total_steps):
    return optim.make_schedule(cfg, total_steps)


class Model:
    """The model in float64 NumPy: `table` [vocabulary, 4], `kernel` [4] and `bias`."""

    def __init__(self, model):
        self.table, kernel, bias = (np.array(weight, np.float64) for weight in model.get_weights())
        self.kernel, self.bias = kernel[:, 0], bias[0]

    def errors(self, ids):
        """Returns the error of each token and what is 1 for a token, 0 for padding: [examples, length] each."""
        return self.table[ids] @ self.kernel + self.bias - ids % 7 / 7, (ids > 0).astype(np.float64)

    def loss(self, ids, weight):
        """Returns the mean squared error of the tokens of a field, and the weight of the mean."""
        error, mask = self.errors(ids)
        mask = mask * weight[:, np.newaxis]
        return (error**2 * mask).sum() / mask.sum()

    def step(self, fields, weight):
        """Takes a step of SGD on {field: ids [examples, length]}; returns the loss before it."""
        table, kernel, bias, total = np.zeros_like(self.table), np.zeros(4), 0.0, 0.0
        for ids in fields.values():
            total += self.loss(ids, weight)
            error, mask = self.errors(ids)
            mask = mask * weight[:, np.newaxis]
            slope = 2 * error * mask / mask.sum()
            np.add.at(table, ids, slope[..., np.newaxis] * self.kernel)
            kernel += (slope[..., np.newaxis] * self.table[ids]).sum((0, 1))
            bias += slope.sum()
        self.table -= RATE * table
        self.kernel -= RATE * kernel
        self.bias -= RATE * bias
        return total

"""Momentum contrast (He et al., 2020): a slow copy of the encoder, and a queue of its past outputs to contrast with.

    python launch.py --config=tests/research/moco.py --workdir=runs/moco

The queue and the copy are the experiment's own state: saved, and kept as they are where a step is skipped.
"""

import tensorflow as tf
import tf_keras as keras

from framework import losses, paths, rng
from tests import tiny
from tests.tiny import make_data, make_schedule  # noqa: F401

WIDTH, QUEUE, MOMENTUM, TEMPERATURE = 16, 512, 0.95, 0.2


def get_config(arg):
    config = tiny.get_config(arg)
    config.checkpoint.best_metric = ""
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.schedule.learning_rate = 0.05
    return config


def make_model(cfg):
    net = keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(WIDTH),
            keras.layers.UnitNormalization(),
        ]
    )
    net.build([None, 28, 28])
    return net


class Memory(tf.Module):
    """What is remembered beside the weights: the slow encoder and its last outputs, the newest first."""

    def __init__(self, cfg, model):
        super().__init__("memory")
        self.slow = make_model(cfg)
        self.slow.set_weights(model.get_weights())
        start = tf.random.stateless_normal([QUEUE, WIDTH], [cfg.seed, 1], dtype=keras.backend.floatx())
        self.queue = tf.Variable(tf.math.l2_normalize(start, 1))

    def update(self, model, keys):
        fast = paths.variables(model)
        for path, variable in paths.variables(self.slow).items():
            variable.assign(MOMENTUM * variable + (1 - MOMENTUM) * fast[path])
        self.queue.assign(tf.concat([keys, self.queue[: -keys.shape[0]]], axis=0))


def make_state(cfg, model):
    return Memory(cfg, model)


def two_views(images):
    """Each picture under two draws of noise."""
    noise = tf.cast(rng.uniform("views", tf.shape(images)[0], 2 * 28 * 28), images.dtype)
    first, second = tf.unstack(tf.reshape(noise, [-1, 2, 28, 28]), axis=1)
    return images + first, images + second


def contrast(queries, keys, queue, weight):
    """Cross-entropy of finding one's own key among those of the queue; examples are not compared with one another."""
    own = tf.reduce_sum(queries * keys, axis=1, keepdims=True)
    logits = tf.concat([own, tf.matmul(queries, queue, transpose_b=True)], axis=1) / TEMPERATURE
    return losses.sparse_cross_entropy(logits, tf.zeros_like(weight, tf.int32), weight)


def make_loss(cfg):
    """For evaluation: the distance between a picture and a darker one."""

    def loss(model, batch, training):
        apart = 1 - tf.reduce_sum(model(batch["image"]) * model(0.5 * batch["image"]), axis=1)
        weight = tf.cast(batch["weight"], apart.dtype)
        return {"apart": losses.Term(tf.reduce_sum(apart * weight), tf.reduce_sum(weight))}, {}

    return loss


def make_step(cfg, tools):
    def step(state, batch):
        memory = state.extra

        def prepared(shard):
            first, second = two_views(shard["image"])
            return {"view": first, "key": memory.slow(second), "weight": shard["weight"]}

        def forward_pass(micro_batch):
            term = contrast(state.model(micro_batch["view"]), micro_batch["key"], memory.queue, micro_batch["weight"])
            return {"contrast": term}, {}

        views = tools.each(prepared, batch)
        result = tools.gradients(forward_pass, views)
        tools.apply(result.gradients)
        memory.update(state.model, tools.gather(views)["key"])
        return result.terms, result.metrics

    return step

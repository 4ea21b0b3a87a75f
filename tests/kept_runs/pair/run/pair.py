"""Two models that chase each other, each with its own optimizer, trained by a step of the experiment's own."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import losses, optim, rng
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.export.base import SERVING, Signature
from framework.export.saved_model import SavedModel


def get_config(arg):
    config = base_config()
    config.data.batch_size = config.eval.batch_size = 16
    config.train.duration = "20 steps"
    config.train.compile = "graph"
    config.train.block_steps = 10
    config.schedule.learning_rate = 0.01
    config.eval.every = "10 steps"
    config.log.every = "5 steps"
    config.log.histograms_every = ""
    config.checkpoint.every = "10 steps"
    config.checkpoint.best_metric = ""
    config.export.examples = 64
    return config


def make_data(cfg, split):
    real = np.random.default_rng(0 if split == "train" else 1).normal(2, 1, (168, 3)).astype(np.float32)
    return make_batches(Source({"real": real}, "made-up points"), cfg, training=split == "train")


def make_model(cfg):
    return {
        name: keras.Sequential([keras.Input([3]), keras.layers.Dense(8, "tanh"), keras.layers.Dense(width)])
        for name, width in (("maker", 3), ("judge", 1))
    }


def _term(values, weight):
    return losses.Term(tf.reduce_sum(values * weight), tf.reduce_sum(weight))


def make_loss(cfg):
    def loss(models, batch, training):
        made = models["maker"](batch["real"])
        return {"maker": _term(-models["judge"](made)[:, 0], batch["weight"])}, {"made": made}

    return loss


def make_schedule(cfg, total_steps):
    return optim.make_schedule(cfg, total_steps)


def make_step(cfg, tools):
    def judge(models, part):
        noise = rng.uniform("noise", tf.shape(part["real"])[0], 3)
        made, real = models["judge"](models["maker"](noise)), models["judge"](part["real"])
        return {"judge": _term(tf.nn.softplus(made - real)[:, 0], part["weight"])}, {}

    def maker(models, part):
        noise = rng.uniform("noise", tf.shape(part["real"])[0], 3)
        made = models["maker"](noise)
        return {"maker": _term(tf.nn.softplus(-models["judge"](made))[:, 0], part["weight"])}, {"made": made}

    def step(state, batch):
        first = tools.gradients(lambda part: judge(state.model, part), batch, of="judge")
        tools.apply(first.gradients, to="judge")
        second = tools.gradients(lambda part: maker(state.model, part), batch, of="maker")
        tools.apply(second.gradients, to="maker")
        return {**first.terms, **second.terms}, second.metrics

    return step


def make_exports(cfg):
    signature = Signature(
        fn=lambda models, inputs: {"made": models["maker"](inputs["real"], training=False)},
        inputs={"real": tf.TensorSpec([None, 3], tf.float32)},
    )
    return [SavedModel({SERVING: signature})]

"""A Wasserstein GAN with gradient penalty (Gulrajani et al., 2017) on a ring of points in the plane.

    python launch.py --config=tests/research/gan.py --workdir=runs/gan

Two models, two optimizers, and gradients of gradients. The generator's points are to lie 2 from the origin.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import losses, optim, precision, rng
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.metrics import Mean

NOISE, PENALTY = 4, 1.0


class Radius(Mean):
    """Mean distance of the generator's points from the origin."""

    def values(self, outputs, batch):
        return tf.norm(outputs["fake"], axis=1), batch["weight"]


def get_config(arg):
    config = base_config()
    config.data.batch_size = 64
    config.eval.batch_size = 64
    config.train.duration = "600 steps"
    config.optimizer.beta_1 = 0.5
    config.schedule.learning_rate = 2e-3
    config.checkpoint.best_metric = ""
    return config


def make_data(cfg, split):
    draw = np.random.default_rng(0 if split == "train" else 1)
    angle = draw.uniform(0, 2 * np.pi, 2048)
    points = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * draw.normal(size=(2048, 2))

    def cast(batch):
        return {name: tf.cast(tensor, precision.full(cfg.train.precision)) for name, tensor in batch.items()}

    source = Source({"real": points.astype(np.float32)}, "a ring")
    return make_batches(source, cfg, training=split == "train", transform=cast)


def _net(features, outputs):
    # softplus: a penalty on gradients needs second derivatives
    hidden = [keras.layers.Dense(32, activation="softplus") for _ in range(2)]
    net = keras.Sequential([*hidden, keras.layers.Dense(outputs)])
    net.build([None, features])
    return net


def make_model(cfg):
    return {"generator": _net(NOISE, 2), "critic": _net(2, 1)}


def generate(models, batch):
    """[batch, 2], from noise that depends on the example alone."""
    return models["generator"](2 * _uniform("noise", batch, NOISE) - 1)


def _uniform(stream, batch, width):
    return tf.cast(rng.uniform(stream, tf.shape(batch["real"])[0], width), batch["real"].dtype)


def critic_terms(models, batch):
    """The critic's loss, and how far its slope is from 1 between real and generated points."""
    fake, weight = generate(models, batch), batch["weight"]
    share = _uniform("mix", batch, 1)
    between = share * batch["real"] + (1 - share) * fake
    with tf.GradientTape() as tape:
        tape.watch(between)
        score = models["critic"](between)
    slope = tf.norm(tape.gradient(score, between), axis=1)
    apart = (models["critic"](fake) - models["critic"](batch["real"]))[:, 0]
    return {
        "critic": losses.Term(tf.reduce_sum(apart * weight), tf.reduce_sum(weight)),
        "slope": losses.Term(PENALTY * tf.reduce_sum(tf.square(slope - 1) * weight), tf.reduce_sum(weight)),
    }


def generator_terms(models, batch):
    fake, weight = generate(models, batch), batch["weight"]
    score = -models["critic"](fake)[:, 0]
    return {"generator": losses.Term(tf.reduce_sum(score * weight), tf.reduce_sum(weight))}, {"fake": fake}


def make_loss(cfg):
    return lambda models, batch, training: generator_terms(models, batch) if training else _evaluated(models, batch)


def _evaluated(models, batch):
    """Without draws of a step: a fixed grid of noise."""
    size = batch["weight"].shape[0]
    grid = tf.cast(tf.linspace(-1.0, 1.0, size * NOISE), batch["real"].dtype)
    fake = models["generator"](tf.reshape(grid, [size, NOISE]))
    score = -models["critic"](fake)[:, 0] * batch["weight"]
    return {"generator": losses.Term(tf.reduce_sum(score), tf.reduce_sum(batch["weight"]))}, {"fake": fake}


def make_schedule(cfg, total_steps):
    return optim.make_schedule(cfg, total_steps)


def make_metrics(cfg):
    return {"radius": Radius()}


def make_step(cfg, tools):
    def step(state, batch):
        critic = tools.gradients(lambda micro_batch: (critic_terms(state.model, micro_batch), {}), batch, of="critic")
        tools.apply(critic.gradients, to="critic")
        generator = tools.gradients(
            lambda micro_batch: generator_terms(state.model, micro_batch), batch, of="generator"
        )
        tools.apply(generator.gradients, to="generator")
        return {**critic.terms, **generator.terms}, generator.metrics

    return step

"""Deep Q-learning (Mnih et al., 2015) on a corridor: walk right to the end for a reward of 1.

    python launch.py --config=tests/research/dqn.py --workdir=runs/dqn

The environment and the replay buffer are `state.data`, the slow copy of the network is `state.extra`.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import losses, optim, paths, rng
from framework.config import base_config
from framework.data.batches import make_batches
from framework.data.replay_buffer import ReplayBuffer
from framework.data.sources import Source

CELLS, WALKERS, GAMMA, EXPLORE, SYNC = 6, 8, 0.9, 0.3, 25


def move(cell, action):
    """(next cell, reward) of a step left (0) or right (1); behind the last cell is the reward, and the start again."""
    arrives = (cell == CELLS - 1) & (action == 1)
    following = tf.clip_by_value(cell + 2 * action - 1, 0, CELLS - 1)
    return tf.where(arrives, tf.zeros_like(cell), following), tf.cast(arrives, tf.float32)


class Walkers(ReplayBuffer):
    """A buffer of what several walkers did, and where they are."""

    def __init__(self, cfg):
        row = {name: tf.TensorSpec([], tf.int32) for name in ("cell", "action", "next_cell")}
        super().__init__(row | {"reward": tf.TensorSpec([], tf.float32)}, capacity=500, config=cfg)
        self.cell = tf.Variable(tf.range(WALKERS) % CELLS, trainable=False)

    def walk(self, model):
        """Each walker takes a step, at random now and then."""
        cell = self.cell.read_value()
        best = tf.argmax(model(cell), axis=1, output_type=tf.int32)
        draw = rng.uniform("explore", WALKERS, 2)
        action = tf.where(draw[:, 0] < EXPLORE, tf.cast(draw[:, 1] < 0.5, tf.int32), best)
        following, reward = move(cell, action)
        self.add({"cell": cell, "action": action, "next_cell": following, "reward": reward})
        self.cell.assign(following)


class QNet(keras.Model):
    """cell int32 [batch] -> values of left and right, [batch, 2]."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(32, activation="tanh")
        self.values = keras.layers.Dense(2)
        self(tf.zeros([1], tf.int32))

    def call(self, cell):
        return self.values(self.hidden(tf.one_hot(cell, CELLS)))


class Target(tf.Module):
    """The network as it was a while ago."""

    def __init__(self, model):
        super().__init__("target")
        self.model = QNet()
        self.model.set_weights(model.get_weights())

    def follow(self, model, updates):
        fast = paths.variables(model)
        for path, variable in paths.variables(self.model).items():
            variable.assign(tf.where(updates % SYNC == 0, fast[path], variable))


def get_config(arg):
    config = base_config()
    config.data.batch_size = 32
    config.train.duration = "1500 steps"
    config.eval.batch_size = 2 * CELLS
    config.eval.every = ""
    config.log.histograms_every = ""
    config.schedule.learning_rate = 5e-3
    return config


def make_data(cfg, split):
    if split == "train":
        return Walkers(cfg)
    cell, action = (grid.ravel().astype(np.int32) for grid in np.meshgrid(range(CELLS), range(2), indexing="ij"))
    following, reward = (tensor.numpy() for tensor in move(tf.constant(cell), tf.constant(action)))
    rows = {"cell": cell, "action": action, "next_cell": following, "reward": reward}
    return make_batches(Source(rows, "every cell and action"), cfg, training=False)


def make_model(cfg):
    return QNet()


def make_state(cfg, model):
    return Target(model)


def surprise(model, target, batch):
    """Squared error of the values against reward and the best value after it."""
    value = tf.gather(model(batch["cell"]), batch["action"], axis=1, batch_dims=1)
    after = tf.reduce_max(target(batch["next_cell"]), axis=1)
    goal = batch["reward"] + GAMMA * (1 - batch["reward"]) * tf.stop_gradient(after)
    weight = batch["weight"]
    return {"surprise": losses.Term(tf.reduce_sum(tf.square(value - goal) * weight), tf.reduce_sum(weight))}, {}


def make_loss(cfg):
    return lambda model, batch, training: surprise(model, model, batch)


def make_schedule(cfg, total_steps):
    return optim.make_schedule(cfg, total_steps)


def make_step(cfg, tools):
    def step(state, batch):
        result = tools.gradients(lambda micro_batch: surprise(state.model, state.extra.model, micro_batch), batch)
        tools.apply(result.gradients)
        state.data.walk(state.model)
        state.extra.follow(state.model, state.updates)
        return result.terms, result.metrics

    return step

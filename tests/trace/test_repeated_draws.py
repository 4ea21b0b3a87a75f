"""framework/trace/repeated_draws.py: a seed that is a constant of the trace is refused, one that may change is not."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, rng, testing
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.errors import UserError
from framework.trace.repeated_draws import refuse_repeated_draws
from tests import small

PICTURES = tf.TensorSpec([4, 8, 8, 3])


def normal(seed, x):
    return x + tf.random.stateless_normal(tf.shape(x), seed=seed)


def in_a_loop(seed, x):
    return tf.map_fn(lambda one: one + tf.random.stateless_uniform([8, 8, 3], seed=seed), x)


def in_a_branch(seed, x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: normal(seed, x), lambda: x)


def in_a_function(seed, x):
    return tf.function(normal)(seed, x)


DRAWS = {
    "a flip": lambda seed, x: tf.image.stateless_random_flip_left_right(x, seed=seed),
    "a brightness": lambda seed, x: tf.image.stateless_random_brightness(x, 0.1, seed=seed),
    "a crop": lambda seed, x: tf.image.stateless_random_crop(x, [4, 4, 4, 3], seed=seed),
    "normal": normal,
    "a permutation": lambda seed, x: tf.gather(x, tf.random.experimental.stateless_shuffle(tf.range(4), seed=seed)),
    "poisson": lambda seed, x: x + tf.random.stateless_poisson([3], seed, [1.0, 2.0, 3.0], tf.float32),
    "a loop": in_a_loop,
    "a branch": in_a_branch,
    "a function": in_a_function,
    "folded": lambda seed, x: normal(tf.random.fold_in(seed, 3), x),
    "split": lambda seed, x: normal(tf.random.split(seed, 3)[1], x),
}


def traced(function):
    return tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int32), PICTURES).graph


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("make", [list, tf.constant], ids=["a list", "a tensor"])
def test_a_constant_seed_is_refused(kind, make):
    seed = make([0, 1])  # before the trace
    with pytest.raises(
        UserError, match=r"^transform draws the same numbers at every step in \S+ \(test_repeated_draws"
    ):
        refuse_repeated_draws("transform", traced(lambda step, x: DRAWS[kind](seed, x)))


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize(
    "seed",
    [
        lambda step, x, variable: [7, step],
        lambda step, x, variable: tf.cast(x[0, 0, 0, :2], tf.int32),
        lambda step, x, variable: variable.read_value(),
        lambda step, x, variable: tf.ensure_shape(tf.numpy_function(lambda: np.array([0, 1]), [], tf.int64), [2]),
    ],
    ids=["of the step", "of the batch", "of a variable", "of NumPy"],
)
def test_a_seed_that_may_change_is_let_pass(kind, seed):
    variable = tf.Variable([0, 1])
    refuse_repeated_draws("transform", traced(lambda step, x: DRAWS[kind](seed(step, x, variable), x)))


def test_a_seed_of_a_constant_seed_and_the_step_is_let_pass():
    def folded(step, x):
        return normal(tf.random.fold_in(tf.random.split([0, 1], 3)[1], step), x)

    refuse_repeated_draws("transform", traced(folded))


def test_a_seed_that_a_branch_decides_is_let_pass():
    def picked(step, x):
        return normal(tf.cond(step > 3, lambda: tf.constant([0, 1]), lambda: tf.constant([0, 2])), x)

    refuse_repeated_draws("transform", traced(picked))


def flips(batch):
    return {**batch, "x": tf.image.stateless_random_flip_left_right(batch["x"], seed=[0, 1])}


def redraws(batch):
    seed = tf.bitcast(rng.random_bits("flip", 1, 2)[0], tf.int32)
    return {**batch, "x": tf.image.stateless_random_flip_left_right(batch["x"], seed=seed)}


def run_of(**functions):
    def make_data(cfg, split):
        source = Source({"x": np.zeros([32, 2, 2, 1], np.float32)}, origin="squares")
        return make_batches(source, cfg, training=split == "train", transform=functions.get("transform"))

    def make_model(cfg):
        kept = layers.Dropout(0.5) if "layer" not in functions else functions["layer"]
        return keras.Sequential([keras.layers.Flatten(), kept, keras.layers.Dense(1)])

    def make_loss(cfg):
        def loss(model, batch, training):
            y = model(batch["x"], training=training)[:, 0]
            return {"squares": losses.mean(functions.get("noise", tf.identity)(y) ** 2, batch["weight"])}, {}

        return loss

    made = {
        "get_config": small.tiny.get_config,
        "make_data": make_data,
        "make_model": make_model,
        "make_loss": make_loss,
    }
    return testing.build({**made, "make_schedule": small.tiny.make_schedule}, small.SETTINGS)


class Noise(keras.layers.Layer):
    def call(self, x):
        return x + tf.random.stateless_normal([4], seed=[3, 4])


END = (
    " does not depend on the step. Draw with framework.rng, such as rng.uniform; numbers that are to stay the same are"
    " made once, outside of the function."
)


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"transform": flips}, "transform draws the same numbers at every step in flips (test_repeated_draws.py:"),
        ({"layer": Noise()}, "the loss draws the same numbers at every step in call (test_repeated_draws.py:"),
        (
            {"noise": lambda y: y + tf.random.stateless_uniform([16], seed=[1, 2])},
            "the loss draws the same numbers at every step in <lambda> (test_repeated_draws.py:",
        ),
    ],
    ids=["transform", "model", "loss"],
)
def test_a_run_is_refused_in_one_line(given, start):
    with pytest.raises(UserError) as caught:
        run_of(**given)
    line = str(caught.value)
    assert line.startswith(start) and line.endswith(END) and "\n" not in line


def test_draws_of_the_framework_are_let_pass():
    run_of(transform=redraws).train_block(2)

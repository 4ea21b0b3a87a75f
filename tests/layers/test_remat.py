"""Rematerialised layers train the same numbers: gradients, draws and moving averages."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, paths, precision, rng
from framework.config import UserError
from tests.compile_modes import MODES


class Block(keras.layers.Layer):
    """Two inputs, a mask as keyword, dropout and moving statistics inside."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(8, activation="tanh")
        self.norm = keras.layers.BatchNormalization()
        self.dropout = layers.Dropout(0.5)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((None, 8))

    def call(self, x, scale=None, mask=None, training=None):
        y = self.dropout(self.norm(self.dense(x), training=training), training=training)
        y = y if mask is None else tf.where(mask, y, tf.zeros([], y.dtype))
        return x + tf.cast(scale, y.dtype) * y


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block() for _ in range(3)]
        self.head = keras.layers.Dense(1, dtype=keras.backend.floatx())

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x, scale=0.7 * tf.ones([], x.dtype), mask=x > -2, training=training)
        return self.head(x)


def gradients(mode, remat, dtype="float64", passes=2):
    """Gradients of the last of several passes, and all variables after them."""
    with precision.scope(dtype):
        keras.utils.set_random_seed(1)
        net = Net()
        if remat == "before":
            assert layers.rematerialise(net, r"blocks/\d") == ["blocks/0", "blocks/1", "blocks/2"]
        x = tf.constant(np.random.default_rng(0).normal(size=(16, 8)), precision.full(dtype))
        net(x)
        rng.name_streams(paths.objects(net))
        if remat == "after":
            layers.rematerialise(net, "blocks/.*")  # the outermost

        def step(number):
            with rng.scope(rng.key(3), number), tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(net(x, training=True)))
                return tape.gradient(loss, net.trainable_variables), loss

        compiled = MODES[mode](step)
        for number in range(passes):
            found, loss = compiled(tf.constant(number, tf.int64))
    return [g.numpy() for g in found], [v.numpy() for v in net.variables], float(loss)


@pytest.mark.parametrize(
    ("mode", "remat"),
    [
        ("eager", "before"),
        ("graph", "after"),
        ("xla", "after"),
        *(
            pytest.param(*way, marks=pytest.mark.slow)
            for way in (("eager", "after"), ("graph", "before"), ("xla", "before"))
        ),
    ],
)
def test_same_gradients_draws_and_moving_averages(mode, remat):
    plain, again = gradients(mode, ""), gradients(mode, remat)
    assert again[2] == pytest.approx(plain[2], rel=1e-14)
    for left, right in zip(plain[0] + plain[1], again[0] + again[1], strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("graph", "bfloat16"),
        *(
            pytest.param(*way, marks=pytest.mark.slow)
            for way in (("graph", "float16"), ("xla", "float16"), ("xla", "bfloat16"))
        ),
    ],
)
def test_mixed_precision(mode, dtype):
    plain, again = gradients(mode, "", dtype), gradients(mode, "after", dtype)
    for left, right in zip(plain[0], again[0], strict=True):
        assert right.dtype == np.float32
        assert np.linalg.norm(right - left) <= 0.03 * np.linalg.norm(left)


@pytest.mark.parametrize("mode", MODES)
def test_later_draws_do_not_repeat(mode):
    def draws(remat):
        layer = layers.Dropout(0.5)
        wrapped = keras.Sequential([keras.layers.Dense(4), layer])
        wrapped.build((None, 4))
        if remat:
            layers.rematerialise({"net": wrapped}, "net/dropout")

        def step():
            x = tf.ones([8, 4])
            with rng.scope(rng.key(0), 0):
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    first = layer(x, training=True)
                gradient = tape.gradient(first, x)
                return first, gradient, layer(x, training=True)

        return [tensor.numpy() for tensor in MODES[mode](step)()]

    plain, again = draws(False), draws(True)
    for left, right in zip(plain, again, strict=True):
        assert left.tobytes() == right.tobytes()
    assert plain[0].tobytes() == plain[1].tobytes() != plain[2].tobytes()


def test_nothing_changes_outside_of_a_step():
    net = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    x = tf.ones([2, 3])
    before = net(x)
    layers.rematerialise(net, "dense")
    assert net(x).numpy().tobytes() == before.numpy().tobytes()
    graph = tf.function(net.call, autograph=False).get_concrete_function(x).graph
    assert not any("recompute" in operation.name.lower() for operation in graph.get_operations())


def test_a_pattern_without_a_layer():
    net = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(1)])
    with pytest.raises(UserError) as error:
        layers.rematerialise(net, "dense_2")
    assert str(error.value) == (
        "train.remat='dense_2' matches no layer. Did you mean 'dense_1'? Layers: dense, dense_1."
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_inside_is_refused(mode):
    inner = keras.layers.Dense(4, activity_regularizer="l2")
    net = keras.Sequential([keras.Sequential([inner]), keras.layers.Dense(1)])
    net.build((None, 3))
    layers.rematerialise(net, "sequential")

    def step():
        with rng.scope(rng.key(0), 0):
            return net(tf.ones([2, 3]), training=True)

    with pytest.raises(UserError, match=r"during the call of layer 'sequential', layer '\w+' adds a loss"):
        MODES[mode](step)()


def test_a_loss_of_the_layer_itself_is_refused():
    class Adds(keras.layers.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_mean(x**2))
            return 2 * x

    net = keras.Sequential([keras.layers.Dense(4), Adds(), keras.layers.Dense(1)])
    net.build((None, 3))
    layers.rematerialise(net, "adds")
    with (
        rng.scope(rng.key(0), 0),
        pytest.raises(UserError, match="during the call of layer 'adds', layer 'adds' adds a loss"),
    ):
        net(tf.ones([2, 3]), training=True)


@pytest.mark.parametrize("mode", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_a_mask_that_keras_hands_on_holds_the_second_time_too(mode):
    """Attention to padding would change gradients and not the loss; behind a model inside the mask goes on."""

    def found(remat):
        keras.utils.set_random_seed(2)
        with precision.scope("float64"):
            x = keras.Input([5, 8])
            inner = keras.Model(x, layers.EncoderLayer(8, 2, 16, name="deep")(x), name="inner")
            net = keras.Sequential(
                [
                    keras.layers.Embedding(20, 8, mask_zero=True),
                    layers.EncoderLayer(8, 2, 16, name="encoder_layer"),
                    inner,
                    keras.layers.GlobalAveragePooling1D(),
                ]
            )
            tokens = tf.constant([[3, 4, 5, 0, 0], [7, 0, 0, 0, 0]])
            net(tokens)
        if remat:
            layers.rematerialise(net, ".*(encoder_layer|inner)")

        def step():
            with rng.scope(rng.key(0), tf.constant(0, tf.int64)), tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(net(tokens, training=True)))
            gradients = tape.gradient(loss, net.trainable_variables)
            return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

        return MODES[mode](step)()

    (plain, expected), (again, gradients) = found(remat=False), found(remat=True)
    assert float(again) == pytest.approx(float(plain), rel=1e-14)
    for left, right in zip(expected, gradients, strict=True):
        np.testing.assert_allclose(right, left, rtol=1e-11, atol=1e-13)

"""framework/layers/recurrent.py: recurrences written out in NumPy, with masks made from the words of the streams."""

import copy

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, paths, rng

BATCH, TIME, FEATURES, UNITS = 3, 4, 5, 2
RATE, RECURRENT_RATE = 0.3, 0.6
KEY, STEP = rng.key(1), 7


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def made(kind, **arguments):
    layer = kind(**arguments, dtype="float64")
    layer(tf.zeros([BATCH, TIME, FEATURES], tf.float64))
    for number, variable in enumerate(layer.variables):
        variable.assign(normal(*variable.shape, seed=10 + number))
    rng.name_streams(paths.objects({"net": layer}))
    return layer


def trained(layer, x):
    with rng.scope(KEY, STEP):
        return layer(tf.constant(x), training=True).numpy()


class Masks:
    """The masks of a stream, in the order of the draws: each 0, or what keeps the mean."""

    def __init__(self, stream):
        self.stream, self.draws = stream, 0

    def next(self, rate, *shape):
        with rng.scope(KEY, STEP):
            for _ in range(self.draws + 1):
                halves = rng.random_bits16(self.stream, BATCH, int(np.prod(shape))).numpy()
        self.draws += 1
        threshold = rng.threshold(rate)
        return (halves >= threshold).reshape(BATCH, *shape) / (1 - threshold / 2**16)


def test_each_gate_of_an_lstm_has_a_mask_for_the_whole_sequence():
    layer, x = (
        made(layers.LSTM, units=UNITS, dropout=RATE, recurrent_dropout=RECURRENT_RATE),
        normal(BATCH, TIME, FEATURES),
    )
    masks = Masks("net/cell")
    of_inputs = [masks.next(RATE, FEATURES) for _ in range(4)]
    of_states = [masks.next(RECURRENT_RATE, UNITS) for _ in range(4)]
    kernels, recurrent_kernels, biases = (np.split(weight, 4, -1) for weight in layer.get_weights())
    h = c = np.zeros([BATCH, UNITS])
    for t in range(TIME):
        i, f, g, o = (
            (x[:, t] * of_inputs[gate]) @ kernels[gate] + (h * of_states[gate]) @ recurrent_kernels[gate] + biases[gate]
            for gate in range(4)
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    np.testing.assert_allclose(trained(layer, x), h, rtol=0, atol=1e-13)


def test_each_gate_of_a_gru_has_a_mask_for_the_whole_sequence():
    layer = made(layers.GRU, units=UNITS, dropout=RATE, recurrent_dropout=RECURRENT_RATE, reset_after=False)
    x, masks = normal(BATCH, TIME, FEATURES), Masks("net/cell")
    of_inputs = [masks.next(RATE, FEATURES) for _ in range(3)]
    of_states = [masks.next(RECURRENT_RATE, UNITS) for _ in range(3)]
    kernels, recurrent_kernels, biases = (np.split(weight, 3, -1) for weight in layer.get_weights())
    h = np.zeros([BATCH, UNITS])
    for t in range(TIME):
        z, r, n = ((x[:, t] * of_inputs[gate]) @ kernels[gate] + biases[gate] for gate in range(3))
        z = sigmoid(z + (h * of_states[0]) @ recurrent_kernels[0])
        r = sigmoid(r + (h * of_states[1]) @ recurrent_kernels[1])
        n = np.tanh(n + (r * h * of_states[2]) @ recurrent_kernels[2])
        h = z * h + (1 - z) * n
    np.testing.assert_allclose(trained(layer, x), h, rtol=0, atol=1e-13)


def test_a_simple_rnn_has_a_mask_for_the_whole_sequence():
    layer = made(layers.SimpleRNN, units=UNITS, dropout=RATE, recurrent_dropout=RECURRENT_RATE)
    x, masks = normal(BATCH, TIME, FEATURES), Masks("net/cell")
    of_inputs, of_states = masks.next(RATE, FEATURES), masks.next(RECURRENT_RATE, UNITS)
    kernel, recurrent_kernel, bias = layer.get_weights()
    h = np.zeros([BATCH, UNITS])
    for t in range(TIME):
        h = np.tanh((x[:, t] * of_inputs) @ kernel + bias + (h * of_states) @ recurrent_kernel)
    np.testing.assert_allclose(trained(layer, x), h, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_dropout_alone_drops_each_element_of_the_inputs(name):
    """As in Keras, whose fused kernels take one input for all gates."""
    layer, x = made(getattr(layers, name), units=UNITS, dropout=RATE), normal(BATCH, TIME, FEATURES)
    dropped = x * Masks("net").next(RATE, TIME, FEATURES)
    keras_layer = made(getattr(keras.layers, name), units=UNITS)
    np.testing.assert_allclose(trained(layer, x), keras_layer(tf.constant(dropped)), rtol=0, atol=1e-13)


def test_time_may_come_first():
    x = normal(BATCH, TIME, FEATURES)
    for rates in ({"dropout": RATE}, {"dropout": RATE, "recurrent_dropout": RECURRENT_RATE}):
        found = [
            trained(made(layers.LSTM, units=UNITS, time_major=bool(axis), **rates), np.swapaxes(x, 0, axis))
            for axis in (0, 1)
        ]
        np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-14)


WRAPPED = {
    "bidirectional": lambda: keras.layers.Bidirectional(
        layers.LSTM(UNITS, dropout=RATE, recurrent_dropout=RECURRENT_RATE, return_sequences=True), dtype="float64"
    ),
    "stacked": lambda: keras.layers.RNN(
        [
            layers.LSTMCell(UNITS, dropout=RATE, recurrent_dropout=RECURRENT_RATE, dtype="float64"),
            layers.GRUCell(UNITS, recurrent_dropout=RECURRENT_RATE, dtype="float64"),
        ],
        dtype="float64",
    ),
    "unrolled": lambda: layers.GRU(UNITS, recurrent_dropout=RECURRENT_RATE, unroll=True, dtype="float64"),
    "masked": lambda: keras.Sequential([keras.layers.Masking(), layers.LSTM(UNITS, recurrent_dropout=RECURRENT_RATE)]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_masks_in_wrappers_of_keras_are_the_same_eager_and_traced_and_in_parts(name):
    layer, x = WRAPPED[name](), tf.constant(normal(BATCH, TIME, FEATURES), "float32" if name == "masked" else "float64")
    layer(x)
    rng.name_streams(paths.objects(layer))
    streams = [d.rng_stream for d in paths.objects(layer).values() if hasattr(d, "rng_stream")]
    assert len(set(streams)) == len(streams) >= 1

    def call(x, first=0):
        with rng.scope(KEY, STEP, first):
            return layer(x, training=True)

    bound = 1e-6  # float32 rounds differently in a graph; another mask would change a tenth
    eager = call(x).numpy()
    assert not np.allclose(eager, layer(x))
    np.testing.assert_allclose(tf.function(call, autograph=False)(x), eager, rtol=0, atol=bound)
    np.testing.assert_allclose(np.concatenate([call(x[:1]), call(x[1:], 1)]), eager, rtol=0, atol=bound)
    assert call(x).numpy().tobytes() == eager.tobytes()


def test_a_cell_called_by_hand_keeps_its_masks_for_a_step_and_no_longer():
    cell, x = layers.SimpleRNNCell(UNITS, dropout=0.5, dtype="float64"), tf.ones([BATCH, 50], tf.float64)
    state = [tf.zeros([BATCH, UNITS], tf.float64)]
    cell(x, state)

    def calls(step):
        with rng.scope(KEY, step):
            return [cell(x, state, training=True)[0].numpy().tobytes() for _ in range(2)]

    first, second = calls(0), calls(1)
    assert first[0] == first[1] and second[0] == second[1] and first != second and calls(0) == first


def test_a_copy_draws_by_its_own_stream():
    first = made(layers.SimpleRNN, units=UNITS, recurrent_dropout=RECURRENT_RATE)
    second = copy.deepcopy(first)
    rng.name_streams(paths.objects({"copy": second}))
    x = normal(BATCH, TIME, FEATURES)
    assert not np.allclose(trained(first, x), trained(second, x))
    assert (first.cell._random_generator.rng_stream, second.cell._random_generator.rng_stream) == (
        "net/cell",
        "copy/cell",
    )


@pytest.mark.parametrize("arguments", [{"dropout": 1.0}, {"recurrent_dropout": 1.5}])
def test_a_rate_that_drops_everything_is_refused(arguments):
    with pytest.raises(ValueError, match=r"^(recurrent_)?dropout=1.0 must be at least 0 and below 1$"):
        layers.LSTM(UNITS, **arguments)

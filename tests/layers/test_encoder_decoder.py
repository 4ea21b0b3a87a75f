"""framework/layers/encoder_decoder.py: stacks by their layers, padding on either side, decoding with a cache."""

import numpy as np
import pytest
import tensorflow as tf

from framework import layers, paths
from framework.compile import jit

ROWS, LENGTH, SOURCE, WIDTH = 3, 5, 4, 8
IS_SOURCE_TOKEN = np.arange(SOURCE) < np.array([[4], [2], [1]])
KINDS = {
    "pre, sinusoidal": {},
    "post, learned": {"norm": "post", "positions": "learned", "activation": "gelu"},
    "pre, rotary": {"positions": "rotary", "activation": "swiglu", "mask_value": -30.0},
    "pre, none": {"positions": "none"},
}
over_kinds = pytest.mark.parametrize("name", KINDS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def made(kind, dtype="float64", **arguments):
    """A stack of 2 layers with random weights, biases and scales included."""
    stack = kind(2, WIDTH, heads=2, feed_forward=6, max_length=9, dtype=dtype, **arguments)
    lengths = (LENGTH, SOURCE) if kind is layers.Decoder else (LENGTH,)
    stack(*(tf.zeros([ROWS, length, WIDTH], stack.variable_dtype) for length in lengths))
    for number, variable in enumerate(stack.variables):
        variable.assign(0.5 * normal(*variable.shape, seed=10 + number))
    return stack


def made_decoder(name, dtype="float64"):
    return made(layers.Decoder, dtype, **KINDS[name])


@over_kinds
def test_an_encoder_is_positions_layers_and_a_last_normalisation(name):
    encoder, x = made(layers.Encoder, **KINDS[name]), normal(ROWS, SOURCE, WIDTH)
    expected = x
    if KINDS[name].get("positions", "sinusoidal") == "sinusoidal":
        expected = x + layers.sinusoidal(SOURCE, WIDTH)
    if KINDS[name].get("positions") == "learned":
        expected = x + encoder.positions.table.numpy()[:SOURCE]
    for layer in encoder.layers:
        expected = layer(tf.constant(expected), tf.constant(IS_SOURCE_TOKEN)).numpy()
    if "post" not in name:
        expected = expected - expected.mean(-1, keepdims=True)
        expected /= np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-6)
        expected = expected * encoder.final_norm.gamma.numpy() + encoder.final_norm.beta.numpy()
    found = encoder(tf.constant(x), tf.constant(IS_SOURCE_TOKEN))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert (encoder.final_norm is None) == ("post" in name)


@over_kinds
def test_padding_on_the_left_and_on_the_right_agree(name):
    encoder, decoder = made(layers.Encoder, **KINDS[name]), made_decoder(name)
    tokens, target = normal(1, 3, WIDTH), normal(1, 2, WIDTH, seed=1)
    outputs = []
    for sides in ((0, 2), (2, 0)):
        x, y = (np.pad(each, ((0, 0), sides, (0, 0)), constant_values=9.0) for each in (tokens, target))
        is_token, is_target = (np.pad(np.ones([1, n], bool), ((0, 0), sides)) for n in (3, 2))
        places = layers.token_positions(is_token)
        memory = encoder(tf.constant(x), tf.constant(is_token), positions=places)
        places = layers.token_positions(is_target)
        decoded = decoder(tf.constant(y), memory, tf.constant(is_token), is_token=is_target, positions=places)
        outputs.append([memory.numpy()[is_token], decoded.numpy()[is_target]])
    for right, left in zip(*outputs, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-13)


def decoded(decoder, x, memory, is_source_token):
    """What `step` returns for one token after another, [rows, length, width]."""
    state = decoder.start(memory, LENGTH, is_source_token)
    outputs = []
    for position in range(LENGTH):
        y, state = decoder.step(x[:, position : position + 1], state, tf.constant(position))
        outputs.append(y)
    return tf.concat(outputs, 1)


@over_kinds
def test_decoding_with_a_cache_is_the_call_on_all_tokens(name):
    decoder = made_decoder(name)
    x, memory = tf.constant(normal(ROWS, LENGTH, WIDTH)), tf.constant(normal(ROWS, SOURCE, WIDTH, seed=1))
    for is_source_token in (tf.constant(IS_SOURCE_TOKEN), None):
        cached = decoded(decoder, x, memory, is_source_token)
        np.testing.assert_allclose(cached, decoder(x, memory, is_source_token), rtol=0, atol=1e-12)


@over_kinds
def test_a_causal_encoder_decodes_with_a_cache_as_it_is_called(name):
    """A model of language has no source: its stack is an encoder."""
    encoder, x = made(layers.Encoder, **KINDS[name]), tf.constant(normal(ROWS, LENGTH, WIDTH))
    state, outputs = encoder.start(ROWS, LENGTH + 2), []
    for position in range(LENGTH):
        y, state = encoder.step(x[:, position : position + 1], state, tf.constant(position))
        outputs.append(y)
    np.testing.assert_allclose(tf.concat(outputs, 1), encoder(x, causal=True), rtol=0, atol=1e-12)
    assert np.abs(outputs[0] - encoder(x)[:, :1]).max() > 1e-3


def test_a_compiled_loop_decodes_rows_of_half_precision():
    decoder = made_decoder("pre, rotary", "mixed_bfloat16")
    x, memory = (tf.constant(normal(ROWS, n, WIDTH, seed=n), tf.float32) for n in (LENGTH, SOURCE))

    @jit
    def loop(x, memory):
        state = decoder.start(memory, LENGTH, tf.constant(IS_SOURCE_TOKEN))

        def body(position, state, outputs):
            y, state = decoder.step(tf.gather(x, [position], axis=1), state, position)
            here = tf.reshape(tf.range(LENGTH) == position, [1, -1, 1])
            return position + 1, state, tf.where(here, y, outputs)

        outputs = tf.zeros([ROWS, LENGTH, WIDTH], tf.bfloat16)
        return tf.while_loop(lambda position, *_: position < LENGTH, body, (0, state, outputs))[2]

    y = loop(x, memory)
    expected = decoder(x, memory, tf.constant(IS_SOURCE_TOKEN))
    assert y.dtype == expected.dtype == tf.bfloat16
    np.testing.assert_allclose(*(tf.cast(each, tf.float32) for each in (y, expected)), rtol=0, atol=0.06)


def test_rows_of_a_state_are_picked_by_a_gather():
    decoder = made_decoder("pre, sinusoidal")
    x, memory = tf.constant(normal(ROWS, 2, WIDTH)), tf.constant(normal(ROWS, SOURCE, WIDTH, seed=1))
    mask = tf.constant(IS_SOURCE_TOKEN)
    _, state = decoder.step(x[:, :1], decoder.start(memory, LENGTH, mask), tf.constant(0))
    picked = [2, 0, 2, 1]
    state = tf.nest.map_structure(lambda tensor: tf.gather(tensor, picked), state)
    y, _ = decoder.step(tf.gather(x, picked)[:, 1:], state, tf.constant(1))
    expected = tf.gather(decoder(x, memory, mask), picked)[:, 1:]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


def test_config_round_trip_and_paths():
    decoder = made_decoder("pre, rotary")
    again = layers.Decoder.from_config(decoder.get_config())
    assert again.get_config() == decoder.get_config() and again.layers[1].attention.rotary
    assert not again.layers[1].cross_attention.rotary and again.layers[0].mask_value == -30
    assert "layers/1/cross_attention/_query_dense/kernel" in paths.variables(decoder)


def refused(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def test_what_is_refused():
    def encoder(**arguments):
        return lambda: layers.Encoder(**{"layers": 1, "width": 4, "heads": 2, "feed_forward": 4, **arguments})

    assert refused(encoder(layers=0)) == "layers=0 must be at least 1"
    assert refused(encoder(norm="both")) == "norm='both' is none of pre, post"
    assert refused(encoder(activation="tanh")) == "activation='tanh' is none of relu, gelu, swiglu"
    assert refused(encoder(positions="alibi")) == "positions='alibi' is none of sinusoidal, learned, rotary, none"
    decoder = layers.Decoder(1, 4, 2, 4, max_length=3)
    too_long = "a sequence of length 4 has no position beyond max_length=3; raise it"
    assert refused(lambda: decoder.start(tf.zeros([1, 2, 4]), 4)) == too_long
    stack = layers.Encoder(1, 4, 2, 4, max_length=3)
    assert refused(lambda: stack.start(1, 4)) == too_long
    assert refused(lambda: stack.start(1, 3)).startswith("this EncoderLayer has no weights before its first call")
    unbuilt = "this DecoderLayer has no weights before its first call; call it, then start()"
    assert refused(lambda: decoder.start(tf.zeros([1, 2, 4]), 3)) == unbuilt

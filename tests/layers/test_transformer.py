"""framework/layers/transformer.py against NumPy in float64; what masks hide is not seen; gradients; compile modes."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, paths, rng, testing

BATCH, LENGTH, SOURCE, WIDTH, HEADS, HIDDEN = 3, 5, 4, 6, 2, 7


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def made(kind, dropout=0.0, dtype="float64", **options):
    """A layer with random weights, biases and scales included."""
    layer = kind(WIDTH, HEADS, HIDDEN, dropout, dtype=dtype, **options)
    lengths = (LENGTH, SOURCE) if kind is layers.DecoderLayer else (LENGTH,)
    layer(*(tf.zeros([BATCH, length, WIDTH], layer.variable_dtype) for length in lengths))
    for number, variable in enumerate(layer.variables):
        variable.assign(normal(*variable.shape, seed=10 + number))
    rng.name_streams(paths.objects(layer))
    return layer


class Reference:
    """The same layers from their definition, with the masks that the streams of their dropouts draw at step 3."""

    def __init__(self, layer, rate=0.0):
        self.weights = {path: variable.numpy() for path, variable in paths.variables(layer).items()}
        self.rate = rate
        self.is_post = layer.norm == "post"
        self.activation = layer.activation
        self.probabilities = {}  # of each attention, [batch, heads, length, source length]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * self.weights[f"{name}/gamma"] + self.weights[f"{name}/beta"]

    def dropped(self, stream, x):
        if not self.rate:
            return x
        with rng.scope(rng.key(1), 3):
            halves = rng.random_bits16(stream, len(x), int(np.prod(x.shape[1:]))).numpy().reshape(x.shape)
        threshold = rng.threshold(self.rate)
        return x * (halves >= threshold) / (1 - threshold / 2**16)

    def attention(self, name, x, memory, seen):
        def projected(part, x):
            kernel, bias = self.weights[f"{name}/_{part}_dense/kernel"], self.weights[f"{name}/_{part}_dense/bias"]
            return np.einsum("btw,whd->bthd", x, kernel) + bias

        query, key, value = projected("query", x), projected("key", memory), projected("value", memory)
        scores = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(WIDTH // HEADS)
        scores = np.where(seen, np.exp(scores), 0)
        self.probabilities[name] = scores / scores.sum(-1, keepdims=True)
        found = self.dropped(f"{name}/_dropout_layer", self.probabilities[name])
        found = np.einsum("bhts,bshd->bthd", found, value)
        kernel, bias = (self.weights[f"{name}/_output_dense/{part}"] for part in ("kernel", "bias"))
        return np.einsum("bthd,hdw->btw", found, kernel) + bias

    def added(self, name, x, sublayer):
        """x + sublayer(norm(x)), or in post-norm norm(x + sublayer(x))."""
        if self.is_post:
            return self.norm(f"{name}_norm", x + self.dropped(f"{name}_dropout", sublayer(x)))
        return x + self.dropped(f"{name}_dropout", sublayer(self.norm(f"{name}_norm", x)))

    def hidden(self, x):
        if self.activation == "swiglu":
            gate = x @ self.weights["gate/kernel"]
            return gate / (1 + np.exp(-gate)) * (x @ self.weights["expand/kernel"])
        x = x @ self.weights["expand/kernel"] + self.weights["expand/bias"]
        return np.maximum(x, 0) if self.activation == "relu" else x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2

    def fed_forward(self, x):
        y = self.hidden(x) @ self.weights["contract/kernel"]
        return y if self.activation == "swiglu" else y + self.weights["contract/bias"]

    def encoder(self, x, is_token):
        x = self.added("attention", x, lambda y: self.attention("attention", y, y, is_token[:, None, None, :]))
        return self.added("feed_forward", x, self.fed_forward)

    def decoder(self, x, memory, is_token):
        causal, seen = np.tril(np.ones([LENGTH, LENGTH], bool)), is_token[:, None, None, :]
        x = self.added("attention", x, lambda y: self.attention("attention", y, y, causal))
        x = self.added("cross", x, lambda y: self.attention("cross_attention", y, memory, seen))
        return self.added("feed_forward", x, self.fed_forward)


def token_mask(length):
    """A full row, one with padding at its end, one with a single token."""
    return np.arange(length) < np.array([length, length - 2, 1])[:, None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_encoder_is_its_definition(rate, masked):
    layer, x = made(layers.EncoderLayer, rate), normal(BATCH, LENGTH, WIDTH)
    is_token = token_mask(LENGTH)
    with rng.scope(rng.key(1), 3):
        found = layer(tf.constant(x), is_token=tf.constant(is_token) if masked else None, training=bool(rate))
    expected = Reference(layer, rate).encoder(x, is_token if masked else np.ones_like(is_token))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_source_attention_is_the_probabilities_of_a_call(norm):
    layer = made(layers.DecoderLayer, dropout=0.3, norm=norm)
    x, memory, is_token = normal(BATCH, LENGTH, WIDTH), normal(BATCH, SOURCE, WIDTH, seed=1), token_mask(SOURCE)
    reference = Reference(layer)  # without dropout: in inference
    reference.decoder(x, memory, is_token)
    found = layer.source_attention(tf.constant(x), tf.constant(memory), tf.constant(is_token))
    np.testing.assert_allclose(found, reference.probabilities["cross_attention"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_decoder_is_its_definition(rate, masked):
    layer = made(layers.DecoderLayer, rate)
    x, memory, is_token = normal(BATCH, LENGTH, WIDTH), normal(BATCH, SOURCE, WIDTH, seed=1), token_mask(SOURCE)
    with rng.scope(rng.key(1), 3):
        mask = tf.constant(is_token) if masked else None
        found = layer(tf.constant(x), tf.constant(memory), is_source_token=mask, training=bool(rate))
    expected = Reference(layer, rate).decoder(x, memory, is_token if masked else np.ones_like(is_token))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


OPTIONS = [{"norm": "post"}, {"activation": "gelu"}, {"activation": "swiglu", "norm": "post"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_norms_and_activations_are_their_definitions(rate, options):
    encoder, decoder = (made(kind, rate, **options) for kind in (layers.EncoderLayer, layers.DecoderLayer))
    x, memory, is_token = normal(BATCH, LENGTH, WIDTH), normal(BATCH, SOURCE, WIDTH, seed=1), token_mask(SOURCE)
    with rng.scope(rng.key(1), 3):
        encoded = encoder(tf.constant(memory), tf.constant(is_token), training=bool(rate))
    with rng.scope(rng.key(1), 3):
        decoded = decoder(tf.constant(x), tf.constant(memory), tf.constant(is_token), training=bool(rate))
    bound = 1e-7 if encoder.activation == "gelu" else 1e-12  # TensorFlow's takes the root of 2 in float32
    np.testing.assert_allclose(encoded, Reference(encoder, rate).encoder(memory, is_token), rtol=0, atol=bound)
    np.testing.assert_allclose(decoded, Reference(decoder, rate).decoder(x, memory, is_token), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_what_is_masked_or_to_come_changes_no_bit(dtype):
    encoder, decoder = made(layers.EncoderLayer, dtype=dtype), made(layers.DecoderLayer, dtype=dtype)
    x, memory = normal(BATCH, LENGTH, WIDTH), normal(BATCH, SOURCE, WIDTH, seed=1)
    is_token, is_source_token = token_mask(LENGTH), token_mask(SOURCE)
    other, other_memory, later = x.copy(), memory.copy(), x.copy()
    other[~is_token] = 9
    other_memory[~is_source_token] = 9
    later[:, 3:] = 9

    def outputs(x, memory, target):
        encoded = encoder(tf.constant(x, tf.float32), is_token=is_token)
        decoded = decoder(tf.constant(target, tf.float32), tf.constant(memory, tf.float32), is_source_token)
        return [tf.cast(y, tf.float32).numpy() for y in (encoded, decoded)]

    encoded, decoded = outputs(x, memory, x)
    same_encoded, same_decoded = outputs(other, other_memory, later)
    assert np.array_equal(encoded[is_token], same_encoded[is_token])
    assert np.array_equal(decoded[:, :3], same_decoded[:, :3])
    assert not np.array_equal(decoded[:, 3:], same_decoded[:, 3:])


@pytest.mark.slow
def test_gradients_and_compile_modes_agree_with_dropout_on():
    layer = made(layers.DecoderLayer, 0.3)
    for variable in layer.trainable_variables:
        variable.assign(0.5 * variable)
    given = [tf.constant(normal(BATCH, LENGTH, WIDTH)), tf.constant(normal(BATCH, SOURCE, WIDTH, seed=1))]
    is_token = tf.constant(token_mask(SOURCE))

    def call(x, memory):
        return layer(x, memory, is_token, training=True)

    testing.check_gradients(call, given, variables=layer, samples=2)
    testing.check_compiled(call, given, variables=layer)


def test_variables_stay_in_full_precision_and_all_parts_compute_in_half():
    layer = made(layers.DecoderLayer, 0.1, "mixed_bfloat16")
    assert {variable.dtype for variable in layer.variables} == {tf.float32}
    parts = [part for part in paths.objects(layer).values() if isinstance(part, keras.layers.Layer)]
    assert {part.compute_dtype for part in parts} == {"bfloat16"} and len(parts) > 15


@pytest.mark.parametrize("kind", [layers.EncoderLayer, layers.DecoderLayer])
def test_config_round_trip(kind):
    again = kind.from_config(kind(8, 4, 16, 0.25, name="mine").get_config())
    assert again.get_config() == kind(8, 4, 16, 0.25, name="mine").get_config()
    assert again.attention._num_heads == 4 and again.attention_dropout.rate == 0.25
    sizes = {"width": 8, "heads": 4, "feed_forward": 16, "dropout": 0.25}
    assert again.get_config() == {"name": "mine", "trainable": True, "dtype": "float32", **sizes}
    options = {"norm": "post", "activation": "gelu", "rotary": True, "mask_value": -30.0}
    again = kind.from_config(kind(8, 4, 16, **options).get_config())
    assert {name: getattr(again, name) for name in options} == options and again.attention.mask_value == -30


def test_a_width_that_the_heads_cannot_share():
    with pytest.raises(ValueError) as error:
        layers.EncoderLayer(10, 4, 16)
    assert str(error.value) == "width=10 is not divisible by heads=4"

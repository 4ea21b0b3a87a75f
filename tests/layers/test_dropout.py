"""framework/layers/dropout.py: masks made in NumPy from the words, the same in every mode, precision and slice."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, optim, paths, rng, state
from framework.compile import Compiled
from framework.layers import Dropout
from tests import compile_modes

KEY = rng.key(1)
MODES = {
    **compile_modes.MODES,
    "xla of the framework": lambda fn: Compiled(fn, "xla", "dropped"),
}
DTYPES = ("float64", "float32", "bfloat16")


def ones(shape=(6, 5, 3), dtype="float32"):
    return tf.ones(shape, dtype)


def make_layer(rate, dtype="float32", stream="tower/dropout"):
    layer = Dropout(rate, dtype=dtype)
    layer.rng_stream = stream
    return layer


def dropped(rate, x, step=0, first_example=0, dtype="float32"):
    with rng.scope(KEY, step, first_example):
        return make_layer(rate, dtype)(x, training=True)


def reference_mask(rate, shape, step=0, stream="tower/dropout"):
    """True where kept: half a word's fraction of 2**16 is not below the rate. The low half first."""
    per_example = int(np.prod(shape[1:]))
    counts = (per_example + 7) // 8
    with rng.scope(KEY, step):
        words = rng.random_bits(stream, shape[0], 4 * counts).numpy()
    halves = np.stack([words % 2**16, words // 2**16], axis=2).reshape(shape[0], 8 * counts)[:, :per_example]
    return (halves.astype(np.float64) >= round(rate * 2**16)).reshape(shape)


def reference_scale(rate):
    """What keeps the mean with the rate that is drawn, a multiple of 2**-16."""
    return 1 / (1 - round(rate * 2**16) / 2**16)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("shape", [(6, 5, 3), (4, 784), (7,), (0, 5)])
def test_output_is_the_mask_of_the_words_times_the_scale(rate, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = dropped(rate, tf.constant(x), step=3).numpy()
    assert np.array_equal(
        found, np.where(reference_mask(rate, shape, step=3), x * np.float32(reference_scale(rate)), 0)
    )


def test_what_is_at_the_threshold_is_kept(monkeypatch):
    halves = tf.constant([[2**14 - 1, 2**14, 2**14 + 1, 0, 2**16 - 1]], tf.uint16)
    monkeypatch.setattr(rng, "random_bits16", lambda *_: halves)
    assert (make_layer(0.25)(ones((1, 5)), training=True).numpy() != 0).tolist() == [[False, True, True, False, True]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_mask_is_the_same_in_every_mode_and_dtype(mode, dtype):
    found = MODES[mode](lambda x: dropped(0.3, x, step=tf.constant(5, tf.int64), dtype=dtype))(ones(dtype=dtype))
    assert found.dtype == dtype
    scale = tf.constant(reference_scale(0.3), dtype)
    assert np.array_equal(found, tf.where(reference_mask(0.3, (6, 5, 3), step=5), scale, tf.zeros([], dtype)))


def test_a_part_of_the_batch_has_its_part_of_the_mask():
    whole = dropped(0.4, ones((12, 7)))
    parts = [dropped(0.4, ones((4, 7)), first_example=first) for first in (0, 4, 8)]
    assert np.array_equal(tf.concat(parts, 0), whole)


def test_masks_differ_by_step_and_by_call_and_by_stream():
    with rng.scope(KEY, 0):
        layer, other = make_layer(0.5), make_layer(0.5, stream="other")
        masks = [layer(ones(), training=True), layer(ones(), training=True), other(ones(), training=True)]
    masks += [dropped(0.5, ones(), step=1)]
    for i, one in enumerate(masks):
        for two in masks[:i]:
            assert 0.3 < np.mean(one.numpy() != two.numpy()) < 0.7


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False), (0.5, None), (0, True)])
def test_without_rate_or_training_it_is_the_identity_and_needs_no_scope(rate, training):
    x = tf.constant([[1.0, float("inf"), float("nan")]])
    assert np.array_equal(make_layer(rate)(x, training=training), x, equal_nan=True)


def test_training_outside_of_a_scope_says_what_to_write():
    layer = make_layer(0.5)
    with pytest.raises(RuntimeError, match=r"'tower/dropout' draws random numbers outside of rng\.scope"):
        layer.call(ones(), training=True)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_it_keeps_its_share_and_the_mean(rate):
    n = 400_000
    found = dropped(rate, ones((400, 1000))).numpy().astype(np.float64)
    error = 4.5 * np.sqrt(rate * (1 - rate) / n)
    assert abs((found != 0).mean() - (1 - rate)) < error
    assert abs(found.mean() - 1) < error / (1 - rate)
    per_example = (found == 0).sum(1)
    assert abs(per_example.var() / (1000 * rate * (1 - rate)) - 1) < 4.5 * np.sqrt(2 / 400)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_mask_times_the_scale_even_where_the_input_is_infinite(mode):
    mask = reference_mask(0.5, (2, 8))
    x = np.where(mask, 1.0, np.inf).astype(np.float32)

    def fn(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = dropped(0.5, x)
        return y, tape.gradient(y, x)

    y, gradient = MODES[mode](fn)(tf.constant(x))
    assert np.array_equal(y, mask * 2.0)
    assert np.array_equal(gradient, mask * 2.0)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, 2.5, float("nan")])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ValueError) as error:
        Dropout(rate)
    assert str(error.value) == f"rate={rate} must be at least 0 and below 1"


def test_dimensions_must_be_static_but_for_the_batch():
    def call(x):
        with rng.scope(KEY, 0):
            return make_layer(0.5).call(x, training=True)

    function = tf.function(call, autograph=False, input_signature=[tf.TensorSpec([None, None, 3])])
    with pytest.raises(ValueError) as error:
        function(ones())
    assert str(error.value) == ("'tower/dropout' needs static dimensions after the first, but draws (None, None, 3)")
    function = tf.function(call, autograph=False, input_signature=[tf.TensorSpec([None, 5, 3])])
    assert np.array_equal(function(ones()), dropped(0.5, ones()))


def test_config_round_trip():
    layer = Dropout(0.25, name="mine")
    again = Dropout.from_config(layer.get_config())
    assert (again.rate, again.name) == (0.25, "mine")
    assert keras.layers.deserialize(keras.layers.serialize(layer), {"Dropout": Dropout}).rate == 0.25


def make_model():
    inner = keras.Sequential([keras.layers.Dense(8, kernel_initializer="ones"), Dropout(0.5)])
    model = keras.Sequential([inner, Dropout(0.5), Dropout(0.5), keras.layers.Dense(2, kernel_initializer="ones")])
    model.build([None, 4])
    return model


def draws_of(model):
    state.create(model, optim.Optimizer([(keras.optimizers.SGD(), paths.trainable(model))]), state.new_counter())
    layers = [layer for layer in paths.objects(model).values() if isinstance(layer, Dropout)]
    with rng.scope(KEY, 0):
        return [layer.rng_stream for layer in layers], model(ones((64, 4)), training=True).numpy()


def test_streams_are_paths_apart_in_one_model_and_the_same_in_every_build():
    streams, outputs = draws_of(make_model())
    Dropout(0.1), keras.Sequential([])  # names of what comes next move on
    again, same_outputs = draws_of(make_model())
    assert streams == again == ["dropout", "dropout_1", "sequential/dropout"]
    assert np.array_equal(outputs, same_outputs)
    # 8 units, each kept by three masks of their own: sum / 8 / 4 has mean 1; shared masks would keep half, scaled by 8.
    kept = outputs[:, 0] / (4 * 8)  # multiples of 1/8 of kept units
    assert abs((kept * 8).mean() / 8 - 1) < 4.5 * np.sqrt((8 - 1) / (64 * 8))
    assert np.allclose(kept, np.round(kept))


def test_a_model_called_twice_in_one_scope_draws_twice_and_repeats_in_the_next():
    model = make_model()
    state.create(model, optim.Optimizer([(keras.optimizers.SGD(), paths.trainable(model))]), state.new_counter())
    pairs = []
    for _ in range(2):
        with rng.scope(KEY, 0):
            pairs.append([model(ones((64, 4)), training=True).numpy() for _ in range(2)])
    assert np.array_equal(pairs[0], pairs[1])
    assert not np.array_equal(pairs[0][0], pairs[0][1])


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_masks_do_not_depend_on_the_batch_sizes_a_model_has_seen(mode):
    """Sequential lays itself out anew for a new batch size, and calls its layers for that."""

    def masks(*sizes):
        model = keras.Sequential([keras.layers.Dense(8, kernel_initializer="ones"), Dropout(0.5)])

        def call(size):
            with rng.scope(rng.key(0), 0):
                return model(tf.ones([size, 4]), training=True)

        run = call if mode == "eager" else tf.function(call, autograph=False)
        return [run(size).numpy() for size in sizes][-1]

    assert masks(8).tobytes() == masks(16, 8).tobytes() == masks(16, 8, 8).tobytes()


def test_stochastic_depth_drops_whole_examples_and_keeps_their_mean():
    layer = layers.StochasticDepth(0.2)
    x = np.random.default_rng(0).normal(size=(20_000, 2, 1, 3)).astype(np.float32)
    assert np.array_equal(layer(x), x)
    with rng.scope(rng.key(0), 0):
        found = layer(x, training=True).numpy()
    dropped = np.all(found == 0, axis=(1, 2, 3))
    assert dropped.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / len(x)))
    threshold = rng.threshold(0.2)
    assert np.array_equal(found[~dropped], x[~dropped] * np.float32(2**16 / (2**16 - threshold)))
    again = layers.StochasticDepth.from_config(layer.get_config())
    assert again.rate == 0.2 and "noise_shape" not in layer.get_config()
    with pytest.raises(TypeError, match="noise_shape"):
        layers.StochasticDepth(0.2, noise_shape=(None, 1))

"""framework/layers/keras_draws.py: which layers of Keras draw is said by path, and nets of other code are converted."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, paths, rng
from framework.config import UserError
from framework.data.batches import make_batches
from framework.layers.keras_draws import advice
from tests import small

REFUSED = "draw(s)? random numbers that a resumed run would not draw again"
OTHER_CODE = (
    "; of a model that other code makes, such as keras.applications, framework.layers.with_repeatable_draws(model)."
    " Or type --config.runtime.deterministic=False."
)


def of_sequence(*more):
    return lambda: [keras.layers.Reshape((4, 2)), *(layer() for layer in more)]


def of_picture(*more):
    return lambda: [keras.layers.Reshape((4, 2, 1)), *(layer() for layer in more), keras.layers.Flatten()]


class Attending(keras.layers.Layer):
    def __init__(self, kind, **arguments):
        super().__init__()
        self.inner = kind(**arguments)

    def call(self, x, training=None):
        pair = (x, x) if isinstance(self.inner, keras.layers.MultiHeadAttention) else ([x, x],)
        return self.inner(*pair, training=training)[:, 0]


REPLACED = {
    "Dropout": (lambda: [keras.layers.Dropout(0.5, name="drop")], "drop"),
    "SpatialDropout1D": (
        of_sequence(lambda: keras.layers.SpatialDropout1D(0.5), keras.layers.Flatten),
        "spatial_dropout1d",
    ),
    "SpatialDropout2D": (of_picture(lambda: keras.layers.SpatialDropout2D(0.5)), "spatial_dropout2d"),
    "AlphaDropout": (lambda: [keras.layers.AlphaDropout(0.5)], "alpha_dropout"),
    "GaussianDropout": (lambda: [keras.layers.GaussianDropout(0.5)], "gaussian_dropout"),
    "GaussianNoise": (lambda: [keras.layers.GaussianNoise(0.5)], "gaussian_noise"),
    "LSTM": (of_sequence(lambda: keras.layers.LSTM(8, dropout=0.5)), "lstm"),
    "GRU": (
        of_sequence(
            lambda: keras.layers.Bidirectional(keras.layers.GRU(8, recurrent_dropout=0.5, name="in"), name="both")
        ),
        "both/forward_layer",
    ),
    "SimpleRNN": (of_sequence(lambda: keras.layers.SimpleRNN(8, dropout=0.5)), "simple_rnn"),
    "LSTMCell": (of_sequence(lambda: keras.layers.RNN(keras.layers.LSTMCell(8, dropout=0.5))), "rnn/cell"),
    "RandomFlip": (of_picture(keras.layers.RandomFlip), "random_flip"),
    "RandomRotation": (of_picture(lambda: keras.layers.RandomRotation(0.1)), "random_rotation"),
    "MultiHeadAttention": (
        of_sequence(lambda: Attending(keras.layers.MultiHeadAttention, num_heads=2, key_dim=2, dropout=0.5)),
        "attending/inner",
    ),
    "Attention": (of_sequence(lambda: Attending(keras.layers.Attention, dropout=0.5)), "attending/inner"),
}


def with_layers(make):
    """The layers of `make` between two dense ones."""

    def make_model(cfg):
        return keras.Sequential([keras.layers.Dense(8, name="first"), *make(), keras.layers.Dense(3, name="last")])

    return {"make_model": make_model}


def refusal(functions, **overrides):
    with pytest.raises(UserError) as caught:
        small.build(functions=functions, **overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", REPLACED)
def test_a_layer_of_keras_that_draws_is_refused_by_path(name):
    make, path = REPLACED[name]
    said = refusal(with_layers(make))
    assert said.startswith(f"'{path}' (keras.layers.{name})"), said
    end = OTHER_CODE.partition("draws(model)")[2] if name.startswith("Random") else OTHER_CODE
    assert re.search(f" {REFUSED}. Write framework.layers.{name}{re.escape(end)}$", said), said


def test_all_of_them_are_named_at_once():
    def make():
        return [
            *(keras.layers.Dropout(0.5, name=f"drop_{i}") for i in range(3)),
            keras.layers.GaussianNoise(1, name="noise"),
        ]

    said = refusal(with_layers(make))
    shown = ", ".join(f"'drop_{i}' (keras.layers.Dropout)" for i in range(3))
    assert said.startswith(f"{shown} and 1 more draw random numbers")
    assert "Write framework.layers.Dropout, framework.layers.GaussianNoise;" in said


class OwnNoise(keras.layers.GaussianNoise):
    """A layer of the user's that draws in a way of its own."""

    def __init__(self):
        super().__init__(0.0)
        del self.stddev

    def call(self, inputs, training=None):
        return inputs + self._random_generator.random_normal(tf.shape(inputs)) if training else inputs


def test_layers_that_draw_in_a_way_of_their_own_are_refused_with_a_line_of_their_own():
    def resized():
        return keras.layers.RandomHeight(0.2)

    advices = {
        keras.layers.RandomFlip: "Write framework.layers.RandomFlip.",
        OwnNoise: "Draw with framework.rng instead, in the transform of make_data.",
        resized: "It gives each batch another shape, for which a step would be compiled anew. Write"
        " framework.layers.RandomZoom(factor, 0), which keeps the shape.",
    }
    for make, written in advices.items():
        with pytest.raises(UserError) as caught:
            layers.with_repeatable_draws(keras.Sequential([make()]))
        assert re.fullmatch(
            r"'\w+' \([\w.]+\) cannot be made to draw by example. " + re.escape(written), str(caught.value)
        )
    said = refusal(with_layers(of_picture(resized, lambda: keras.layers.Resizing(4, 2))))
    assert said == (
        f"'random_height' (keras.layers.RandomHeight) draws random numbers that a resumed run would not draw again."
        f" {advices[resized]} Or type --config.runtime.deterministic=False."
    )


def test_what_does_not_draw_passes():
    """A rate of 0, a teacher that is never called in training, and an LSTM without dropout."""
    teacher = keras.Sequential([keras.layers.Dropout(0.5)])

    def make_loss(cfg):
        loss = small.make_loss(cfg)

        def call(model, batch, training):
            teacher(batch["x"], training=False)
            return loss(model, batch, training)

        return call

    make = of_sequence(lambda: keras.layers.Dropout(0.0), lambda: keras.layers.LSTM(4))
    small.build(functions=with_layers(make) | {"make_loss": make_loss})


def test_the_layer_that_draws_is_told_from_the_one_that_does_not():
    def make_model(cfg):
        return {"net": small.make_model(cfg), "teacher": keras.Sequential([keras.layers.Dropout(0.5, name="silent")])}

    assert advice(make_model(FakeConfig), ["net/drop/dropout/RandomUniform"]) == ""
    assert advice(make_model(FakeConfig), ["sequential/silent/dropout/RandomUniform"]).startswith(
        "'teacher/silent' (keras.layers.Dropout) draws"
    )


class FakeConfig:
    class train:
        precision = "float32"


def test_a_net_of_keras_is_converted_in_place_and_trains_what_our_layers_train():
    """The same layers by hand: the same paths, streams, masks and bits."""

    def net(module, convert):
        def make_model(cfg):
            model = keras.Sequential(
                [
                    keras.layers.Reshape((3, 2)),
                    module.SpatialDropout1D(0.3),
                    module.SimpleRNN(4, dropout=0.3, recurrent_dropout=0.3),
                    module.GaussianNoise(0.1),
                    keras.layers.Dense(3),
                ]
            )
            return convert(model)

        return {"make_model": make_model}

    states = []
    for functions in (net(layers, lambda model: model), net(keras.layers, layers.with_repeatable_draws)):
        built = small.build(functions=functions)
        built.train_block(3)
        states.append(small.snapshot(built))
    assert states[0] == states[1]


def test_a_conversion_keeps_layers_paths_weights_and_inference():
    model = keras.Sequential(
        [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.LSTMCell(3, dropout=0.5)][:2]
    )
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 3)), tf.float32)
    before, objects = model(x).numpy(), paths.objects(model)
    assert layers.with_repeatable_draws(model) is model
    assert list(paths.objects(model)) == list(objects) and np.array_equal(model(x), before)
    with rng.scope(rng.key(0), 0):
        kept = model(x, training=True).numpy() != 0
    with rng.scope(rng.key(0), 0):
        assert np.array_equal(kept, rng.keep_mask("dropout", 5, 4, 0.5))


def test_time_distributed_of_keras_around_a_layer_that_draws_is_refused():
    def make(module, rate):
        layer = module.TimeDistributed(layers.Dropout(rate, name="drop"), name="each")
        return with_layers(of_sequence(lambda: layer, keras.layers.Flatten))

    assert refusal(make(keras.layers, 0.5)) == (
        "'each' (keras.layers.TimeDistributed) has a layer that draws, and would draw for rows instead of examples."
        " Write framework.layers.TimeDistributed."
    )
    small.build(functions=make(keras.layers, 0.0))
    small.build(functions=make(layers, 0.5))


# --- a net of keras.applications with weights from a file -------------------------------------------------------------

SIZE = 32


def net(weights):
    return keras.applications.EfficientNetB0(weights=weights, input_shape=(SIZE, SIZE, 3), classes=3)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_a_net_of_keras_applications_trains_from_a_local_file_and_resumes(tmp_path, suffix):
    keras.utils.set_random_seed(5)
    file = tmp_path / f"efficientnet{suffix}"
    origin = net(None)
    origin.save_weights(file)

    def make_model(cfg):
        return layers.with_repeatable_draws(net(str(file)))

    def make_data(cfg, split):
        return make_batches(
            small.examples({}, cfg.seed),
            cfg,
            training=split == "train",
            transform=lambda batch: {**batch, "x": pictures(batch["x"])},
        )

    def pictures(x):
        return 255 * tf.sigmoid(tf.tile(x[:, tf.newaxis, tf.newaxis, :3], [1, SIZE, SIZE, 1]))

    functions = {"make_model": make_model, "make_data": make_data}
    values = {"data.batch_size": 4, "eval.batch_size": 4, "train.compile": "graph"}  # XLA takes minutes to compile it
    whole = small.build(functions=functions, **values)
    x = pictures(tf.constant(np.random.default_rng(0).normal(size=(2, 6)), tf.float32))
    assert np.array_equal(whole.model(x, training=False), origin(x, training=False))
    assert len(paths.variables(whole.model)) == len(origin.variables)
    whole.train_block(1)
    middle = {path: variable.numpy() for path, variable in paths.variables(whole.state).items()}
    whole.train_block(1)

    resumed = small.build(functions=functions, **values)
    for path, variable in paths.variables(resumed.state).items():
        variable.assign(middle[path])
    resumed.train_block(1)
    assert small.snapshot(resumed) == small.snapshot(whole)

"""Private names of tf_keras that framework/compat.py uses."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import compat, layers
from tests.compat.traced import traced


def test_wrap_set_name(monkeypatch):
    for kind in (keras.layers.Layer, compat.Functional):
        monkeypatch.setattr(kind, "_init_set_name", kind._init_set_name)  # is put back afterwards
    seen = []

    def wrap(set_name):
        def noting(layer, name, *args, **kwargs):
            set_name(layer, name, *args, **kwargs)
            seen.append((type(layer).__name__, layer.name))

        return noting

    compat.wrap_set_name(wrap)
    x = keras.Input([1], name="x")
    keras.Model(x, keras.layers.Dense(1, name="dense")(x), name="model")
    assert seen == [("InputLayer", "x"), ("Dense", "dense"), ("Functional", "model")]


def test_set_name():
    layer = keras.layers.Dense(1, name="before")
    compat.set_name(layer, "after")
    assert layer.name == "after"


def test_constructor_arguments():
    assert compat.constructor_arguments(keras.layers.Dense(3, name="own"))["name"] == "own"


def test_is_numbered():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.ReLU()])
    model.build([None, 2])
    names = [name for name in tf.train.TrackableView.children(model) if compat.is_numbered(name)]
    assert sorted(names) == ["layer-0", "layer-1", "layer_with_weights-0"]


def test_flatten_layers():
    inner = keras.Sequential([keras.layers.Dense(3, name="a"), keras.layers.ReLU(name="b")], name="inner")
    model = keras.Sequential([inner, keras.layers.Dense(1, name="c")], name="outer")
    assert [layer.name for layer in compat.flatten_layers(model)] == ["outer", "inner", "a", "b", "c"]


def test_set_dtype_policy():
    layer = keras.layers.Dense(2, dtype="mixed_bfloat16")
    layer.build([None, 3])
    assert layer(tf.zeros([1, 3])).dtype == tf.bfloat16
    compat.set_dtype_policy(layer, "float32")
    assert layer(tf.zeros([1, 3])).dtype == tf.float32


def test_full_value():
    layer = keras.layers.Dense(1, use_bias=False, dtype="mixed_bfloat16")
    seen = []
    layer.build([None, 3])
    layer.kernel.assign([[1 + 2**-20]] * 3)
    original = layer.call
    layer.call = lambda x: (seen.append(compat.full_value(layer.kernel)), original(x))[1]
    assert layer(tf.zeros([1, 3])).dtype == tf.bfloat16
    assert seen[0].dtype == tf.float32 and float(seen[0][0, 0]) == 1 + 2**-20
    plain = tf.Variable([1.0, 2.0])
    np.testing.assert_array_equal(compat.full_value(plain), [1, 2])


def test_copy_mask():
    ids = tf.constant([[1, 0]])
    embedded = keras.layers.Embedding(3, 2, mask_zero=True)(ids)
    tensor = compat.copy_mask(embedded, tf.identity(embedded))
    pooled = keras.layers.GlobalAveragePooling1D()  # averages the places whose mask is True
    np.testing.assert_array_equal(pooled(tensor), embedded[:, 0])
    assert compat.copy_mask(ids, tensor) is tensor


class Adding(keras.layers.Layer):
    """Adds the sum of its inputs to the loss."""

    def call(self, inputs):
        self.add_loss(tf.reduce_sum(inputs))
        return inputs


def test_call_losses():
    layer = Adding()
    layer(tf.ones([2, 3]))
    assert [float(loss) for loss in compat.call_losses(layer)] == [6.0]


def test_symbolic_losses():
    x = keras.Input([3])
    model = keras.Model(x, keras.layers.ReLU()(x))
    model.add_loss(tf.reduce_sum(model.output))
    held = [layer for layer in compat.flatten_layers(model) if compat.symbolic_losses(layer)]
    assert len(held) == 1


def test_callable_losses():
    layer = keras.layers.Dense(
        1, use_bias=False, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(0.5)
    )
    layer.build([None, 3])
    assert [float(loss()) for loss in compat.callable_losses(layer)] == [1.5]  # 0.5 * (1 + 1 + 1)
    mark = lambda: tf.constant(7.0)  # noqa: E731
    compat.callable_losses(layer).append(mark)
    assert [float(loss) for loss in layer.losses] == [1.5, 7.0]


def test_replace_activity():
    layer, seen = keras.layers.Dense(2, activity_regularizer=keras.regularizers.L2(1.0)), []
    compat.replace_activity(layer, lambda layer, inputs, outputs: seen.append((layer, inputs.shape, outputs.shape)))
    layer(tf.ones([4, 3]))
    traced(layer, tf.TensorSpec([4, 3]))
    assert seen == [(layer, (4, 3), (4, 2))] * 2 and not layer.losses


def test_add_activity():
    layer = keras.layers.ReLU(activity_regularizer=keras.regularizers.L2(0.5))
    compat.replace_activity(layer, compat.add_activity)
    layer(tf.fill([4, 2], 3.0))
    assert [float(loss) for loss in layer.losses] == [9.0]  # 0.5 * 8 * 9 / 4, the mean over the batch


def test_MultiHeadAttention():
    calls = []

    class Noting(compat.MultiHeadAttention):
        def on_projections(self):
            calls.append([layer.name for layer in self.projections()])

        def make_dropout(self, rate):
            calls.append(rate)
            return layers.Dropout(rate)

        def attend(self, query, key, value, attention_mask=None, training=None):
            calls.append((query.shape, self.depth, training))
            return super().attend(query, key, value, attention_mask, training)

        def masked_softmax(self, scores, attention_mask):
            calls.append(self.of_heads(attention_mask, scores.shape.rank).shape)
            return super().masked_softmax(scores, attention_mask)

        def drop(self, probabilities, training):
            raise AssertionError("tf_keras calls its own")

    x = tf.random.normal([2, 5, 4])
    layer, plain = Noting(2, 3, dropout=0.25), keras.layers.MultiHeadAttention(2, 3)
    ours = layer(x, x, use_causal_mask=True)
    plain(x, x)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(ours, plain(x, x, use_causal_mask=True))
    assert calls[:2] == [0.25, ["query", "key", "value", "attention_output"]]
    assert calls[2][:2] == ((2, 5, 2, 3), 3) and calls[3] == (1, 1, 5, 5)
    layer.build_projections(x, x, x)
    assert len(layer.weights) == 8 and calls.count(0.25) == 1
    mask = layer.merged_mask(x, x, x, tf.constant([[[True, False, True, True, True]]]), True)
    np.testing.assert_array_equal(mask, np.tril(np.ones([1, 5, 5], bool)) & (np.arange(5) != 1))
    scores = tf.random.normal([2, 2, 5, 5])
    masked = layer.masked_softmax(scores, tf.ones([2, 5, 5], tf.bool))
    np.testing.assert_allclose(masked, tf.nn.softmax(scores), rtol=1e-6)


def built(kind, *variables):
    optimizer = kind(learning_rate=0.5)
    optimizer.build(list(variables))
    return optimizer


def test_GROUP_METHODS():
    called = []

    def noting(name):
        def method(self, *args, **kwargs):
            called.append(name)
            return getattr(keras.optimizers.SGD, name)(self, *args, **kwargs)

        return method

    kind = type("Noting", (keras.optimizers.SGD,), {name: noting(name) for name in compat.GROUP_METHODS})
    variable = tf.Variable([1.0])
    built(kind, variable).apply_gradients([(tf.ones([1]), variable)], skip_gradients_aggregation=True)
    assert sorted(called) == sorted(compat.GROUP_METHODS)


def test_learning_rate_of():
    rate = keras.optimizers.schedules.CosineDecay(0.25, 10)
    assert compat.learning_rate_of(keras.optimizers.SGD(learning_rate=rate)) is rate
    assert compat.learning_rate_of(object()) is None


def test_set_learning_rate():
    class Own(keras.optimizers.Optimizer):
        def __init__(self):
            super().__init__(name="own")
            compat.set_learning_rate(self, 0.25)

    assert float(Own().learning_rate) == 0.25


def test_is_built():
    optimizer = keras.optimizers.Adam()
    assert not compat.is_built(optimizer)
    optimizer.build([tf.Variable([1.0])])
    assert compat.is_built(optimizer)


def test_set_built():
    optimizer = keras.optimizers.SGD(momentum=0.5)
    compat.set_built(optimizer)
    assert compat.is_built(optimizer)


def test_slot_index():
    first, second = tf.Variable([1.0]), tf.Variable([1.0, 2.0])
    optimizer = built(keras.optimizers.Adam, first, second)
    assert [compat.slot_index(optimizer, variable) for variable in (second, first)] == [1, 0]


def test_adam_slots():
    first, second = tf.Variable([1.0]), tf.Variable([1.0, 2.0])
    optimizer = built(keras.optimizers.Adam, first, second)
    optimizer.apply_gradients([(tf.constant([1.0]), first), (tf.constant([2.0, 3.0]), second)])
    mean, square = compat.adam_slots(optimizer, second)
    np.testing.assert_allclose(mean, [0.2, 0.3], rtol=1e-6)  # (1 - 0.9) g
    np.testing.assert_allclose(square, [0.004, 0.009], rtol=1e-5)  # (1 - 0.999) g^2


def test_undecayed_names():
    optimizer, bias, kernel = (
        keras.optimizers.AdamW(),
        tf.Variable([1.0], name="bias"),
        tf.Variable([1.0], name="kernel"),
    )
    assert not compat.undecayed_names(optimizer)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert list(compat.undecayed_names(optimizer)) == ["bias"]
    assert [compat.is_decayed(optimizer, variable) for variable in (bias, kernel)] == [False, True]


def test_seeded_initializers():
    initial = lambda: keras.initializers.GlorotUniform()([3]).numpy()  # noqa: E731
    keras.utils.set_random_seed(1)
    undisturbed = [initial(), initial()]
    keras.utils.set_random_seed(1)
    first = initial()
    with compat.seeded_initializers(5):
        seeded = initial()
    assert np.array_equal([first, initial()], undisturbed)
    with compat.seeded_initializers(5):
        assert np.array_equal(initial(), seeded)
    with compat.seeded_initializers(6):
        assert not np.array_equal(initial(), seeded)


class Kept(list):
    """Masks of a cell that are all 2."""

    def clear(self):
        self.append("cleared")

    def setdefault(self, *, kwargs):
        return [tf.fill(tf.shape(kwargs["inputs"]), 2.0)] * kwargs["count"]


def test_brightness_factor_and_range():
    layer = keras.layers.RandomBrightness(0.25, value_range=(-1, 3))
    assert compat.brightness_factor(layer) == (-0.25, 0.25)
    assert compat.brightness_range(layer) == (-1, 3)


def test_wrap_masks():
    cells = keras.layers.LSTMCell(1, dropout=0.5), keras.layers.LSTMCell(1)
    state = [tf.zeros([1, 1])] * 2
    for cell in cells:
        cell.build([None, 1])
        cell.set_weights([np.ones([1, 4]), np.ones([1, 4]), np.zeros(4)])
    compat.wrap_masks(cells[0], lambda draw: Kept())
    compat.wrap_masks(keras.layers.Dense(1), lambda draw: Kept())
    doubled = cells[1](tf.fill([1, 1], 2.0), state)[0]
    np.testing.assert_allclose(cells[0](tf.ones([1, 1]), state, training=True)[0], doubled, rtol=1e-6)


def test_forget_masks():
    layer, made = keras.layers.SimpleRNN(1, dropout=0.5), []
    compat.wrap_masks(layer.cell, lambda draw: made.append(Kept()) or made[-1])
    compat.forget_masks(layer)
    assert made == [["cleared"], ["cleared"]]


def test_reshape_always():
    shapes = []

    class Looking(keras.layers.Layer):
        def call(self, inputs):
            shapes.append(inputs.shape.as_list())
            return inputs

    layer = keras.layers.TimeDistributed(Looking())
    compat.reshape_always(layer)
    layer(tf.zeros([2, 3, 4]))
    assert shapes == [[6, 4]]

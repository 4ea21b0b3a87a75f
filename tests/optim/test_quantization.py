"""framework/optim/fake_quantization.py and quantized_layers.py against formulas in NumPy float64."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import layers, optim
from framework.config import UserError, base_config
from framework.optim.fake_quantization import Observer, fake_quantized, fake_quantized_kernel
from framework.optim.quantized_layers import kernel_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 40)) * 2


def rounded(x, low, high, first=0):
    """Returns the nearest of the levels `first` … 255 of [low, high], moved so that a level is 0."""
    scale = np.maximum((high - low) / (255 - first), 1e-300)
    zero = np.clip(np.floor(first - low / scale + 0.5), first, 255)
    return (np.clip(np.floor(x / scale + 0.5) + zero, first, 255) - zero) * scale


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 2e-6), ("float64", 1e-12)])
@pytest.mark.parametrize(("low", "high"), [(-1.7, 3.1), (0.0, 2.0), (-3.0, 0.0)])
def test_activations_are_rounded_as_the_formula_says(jit, dtype, error, low, high):
    """The gradient is 1 between the outermost levels, and 0 outside."""

    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = fake_quantized(x, tf.constant(low, dtype), tf.constant(high, dtype))
        return y, tape.gradient(y, x, tf.cast(X, dtype))

    y, gradient = tf.function(both, jit_compile=jit)(tf.constant(X, dtype))
    wanted = rounded(X, low, high)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=error * (high - low))
    lowest, highest = rounded(np.array([-99.0, 99.0]), low, high)
    inside = (lowest <= X) & (highest >= X)
    np.testing.assert_allclose(gradient, np.where(inside, X, 0), rtol=1e-6)
    assert 0.05 < np.mean(~inside) < 0.95


def test_half_precision_is_rounded_in_float32():
    x = tf.cast(X, tf.bfloat16)
    y = fake_quantized(x, tf.constant(-1.7), tf.constant(3.1))
    wanted = tf.cast(rounded(tf.cast(x, tf.float64).numpy(), -1.7, 3.1), tf.bfloat16)
    np.testing.assert_array_equal(tf.cast(y, tf.float32), tf.cast(wanted, tf.float32))


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-12)])
def test_a_kernel_is_rounded_by_channel_around_0(jit, dtype, error):
    kernel = RNG.normal(size=(3, 3, 4, 5)) * np.array([0.1, 1, 10, 3, 0])  # the last channel is 0

    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = fake_quantized_kernel(x, 3)
        return y, tape.gradient(y, x)

    y, gradient = tf.function(both, jit_compile=jit)(tf.constant(kernel, dtype))
    bound = np.abs(kernel).max((0, 1, 2))
    wanted = rounded(kernel.reshape(36, 5), -bound, bound, first=1)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=error * 10)
    levels = np.round(y.numpy()[:, :4] / (bound[:4] / 127))
    assert levels.min() == -127 or levels.max() == 127
    np.testing.assert_array_equal(gradient, np.ones(kernel.shape))


def test_a_factor_of_a_channel_commutes_with_the_rounding():
    """So a BatchNormalization that is folded into a kernel changes no level."""
    kernel, factor = RNG.normal(size=(7, 4)), np.array([2.0, -0.3, 5.0, 1e-3])
    one = fake_quantized_kernel(tf.constant(kernel * factor), 1)
    other = fake_quantized_kernel(tf.constant(kernel), 1) * factor
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_the_observer_takes_the_extremes_of_all_calls_and_leaves_padding_out():
    observer = Observer(("a", "b", "c"), {"weight": tf.constant([1.0, 1.0, 0.0])})
    observer.add("a", tf.constant([[1.0], [2.0], [-9.0]]))
    observer.add("a", tf.constant([[-3.0], [1.0], [9.0]]))
    observer.add("b", tf.constant([5.0, 4.0]))  # rows are not the first axis
    np.testing.assert_array_equal(observer.extremes(tf.float64), [3, 2, 0, 5, 0, 0])


def test_a_layer_in_a_loop_is_refused():
    def inside():
        observer = Observer(("a/output",), {})
        tf.while_loop(lambda i: i < 2, lambda i: (observer.add("a/output", tf.ones([2])), i + 1)[1:], [0])
        return observer.extremes(tf.float32)

    with pytest.raises(
        UserError, match=r"^quantize\.name='int8': 'a/output' is computed inside a tf\.function, tf\.cond or"
    ):
        tf.function(inside, autograph=False).get_concrete_function()


def built(layer, *shape):
    layer(tf.zeros([2, *shape]))
    return layer


class Own(keras.layers.Dense):
    """A layer with a call of its own."""

    def call(self, inputs):
        return super().call(inputs) * 2


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (lambda: built(keras.layers.Dense(3), 5), ("kernel", 1)),
        (lambda: built(keras.layers.Conv2D(3, 2), 4, 4, 2), ("kernel", 3)),
        (lambda: built(keras.layers.DepthwiseConv2D(2, depth_multiplier=2), 4, 4, 2), ("depthwise_kernel", 2)),
        (lambda: built(keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), 4, 5), ("kernel", 1)),
        (lambda: built(keras.layers.EinsumDense("abcd,cde->abe", (None, 3)), 4, 5, 2), ("kernel", 2)),
        (lambda: built(keras.layers.EinsumDense("abc,bd->adc", (3, 5)), 4, 5), None),  # the product of other axes
        (lambda: built(keras.layers.Embedding(7, 3)), ("embeddings", 0)),
        (lambda: built(Own(3), 5), None),
        (lambda: built(keras.layers.Conv2DTranspose(3, 2), 4, 4, 2), None),
        (lambda: built(keras.layers.SeparableConv2D(3, 2), 4, 4, 2), None),
        (lambda: built(keras.layers.LayerNormalization(), 5), None),
    ],
)
def test_which_layers_have_a_kernel_that_is_rounded(layer, kernel):
    found = kernel_of(layer())
    assert (found and (found.name, found.summed)) == kernel


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.layers.Dense(3, "tanh"), (5,)),
        (lambda: keras.layers.Dense(3, use_bias=False), (4, 5)),
        (lambda: keras.layers.Conv2D(3, 2, strides=2, padding="same"), (4, 4, 2)),
        (lambda: keras.layers.DepthwiseConv2D(2, depth_multiplier=2), (4, 4, 2)),
        (lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), (4, 5)),
        (lambda: keras.layers.EinsumDense("abcd,cde->abe", (None, 3), bias_axes="e"), (4, 5, 2)),
    ],
)
def test_the_product_is_that_of_the_layer_with_a_rounded_kernel(make, shape):
    layer, x = make(), tf.constant(RNG.normal(size=(2, *shape)), tf.float32)
    layer(x)
    if layer.use_bias if hasattr(layer, "use_bias") else layer.bias is not None:
        layer.bias.assign(RNG.normal(size=layer.bias.shape))
    kernel = kernel_of(layer)
    product = kernel.product(layer, x, tf.constant(True))
    variable = getattr(layer, kernel.name)
    assert variable is not None and kernel.product(layer, x, tf.constant(False)).shape == product.shape
    flat = variable.numpy().astype(np.float64).reshape(int(np.prod(variable.shape[: kernel.summed])), -1)
    bound = np.abs(flat).max(0)
    variable.assign(rounded(flat, -bound, bound, first=1).reshape(variable.shape))
    activation, layer.activation = layer.activation, keras.activations.linear
    np.testing.assert_allclose(product, layer(x), rtol=1e-5, atol=1e-5)
    assert activation is not None


def plan(model, **settings):
    section = {**base_config().quantize, "name": "int8", "begin": 0, "freeze": 0, **settings}
    return optim.Plan(ConfigDict(section), model)


def points(model, *shape, dtype="float32", **settings):
    """Returns where the activations of a model have ranges."""
    model(tf.zeros([2, *shape], dtype))
    planned = plan(model, **settings)
    with planned.watched():
        function = tf.function(lambda x: model(x, training=True), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec([2, *shape], dtype)).graph
    return planned.quantizer(graph).points


def residual():
    x = inputs = keras.Input([4, 4, 2])
    y = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(2, 1, name="conv")(x))
    y = keras.layers.ReLU(name="relu")(y)
    y = keras.layers.ReLU(name="sum_relu")(keras.layers.Add(name="sum")([x, y]))
    y = keras.layers.Dropout(0.5, name="drop")(keras.layers.Flatten(name="flat")(y))
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="head")(y))


def test_ranges_stand_where_the_converter_joins_nothing():
    """A convolution with its BatchNormalization and ReLU is one operation, and so is a sum with its ReLU."""
    assert points(residual(), 4, 4, 2) == (
        *("conv/input", "head/product"),
        *("relu/output", "sum_relu/output", "head/output"),
    )


def test_layers_that_are_left_out_have_no_range():
    assert points(residual(), 4, 4, 2, include="head|flat") == ("head/input", "head/product", "head/output")
    assert "head/input" not in points(residual(), 4, 4, 2, exclude="head")


def test_the_blocks_and_projections_of_the_framework_are_quantised(caplog):
    block = keras.Sequential([layers.BasicBlock(4, stride=2, name="block"), keras.layers.Dense(3, name="head")])
    found = points(block, 4, 4, 2)
    assert {"block/conv_1/input", "block/conv_2/input", "block/norm_2/output", "block/output"} <= {*found}
    assert not {"block/conv_1/output", "block/norm_1/output", "head/input"} & {*found}

    class Encoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = layers.TiedEmbedding(7, 8)
            self.attention = layers.MultiHeadAttention(2, 4)

        def call(self, ids, training=None):
            x = self.embed(ids)
            return self.attention(x, x)

    found = points(Encoder(), 5, dtype="int32")
    of_attention = ("_query_dense", "_key_dense", "_value_dense", "_softmax", "_output_dense")
    assert {f"attention/{name}/output" for name in of_attention} <= {*found}
    assert any(line.startswith("quantize: embed (TiedEmbedding) are trained in float; ") for line in caplog.messages)


def test_what_cannot_be_quantised_is_refused_if_it_is_named():
    model = keras.Sequential([layers.TiedEmbedding(7, 4, name="embed"), keras.layers.Dense(3, name="head")])
    model(tf.zeros([2, 5], tf.int32))
    for settings, message in (
        (
            {"include": "embed|head"},
            "quantize.include='embed|head' names embed (TiedEmbedding), which cannot be quantised. Those that can are"
            " head. Leave others out by quantize.exclude.",
        ),
        (
            {"include": "haed"},
            "quantize.include='haed' matches none of the layers; those that can be quantised are: head. Did you mean"
            " 'head'? A regex must match a whole path.",
        ),
        (
            {"exclude": "head"},
            "quantize.name='int8': no layer is quantised. Those that can be are head: dense, einsum, convolution,"
            " depthwise convolution and embedding layers of Keras, whose call is that of Keras.",
        ),
    ):
        with pytest.raises(UserError) as error:
            plan(model, **settings)
        assert str(error.value) == message


def test_a_layer_that_the_loss_calls_in_a_loop_is_refused():
    class Looped(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(3, name="inner")
            self.head = keras.layers.Dense(3, name="head")

        def call(self, x, training=None):
            return self.head(tf.while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, self.inner(x)), [0, x])[1])

    model = Looped()
    model.inner.build([None, 3])
    with pytest.raises(UserError) as error:
        points(model, 3)
    assert str(error.value) == (
        "quantize.name='int8': the loss does not call inner, or inside a tf.function, tf.cond or tf.while_loop, where"
        " ranges of activations cannot be seen. Leave these out by --config.quantize.exclude='inner'."
    )
    assert points(model, 3, exclude="inner") == ("head/input", "head/output")

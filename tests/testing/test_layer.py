"""`testing.check_layer` passes a right layer, and names the check that each planted fault fails."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, rng, testing
from framework.compile import is_in_xla
from framework.testing.layer import CHECKS

X = np.random.default_rng(0).normal(size=(4, 5))


class Scale(keras.layers.Layer):
    """A layer that is right: a weight for each feature, and an exponent."""

    def __init__(self, exponent=1, **kwargs):
        super().__init__(**kwargs)
        self.exponent = exponent

    def build(self, shape):
        self.scale = self.add_weight("scale", shape[1:], initializer="random_normal")

    def call(self, x, training=None):
        return x**self.exponent * self.scale

    def get_config(self):
        return {**super().get_config(), "exponent": self.exponent}


def fails(check, make, *details, **arguments):
    """Asserts that the layer fails this check, and with which details."""
    with pytest.raises(AssertionError) as caught:
        testing.check_layer(make, [X], **{"thorough": False} | arguments)
    message = str(caught.value)
    assert message.startswith(f"{type(make()).__name__} fails the check '{check}': "), message
    for detail in details:
        assert detail in message


# ---- What is right passes ----


def test_a_right_layer_passes_every_check():
    before = np.random.get_state()[1].tobytes()
    testing.check_layer(lambda: Scale(3), [X])
    assert np.random.get_state()[1].tobytes() == before


def test_integer_inputs_pass_and_several_outputs():
    class Both(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight("table", [6, 2], initializer="random_normal")

        def call(self, ids, training=None):
            return {"ids": ids, "vectors": tf.gather(self.table, ids)}

    testing.check_layer(Both, [np.array([0, 3, 3, 5])], thorough=False)


def test_a_composite_layer_that_draws_and_normalizes_passes_but_for_the_replicas():
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = [keras.layers.Dense(3), keras.layers.BatchNormalization(), layers.Dropout(0.3)]

        def call(self, x, training=None):
            for part in self.parts:
                x = part(x, training=training) if part is not self.parts[0] else part(x)
            return x

    exempt = {"replicas": "BatchNormalization takes the statistics of the examples of a replica"}
    testing.check_layer(Block, [X], training_differs=True, exempt=exempt, thorough=False)
    fails("replicas", Block, "one device and two halves of the batch disagree", training_differs=True)


# ---- What is wrong is named ----


def test_a_layer_that_ignores_training():
    class Always(layers.Dropout):
        def call(self, x, training=None):
            return super().call(x, training=True)

    class Never(layers.Dropout):
        def call(self, x, training=None):
            return super().call(x, training=False)

    fails("training", lambda: Always(0.5), "draws random numbers outside of rng.scope", training_differs=True)
    fails("training", lambda: Never(0.5), "the outputs in training and in inference are equal", training_differs=True)


def test_a_difference_that_is_not_declared():
    fails("training", lambda: layers.Dropout(0.5), "training and inference disagree: output 0[", "the bound is 0")


def test_a_layer_that_counts_in_inference():
    class Counts(keras.layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight("calls", (), initializer="zeros", trainable=False)

        def call(self, x, training=None):
            self.calls.assign_add(1.0)
            return x

    fails("training", Counts, "variables before inference and those after it disagree: 'calls' after the call is ")


def test_a_layer_that_loses_an_argument_in_its_config():
    class Forgets(Scale):
        def get_config(self):
            return keras.layers.Layer.get_config(self)

    class Changes(Scale):
        def __init__(self, exponent=1, **kwargs):
            super().__init__(exponent + 1, **kwargs)

    class Requires(Forgets):
        def __init__(self, exponent, **kwargs):
            super().__init__(exponent, **kwargs)

    fails("config", lambda: Forgets(3), "the layer and the layer from its config disagree: output 0 in ", "equal bits")
    fails("config", lambda: Changes(2), "config['exponent'] is 3, and 4 after from_config")
    fails("config", lambda: Requires(3), "TypeError: ", "missing 1 required positional argument: 'exponent'")


def test_a_layer_that_computes_in_float32_under_float64():
    class Inside(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.cast(tf.sin(tf.cast(x, tf.float32)), x.dtype)

    class Outside(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.cast(x, tf.float32)

    class Weight(keras.layers.Layer):
        def build(self, shape):
            self.shift = self.add_weight("shift", shape[1:], dtype="float32")

        def call(self, x, training=None):
            return x + tf.cast(self.shift, x.dtype)

    fails("gradients", Inside, "gradient by inputs[0] along direction ", "rounds to float32")
    fails("precision", Outside, "output 0 is float32 in precision float64, not float64")
    fails("precision", Weight, "variable 'shift' is float32 in precision float64, not float64")


def test_a_layer_that_overflows_or_is_wrong_in_half_precision():
    class Large(keras.layers.Layer):
        def call(self, x, training=None):
            return x * 1e5 / 1e5

    class Coarse(keras.layers.Layer):
        def call(self, x, training=None):
            return x + tf.cast(x.dtype == tf.bfloat16, x.dtype)

    fails("precision", Large, "output 0[0, 0] is ", "in precision float16, not finite")
    fails("precision", Coarse, "float32 and bfloat16 disagree: output 0[")


def test_a_layer_that_draws_by_numpy_or_tensorflow():
    class ByNumpy(keras.layers.Layer):
        def call(self, x, training=None):
            return x * np.random.uniform(0.5, 2, size=5) if training else x

    class ByTensorFlow(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.nn.dropout(x, 0.5) if training else x

    for kind in (ByNumpy, ByTensorFlow):
        fails("draws", kind, "one call in training and the same call again disagree: output 0[", training_differs=True)


def test_a_layer_that_draws_the_same_at_every_step():
    class Fixed(keras.layers.Layer):
        def call(self, x, training=None):
            if not training:
                return x
            with rng.scope(rng.key(0), 0):
                rng.uniform("fixed", 4, 5)
            noise = rng.uniform("noise", 4, 5)
            return x + tf.cast(noise * 0.0, x.dtype)

    fails("draws", Fixed, "the outputs of step 0 and step 1 are equal", training_differs=True)


def test_a_wrong_custom_gradient():
    class Wrong(keras.layers.Layer):
        def call(self, x, training=None):
            @tf.custom_gradient
            def sine(x):
                return tf.sin(x), lambda upstream: upstream * tf.cos(x) * 1.0001

            return sine(x)

    fails("gradients", Wrong, "gradient by inputs[0] along direction ", " by the tape, ", "the bound is")
    fails("gradients", Wrong, "gradient by inputs[0][", thorough=True)


def test_a_weight_without_a_gradient():
    class Stopped(Scale):
        def call(self, x, training=None):
            return x * tf.stop_gradient(self.scale)

    fails("gradients", Stopped, "gradient by scale along direction ", "The tape gave None")


def test_a_weight_that_is_never_read():
    class Spare(Scale):
        def build(self, input_shape):
            super().build(input_shape)
            self.spare = self.add_weight("spare", [3])

    fails("gradients", Spare, "the trained weight 'spare' has a gradient of 0 in every element")


def test_a_layer_that_bakes_a_batch_size_in():
    class Reshaped(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.reshape(x, [x.shape[0], 5])

    class Built(keras.layers.Layer):
        def build(self, shape):
            self.examples = shape[0]

        def call(self, x, training=None):
            return x / self.examples * tf.cast(tf.shape(x)[0], x.dtype)

    class Padded(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.slice(tf.concat([x, x], 0), [0, 0], [4, 5])

    fails("graph", Reshaped, "TypeError: ", "None")
    fails("replicas", Built, "one device and two halves of the batch disagree: output 0[")
    fails("graph", Padded)


def test_a_layer_that_mixes_the_examples_of_a_batch():
    class Centred(keras.layers.Layer):
        def call(self, x, training=None):
            return x - tf.reduce_mean(x, axis=0)

    class Summed(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.reduce_sum(x)

    fails("replicas", Centred, "one device and two halves of the batch disagree: output 0[")
    fails("graph", Summed)


def test_a_penalty_that_grows_with_the_batch():
    class Penalised(Scale):
        def call(self, x, training=None):
            self.add_loss(tf.reduce_sum(x**2))
            return super().call(x)

    class Right(Scale):
        def call(self, x, training=None):
            self.add_loss(tf.reduce_mean(x**2))
            self.add_loss(tf.reduce_sum(x**2, 1))
            self.add_loss(tf.reduce_sum(self.scale**2))
            return super().call(x)

    total, half = np.sum(X**2), np.sum(X**2) / 2
    told = f"what layers add to the loss is {total:.6g} over a batch and {half:.6g} over its two halves: it grows"
    fails("replicas", Penalised, told)
    testing.check_layer(Right, [X], thorough=False)


def test_a_layer_that_looks_where_it_runs():
    class Graph(keras.layers.Layer):
        def call(self, x, training=None):
            return x * (1 + 1e-9 * tf.inside_function())

    class Xla(keras.layers.Layer):
        def call(self, x, training=None):
            return x * (1 + 1e-9 * is_in_xla())

    fails("graph", Graph, "eager and graph disagree: output 0[", "the bound is ")
    fails("xla", Xla, "eager and xla disagree: output 0[", "the bound is ")


def test_weights_that_are_not_saved():
    hidden = {}

    class Hides(keras.layers.Layer):
        def call(self, x, training=None):
            if x.dtype not in hidden:
                hidden[x.dtype] = tf.Variable(tf.ones(5, x.dtype), name="hidden")
            return x * hidden[x.dtype]

    fails("weights", Hides, "reads the variable 'hides/hidden:0', which is no attribute of the layer")


def test_weights_that_keras_does_not_save():
    class Sized(tf.Module):
        def __init__(self, size, dtype):
            super().__init__()
            self.weight = tf.Variable(tf.ones(size, dtype))

    class Holds(keras.layers.Layer):
        def build(self, shape):
            self.inner = tf.train.Checkpoint(part=Sized(shape[1:], self.dtype))

        def call(self, x, training=None):
            return x * tf.cast(self.inner.part.weight, x.dtype)

    fails("weights", Holds, "the layer and one restored from save_weights in HDF5 disagree: inner/part/weight[")


def test_an_op_that_litert_does_not_have():
    class Spectrum(keras.layers.Layer):
        def call(self, x, training=None):
            return tf.linalg.svd(x[:, tf.newaxis], compute_uv=False)

    others = {check: "not what this test is of" for check in CHECKS if check != "lite"}
    fails("lite", Spectrum, "LiteRT does not have Svd", exempt=others, thorough=True)
    exempt = others | {"lite": "LiteRT has no Svd"}
    del exempt["saved_model"]
    testing.check_layer(Spectrum, [X], exempt=exempt)


# ---- What is refused ----


@pytest.mark.parametrize("returned", [None, []])
def test_a_call_without_outputs_fails(returned):
    class Silent(keras.layers.Layer):
        def call(self, x, training=None):
            return returned

    with pytest.raises(AssertionError, match=f"'build': a call returned {re.escape(repr(returned))}, which has no"):
        testing.check_layer(Silent, [X])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exempt": {"grads": "why"}}, "exempt: there is no check 'grads'."),
        ({"exempt": {"lite": ""}}, "exempt['lite'] has no reason; write why the layer cannot pass the check"),
        ({"inputs": [X[:1]]}, "inputs need at least two examples each"),
        ({"inputs": []}, "inputs need at least two examples each"),
    ],
)
def test_what_cannot_be_checked(arguments, message):
    with pytest.raises(ValueError) as caught:
        testing.check_layer(**{"make": Scale, "inputs": [X]} | arguments)
    assert str(caught.value).startswith(message)

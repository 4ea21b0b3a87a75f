"""What is planted in a step is what is named: the batch, a variable, a layer, forwards or backwards, a term."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import losses, paths
from framework.step.diagnose import diagnose, look
from tests import small
from tests.small import BATCH, HOT, differing, snapshot

LAYERS = 4
HEALTHY = "an eager re-run of the step is finite: only the compiled one, or the norm of all gradients, is not"


def build(**settings):
    """A run whose steps are eager, as is what looks at one that is not finite: nothing is traced for it."""
    return small.build(**{"train.compile": "eager", **settings})


def forwards(values, mark):
    """NaN for the marked examples."""
    return tf.where(mark > 0, math.nan, values)


def backwards(values, mark):
    """`values`, whose gradient is infinite for the marked examples."""

    @tf.custom_gradient
    def planted(x):
        return tf.identity(x), lambda upstream: tf.where(mark > 0, math.inf, upstream)

    return planted(values)


class Passing(keras.layers.Layer):
    """A dense layer that hands the last column, the mark, on as it is; `plant` goes bad where it is set."""

    def __init__(self, units, plant=None, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.plant = keras.layers.Dense(units), plant

    def call(self, inputs):
        mark = tf.stop_gradient(inputs[:, -1:])
        values = self.dense(inputs[:, :-1])
        values = values if self.plant is None else self.plant(values, mark)
        return tf.concat([values, mark], axis=1)


def make_loss(cfg):
    def loss(model, batch, training):
        outputs = model(tf.concat([batch["x"], batch["heat"][:, tf.newaxis]], axis=1), training=training)
        return {"ce": losses.sparse_cross_entropy(outputs[:, :-1], batch["label"], batch["weight"])}, {}

    return loss


def planted(plant, at, heat, nested=False, **overrides):
    """A run of four layers, the one at `at` planted, or with all of them in a block of a block."""

    def make_model(cfg):
        stack = [Passing(3, plant if i == at else None, name=f"layer{i}") for i in range(LAYERS)]
        if nested:
            return keras.Sequential([stack[0], keras.Sequential([keras.Sequential(stack[1:], name="in")], name="out")])
        return keras.Sequential(stack)

    return build(heat=heat, functions={"make_model": make_model, "make_loss": make_loss}, **overrides)


def found(built):
    """The finding, after making sure that looking for it has changed nothing."""
    layers = {
        path: child for path, child in paths.objects(built.model).items() if isinstance(child, keras.layers.Layer)
    }
    before, calls = snapshot(built), {path: layer.__dict__.get("call") for path, layer in layers.items()}
    finding = diagnose(built.train_block)
    assert differing(before, snapshot(built)) == set()
    assert {path: layer.__dict__.get("call") for path, layer in layers.items()} == calls
    return finding


@pytest.mark.parametrize(("layer", "micro_batches"), [(0, 1), pytest.param(3, 1, marks=pytest.mark.slow), (2, 4)])
def test_a_nan_of_a_layers_output(layer, micro_batches):
    """Of one example, in the second micro-batch where there are four."""
    settings = {"train.micro_batches": micro_batches, "train.compile": "graph"}
    built = planted(forwards, layer, {(1, 5): 1.0}, **settings)
    block = built.train_block(10)
    assert block.is_halted and int(built.state.step) == 1
    assert found(built) == f"layer 'layer{layer}': its output is not finite, its inputs are"


@pytest.mark.parametrize(("layer", "micro_batches"), [(1, 1), pytest.param(3, 1, marks=pytest.mark.slow), (2, 4)])
def test_a_gradient_that_a_layer_makes_infinite(layer, micro_batches):
    built = planted(backwards, layer, {(1, 5): 1.0}, **{"train.micro_batches": micro_batches})
    assert math.isfinite(built.train_block(10).row(1)["loss"]) and int(built.state.step) == 1
    finding = found(built)
    # The planted gradient reaches the dense layer inside, and leaves both.
    assert finding == f"layer 'layer{layer}/dense': the gradient that reaches it backwards is not finite already"


def test_a_gradient_that_a_layer_without_parts_makes_infinite():
    class Bad(keras.layers.Layer):
        def call(self, inputs):
            return backwards(inputs, tf.stop_gradient(inputs[:, -1:]))

    def make_model(cfg):
        return keras.Sequential([Passing(3, name="first"), Bad(name="bad"), Passing(3, name="last")])

    built = build(heat={(1, 5): 1.0}, functions={"make_model": make_model, "make_loss": make_loss})
    built.train_block(10)
    assert found(built) == (
        "layer 'bad': the gradient that leaves it backwards is not finite, the one that reaches it is"
    )


def test_a_gradient_of_parameters_alone():
    """Nothing is differentiated by the batch, so no gradient leaves the first layer."""

    class Bad(keras.layers.Layer):
        def build(self, shape):
            self.bias = self.add_weight("bias", [shape[-1]])

        def call(self, inputs):
            return inputs + backwards(self.bias * tf.ones_like(inputs), inputs[:, -1:])

    def make_model(cfg):
        return keras.Sequential([Bad(name="bad"), Passing(3, name="last")])

    built = build(heat={(1, 5): 1.0}, functions={"make_model": make_model, "make_loss": make_loss})
    built.train_block(10)
    assert found(built) == "the gradient of 'bad/bias' is not finite, those that pass between layers are"


@pytest.mark.parametrize("layer", [0, 2])
def test_nested_blocks_are_named_by_their_path(layer):
    built = planted(forwards, layer, {(0, 15): 1.0}, nested=True)
    built.train_block(1)
    path = "layer0" if layer == 0 else f"out/in/layer{layer}"
    assert found(built) == f"layer '{path}': its output is not finite, its inputs are"


@pytest.mark.parametrize("layer", ["first", "last"])
def test_a_nan_of_a_weight(layer):
    built = build()
    built.train_block(2)
    kernel = built.model.get_layer(layer).kernel
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [[0, 1]], [math.nan]))
    assert built.train_block(1).is_halted
    assert found(built) == f"the variable 'model/{layer}/kernel' was not finite before the step"


def test_a_nan_of_an_optimizers_slot():
    built = build(**{"train.precision": "float64"})
    built.train_block(2)
    slot = built.state.optimizer.groups[0].variables[1]
    slot.assign(math.inf * tf.ones_like(slot))
    assert found(built).startswith("the variable 'optimizer/groups/0/_variables/")


def test_a_nan_of_the_batch():
    built = build(heat={(2, 3): math.nan})
    assert len(built.train_block(10).rows) == 3
    assert found(built) == "'heat' of the batch is not finite"


def test_an_infinite_loss():
    built = build(heat={(2, BATCH - 1): HOT}, **{"train.micro_batches": 4})
    built.train_block(10)
    assert found(built) == "term 'cross_entropy' of the loss is not finite, and no layer's output is to blame"


def test_a_gradient_that_comes_bad_out_of_the_loss():
    """The root of 0 is 0, its slope infinite."""

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)
            return {"root": losses.Term(tf.sqrt(tf.reduce_sum(0 * logits)), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    built = build(functions={"make_loss": make_loss})
    assert built.train_block(1).is_halted
    assert found(built) == "layer 'the model': the gradient that reaches it backwards is not finite already"


def test_a_step_that_is_finite():
    assert found(build(**{"train.micro_batches": 2})) == HEALTHY


def test_the_run_goes_on_as_if_nobody_had_looked():
    looked, left = (build(**{"train.compile": "graph"}) for _ in range(2))
    for built in (looked, left):
        built.train_block(2)
    found(looked)
    assert looked.train_block(3).rows.tobytes() == left.train_block(3).rows.tobytes()
    assert differing(snapshot(looked), snapshot(left)) == set()


def test_a_mask_that_keras_hands_on_is_seen_by_who_looks():
    def make_model(cfg):
        return keras.Sequential(
            [
                keras.layers.Masking(),  # a step of zeros is none
                keras.layers.Dense(4, name="between"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(3),
            ]
        )

    def make_loss(cfg):
        def loss(model, batch, training):
            steps = tf.reshape(batch["x"], [-1, 3, 2]) * [[[1.0], [1.0], [0.0]]]
            return {"ce": losses.sparse_cross_entropy(model(steps), batch["label"], batch["weight"])}, {}

        return loss

    built = build(functions={"make_model": make_model, "make_loss": make_loss})
    block = built.train_block
    plain, watched = (found.terms["ce"] for found in (block.dry_run(block.batch()), look(block).gradients))
    assert float(watched.sum) == pytest.approx(float(plain.sum), rel=1e-6)


def test_layers_are_put_back_when_the_step_itself_fails():
    def make_model(cfg):
        class Fails(keras.layers.Layer):
            def call(self, inputs):
                if tf.executing_eagerly():
                    raise ZeroDivisionError
                return inputs

        return keras.Sequential([Passing(3, name="first"), Fails(name="fails"), Passing(3, name="last")])

    functions = {"make_model": make_model, "make_loss": make_loss}
    built = build(functions=functions, **{"train.compile": "graph"})  # whose own steps do not fail
    before = snapshot(built)
    built.model.layers[0].call = own = built.model.layers[0].call
    with pytest.raises(ZeroDivisionError):
        diagnose(built.train_block)
    assert built.model.layers[0].__dict__["call"] is own
    assert "call" not in built.model.layers[1].__dict__
    assert differing(before, snapshot(built)) == set()
    assert np.isfinite(built.train_block(1).row(0)["loss"])

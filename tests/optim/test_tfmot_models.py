"""Models in the wrappers of tensorflow_model_optimization: a run trains what a plain loop trains, or refuses them."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import paths
from tests.interrupted import interrupted
from tests.small import build, differing, snapshot
from tests.test_equivalence import distance

PLAIN = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "schedule.name": "constant", "schedule.warmup": ""}


def dense_layers():
    """Returns two layers, the last of full precision."""
    first = keras.layers.Dense(8, "tanh", name="first")
    return [first, keras.layers.Dense(3, name="last", dtype="float32")]


def fixed(model):
    """Returns a model with the same weights each time."""
    for variable in model.trainable_variables:
        if variable.shape.rank == 2:
            variable.assign(np.random.default_rng(variable.shape[0]).normal(size=variable.shape) / 2)
    return model


def pruned(cfg, wrapped=2):
    """Returns a model that prunes its first layers itself: masks at steps 3, 5, 7 and 9."""
    sparsity = pytest.importorskip("tensorflow_model_optimization").sparsity.keras
    schedule = sparsity.PolynomialDecay(0.0, 0.8, begin_step=3, end_step=9, frequency=2)
    layers = dense_layers()
    for place in range(wrapped):
        layers[place] = sparsity.prune_low_magnitude(layers[place], pruning_schedule=schedule)
    model = keras.Sequential([keras.Input([6]), *layers])
    for layer in layers[:wrapped]:
        layer.pruning_step.assign(0)
    return fixed(model)


def quantized(cfg):
    """Returns a model that rounds as int8 does."""
    quantization = pytest.importorskip("tensorflow_model_optimization").quantization.keras
    keras.backend.reset_uids()  # it names variables by the number of such layers that the process has made
    return fixed(quantization.quantize_model(keras.Sequential([keras.Input([6]), *dense_layers()])))


MODELS = {"prune_low_magnitude": pruned, "quantize_model": quantized}


def values(model):
    return {path: variable.numpy().astype(np.float64) for path, variable in paths.variables(model).items()}


def by_a_plain_loop(model, batches, jit=False):
    """Returns the variables of a model that a GradientTape has trained by gradient descent, under XLA if `jit`."""
    optimizer = keras.optimizers.SGD(0.01, jit_compile=False)

    @tf.function(autograph=False, jit_compile=jit)
    def step(x, labels):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    optimizer.build(model.trainable_variables)
    for batch in batches:
        step(batch["x"], batch["label"])
    return values(model)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("prune_low_magnitude", "graph"),
        ("quantize_model", "graph"),
        pytest.param("prune_low_magnitude", "xla", marks=pytest.mark.slow),
        pytest.param("quantize_model", "xla", marks=pytest.mark.slow),
    ],
)
def test_a_run_trains_what_a_plain_loop_trains(kind, mode):
    built = build(functions={"make_model": MODELS[kind]}, **PLAIN, **{"train.compile": mode})
    start = values(built.model)
    # XLA's gradient of fake quantisation is another one than the graph's where a weight is at the end of its range.
    jit = (kind, mode) == ("quantize_model", "xla")
    wanted = by_a_plain_loop(MODELS[kind](None), [built.data.at(step) for step in range(10)], jit)
    built.train_block(10)
    found = values(built.model)
    assert distance(start, {path: wanted[path] for path in wanted if np.any(wanted[path])}) > 1e-2
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_the_wrapper_prunes_the_full_weights_of_half_precision(half):
    scale = {"loss_scale.initial": 8.0} if half == "float16" else {}
    # The wrapper of the last layer would pass over its dtype, and logits would be in half precision.
    built = build(functions={"make_model": lambda cfg: pruned(cfg, 1)}, **PLAIN, **{"train.precision": half, **scale})
    built.train_block(10)
    (mask,) = [v for path, v in paths.variables(built.model).items() if path.endswith("mask")]
    assert mask.dtype == tf.float32 and int(mask.numpy().sum()) == round(0.2 * 48)


@pytest.mark.parametrize(
    "precision", ["float16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "float64"))]
)
def test_tfmot_refuses_to_quantise_in_another_precision(precision):
    with pytest.raises(TypeError, match='calling layer "quantize_layer'):
        build(functions={"make_model": quantized}, **{"train.precision": precision})


@pytest.mark.parametrize("kind", [pytest.param("prune_low_magnitude", marks=pytest.mark.slow), "quantize_model"])
def test_a_resumed_run_ends_in_the_same_bits(kind, tmp_path):
    whole, resumed = interrupted(lambda: build(functions={"make_model": MODELS[kind]}), tmp_path, 5, 5)
    resumed.train_block(5)
    assert differing(snapshot(whole), snapshot(resumed)) == set()

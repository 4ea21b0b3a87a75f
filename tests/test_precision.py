"""framework/precision.py: what is set, for how long, what is built under it; the loss scale as that of tf_keras."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, losses, paths, precision
from framework.config import UserError
from tests import small


def current():
    return keras.backend.floatx(), keras.mixed_precision.global_policy().name


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_scope_sets_policy_and_floatx_and_puts_them_back(name):
    with precision.scope(name):
        assert current() == (name, name)
    assert current() == ("float32", "float32")


def test_scopes_nest_and_an_exception_closes_them():
    with precision.scope("float64"):
        with pytest.raises(KeyError), precision.scope("float32"):
            assert current() == ("float32", "float32")
            raise KeyError
        assert current() == ("float64", "float64")
    assert current() == ("float32", "float32")


def test_a_policy_of_the_users_own_comes_back():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    with precision.scope("float64"):
        pass
    assert current() == ("float32", "mixed_bfloat16")


def test_an_unknown_precision_changes_nothing():
    with pytest.raises(ValueError), precision.scope("float33"):
        pass
    assert current() == ("float32", "float32")


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_model_built_in_the_scope_has_variables_and_results_of_its_dtype_afterwards_too(name):
    with precision.scope(name):
        layers = [keras.layers.Dense(3, kernel_regularizer="l2"), keras.layers.BatchNormalization()]
        model = keras.Sequential(layers)
        model.build([None, 2])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
    assert {variable.dtype.name for variable in model.variables} == {name}
    slots = [variable for variable in optimizer.variables if variable.shape.rank]
    assert len(slots) == 2 * len(model.trainable_variables)
    assert {variable.dtype.name for variable in slots} == {name}
    assert model(tf.zeros([1, 2], name)).dtype == name
    assert {loss.dtype.name for loss in model.losses} == {name}


def test_master_dtype():
    assert precision.master_dtype("float64") == tf.float64
    assert precision.master_dtype("float32") == tf.float32


HALVES = ("bfloat16", "float16")


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_computes_in_it_and_keeps_variables_in_float32(name):
    with precision.scope(name):
        assert current() == ("float32", f"mixed_{name}")
        inner, last = keras.layers.Dense(3), keras.layers.Dense(2, dtype=precision.full(name))
        model = keras.Sequential([inner, keras.layers.BatchNormalization(), keras.layers.LayerNormalization(), last])
        model.build([None, 4])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
    assert current() == ("float32", "float32")
    assert {variable.dtype.name for variable in model.variables} == {"float32"}
    assert {variable.dtype.name for variable in optimizer.variables if variable.shape.rank} == {"float32"}
    assert inner(tf.zeros([1, 4])).dtype.name == name
    assert model(tf.zeros([1, 4])).dtype == tf.float32
    assert (precision.full(name), precision.master_dtype(name)) == ("float32", tf.float32)


def test_float64_is_float64_throughout():
    assert (precision.full("float64"), precision.full("float32")) == ("float64", "float32")


# One rounding of the result, which is below 4, to 11 and 8 bits.
ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("graph", (64, 8)),
        ("graph", (16, 4, 4, 8)),
        ("xla", (16, 4, 4, 8)),
        pytest.param("xla", (64, 8), marks=pytest.mark.slow),
    ],
    ids=["graph-dense", "graph-pictures", "xla-pictures", "xla-dense"],
)
@pytest.mark.parametrize("layer", ["BatchNormalization", "LayerNormalization"])
def test_normalisation_sums_in_float32(name, mode, shape, layer):
    """Of values around 1000: their squares do not fit into float16, nor their mean into 8 bits."""
    values = np.random.default_rng(0).normal(1000, 30, shape)
    values = tf.cast(values, name).numpy().astype(np.float64)
    axes = -1 if layer == "LayerNormalization" else tuple(range(len(shape) - 1))
    mean, variance = values.mean(axes, keepdims=True), values.var(axes, keepdims=True)
    with precision.scope(name):
        normalise = getattr(keras.layers, layer)(epsilon=1e-3)
        normalise.build(shape)
        training = {"training": True} if layer == "BatchNormalization" else {}
        run = tf.function(lambda x: normalise(x, **training), jit_compile=mode == "xla", autograph=False)
        found = run(tf.cast(values, name))
    assert found.dtype.name == name
    expected = (values - mean) / np.sqrt(variance + 1e-3)
    assert np.abs(expected).max() < 4
    np.testing.assert_allclose(found.numpy().astype(np.float64), expected, rtol=0, atol=2 * ROUNDING[name])
    if layer == "BatchNormalization":
        assert normalise.moving_mean.dtype == normalise.moving_variance.dtype == tf.float32
        np.testing.assert_allclose(normalise.moving_mean.numpy(), 0.01 * mean.ravel(), rtol=1e-5)


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize(
    ("shape", "data_format"), [((2048, 6), "NHWC"), ((32, 8, 8, 6), "NHWC"), ((32, 6, 64), "NCHW")]
)
def test_gradients_of_biases_are_summed_in_float32(name, mode, shape, data_format):
    """Of 2,048 numbers, whose sum TensorFlow's own gradient has wrong by a third in bfloat16."""
    upstream = tf.cast(np.random.default_rng(0).normal(0.3, 1, shape), name)
    axes = (0, 2) if data_format == "NCHW" else tuple(range(len(shape) - 1))
    exact = upstream.numpy().astype(np.float64).sum(axes)

    def gradient(upstream):
        with tf.GradientTape() as tape:
            bias = tf.zeros([6], name)
            tape.watch(bias)
            y = tf.nn.bias_add(tf.zeros(shape, name), bias, data_format)
        return tape.gradient(y, bias, upstream)

    run = gradient if mode == "eager" else tf.function(gradient, jit_compile=mode == "xla", autograph=False)
    with precision.scope(name):
        found = run(upstream)
    assert found.dtype.name == name
    np.testing.assert_allclose(found.numpy().astype(np.float64), exact, rtol=ROUNDING[name], atol=0)


def test_gradients_of_biases_are_those_of_tensorflow_in_float32_and_after_the_scope():
    upstream = tf.constant(np.random.default_rng(0).normal(size=(2048, 6)), tf.float32)

    def gradients(name):
        with tf.GradientTape() as tape:
            bias = tf.zeros([6], name)
            tape.watch(bias)
            y = tf.nn.bias_add(tf.zeros([2048, 6], name), bias)
        return tape.gradient(y, bias, tf.cast(upstream, name)).numpy()

    for name in ("float32", "bfloat16"):
        expected = tf.raw_ops.BiasAddGrad(out_backprop=tf.cast(upstream, name)).numpy()
        np.testing.assert_array_equal(gradients(name), expected)
        with precision.scope("bfloat16"):
            assert (gradients(name) == expected).all() == (name == "float32")
        np.testing.assert_array_equal(gradients(name), expected)


@pytest.mark.parametrize("name", HALVES)
def test_cross_entropy_of_half_logits_is_that_of_float64(name):
    random = np.random.default_rng(0)
    logits = tf.cast(random.normal(0, 20, (64, 10)), name)
    labels, weight = random.integers(0, 10, 64), random.integers(0, 2, 64)
    exact = logits.numpy().astype(np.float64)
    shifted = exact - exact.max(axis=1, keepdims=True)
    values = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(64), labels]
    term = losses.sparse_cross_entropy(logits, tf.constant(labels), tf.constant(weight, tf.float32))
    assert (term.sum.dtype, term.weight.dtype) == (tf.float32, tf.float32)
    assert float(term.sum) == pytest.approx((values * weight).sum(), rel=1e-6)
    assert float(term.weight) == weight.sum()


@pytest.mark.parametrize("name", HALVES)
def test_terms_in_half_precision_are_refused(name):
    def make_loss(cfg):
        def loss(model, batch, training):
            logits = tf.cast(model(batch["x"], training=training), name)
            return {"mine": losses.Term(tf.reduce_sum(logits), tf.constant(1.0))}, {}

        return loss

    with pytest.raises(UserError) as caught:
        small.build(functions={"make_loss": make_loss}, **{"train.precision": name})
    assert str(caught.value) == (
        f"term 'mine' of the loss is {name}: sums need float32 at least. Cast logits with tf.cast(logits, tf.float32),"
        " or give the last layer dtype='float32'."
    )


@pytest.mark.parametrize("name", HALVES)
def test_penalties_in_half_precision_are_refused(name):
    """A sum of squares of activations is beyond float16 soon, and then every step would be skipped."""
    inner = {"activity_regularizer": keras.regularizers.L2(1e-6), "name": "inner"}

    def make_model(cfg):
        last = keras.layers.Dense(3, dtype="float32", activity_regularizer="l2")
        return keras.Sequential([keras.layers.Dense(8, **inner), last])

    with pytest.raises(UserError) as caught:
        small.build(functions={"make_model": make_model}, **{"train.precision": name})
    assert str(caught.value) == (
        f"a layer adds a loss in {name}: sums need float32 at least. Give the layer dtype='float32', or make the loss a"
        " term of make_loss."
    )
    inner["dtype"] = "float32"
    row = small.build(functions={"make_model": make_model}, **{"train.precision": name}).train_block(1).row(0)
    assert row["loss/penalty"] > 0


@pytest.mark.parametrize("name", HALVES)
def test_a_run_in_half_precision_has_a_state_and_gradients_in_float32(name):
    built = small.build(**{"train.precision": name, "ema.decay": 0.9, "train.micro_batches": 2})
    found = built.train_block.dry_run(built.train_block.batch())
    assert {gradient.dtype.name for gradient in found.gradients.values()} == {"float32"}
    assert {term.sum.dtype.name for term in found.terms.values()} == {"float32"}
    floating = [v.dtype.name for v in paths.variables(built.state).values() if v.dtype.is_floating]
    assert set(floating) == {"float32", "float64"} and floating.count("float64") == 2  # the best values alone
    assert np.isfinite(built.train_block(3).rows).all()
    assert (built.state.loss_scale is None) == (name == "bfloat16")


def scale_settings(**changes):
    settings = config.base_config().loss_scale
    settings.update(changes)
    return settings


def trajectory(scale, finite):
    """[(scale, good, stuck)] after each update."""
    update = tf.function(scale.update, autograph=False)
    found = []
    for is_finite in finite:
        update(tf.constant(bool(is_finite)))
        found.append((float(scale.scale), int(scale.good), int(scale.stuck)))
    return found


@pytest.mark.parametrize(("initial", "interval", "share"), [(2.0**15, 3, 0.2), (16.0, 1, 0.5), (4.0, 5, 0.1)])
def test_a_dynamic_scale_moves_as_that_of_keras(initial, interval, share):
    """On the same gradients: most finite, some infinite, some NaN; down to the floor of 1, and up."""
    random = np.random.default_rng(1)
    kinds = random.choice([1.0, math.inf, math.nan], 300, p=[1 - share, share / 2, share / 2])
    scale = precision.LossScale(
        scale_settings(initial=initial, growth_interval=interval, ceiling=2.0**100), is_dynamic=True
    )
    ours = trajectory(scale, np.isfinite(kinds))
    variable = tf.Variable([1.0, 2.0])
    reference = keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.SGD(0.0, jit_compile=False), initial_scale=initial, dynamic_growth_steps=interval
    )
    reference.build([variable])
    apply = tf.function(lambda kind: reference.apply_gradients([(tf.stack([1.0, kind]), variable)]), autograph=False)
    for place, kind in enumerate(kinds):
        apply(tf.constant(kind, tf.float32))
        assert ours[place][:2] == (float(reference.loss_scale), int(reference.dynamic_counter)), place
    scales = [value for value, _, _ in ours]
    assert max(scales) > initial and len(set(scales)) > 4


def test_a_scale_stays_between_floor_and_ceiling_and_moves_by_its_factors():
    settings = scale_settings(
        initial=8.0, floor=2.0, ceiling=100.0, growth_interval=2, growth_factor=4.0, backoff_factor=0.25
    )
    finite = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert trajectory(precision.LossScale(settings, is_dynamic=True), finite) == [
        (8, 1, 0), (32, 0, 0), (32, 1, 0), (100, 0, 0), (100, 1, 0), (100, 0, 0),
        (25, 0, 0), (6.25, 0, 0), (2, 0, 0), (2, 0, 1), (2, 1, 0), (8, 0, 0),
    ]  # fmt: skip


def test_a_scale_is_stuck_after_as_many_failures_at_its_floor():
    scale = precision.LossScale(scale_settings(initial=2.0, patience=3), is_dynamic=True)
    states = []
    for is_finite in (0, 0, 0, 1, 0, 0, 0):
        trajectory(scale, [is_finite])
        states.append((int(scale.stuck), bool(scale.is_stuck)))
    assert states == [(0, False), (1, False), (2, False), (0, False), (1, False), (2, False), (3, True)]


def test_a_static_scale_never_moves():
    scale = precision.LossScale(scale_settings(initial=64.0, growth_interval=1), is_dynamic=False)
    assert trajectory(scale, [1, 0, 1, 0, 0]) == [(64, 0, 0)] * 5


@pytest.mark.parametrize(
    ("name", "of", "is_dynamic"),
    [
        ("auto", "float16", True),
        ("auto", "bfloat16", None),
        ("auto", "float32", None),
        ("none", "bfloat16", None),
        ("static", "float16", False),
        ("dynamic", "float32", True),
    ],
)
def test_which_runs_have_a_scale(name, of, is_dynamic):
    settings = config.base_config()
    settings.loss_scale.name, settings.train.precision = name, of
    scale = precision.make_loss_scale(settings)
    assert (scale is None) == (is_dynamic is None)
    assert scale is None or scale.is_dynamic is is_dynamic


@pytest.mark.parametrize(
    ("name", "mode"),
    [("dynamic", "graph"), ("static", "graph"), pytest.param("dynamic", "xla", marks=pytest.mark.slow)],
)
def test_a_scale_that_is_a_power_of_two_changes_no_bit_in_float32(name, mode):
    """Gradients are unscaled before the norm, the clipping and the update."""
    settings = {"clip.name": "global_norm", "clip.threshold": 0.5, "train.compile": mode, "train.micro_batches": 2}
    plain = small.build(**settings)
    scaled = small.build(**settings, **{"loss_scale.name": name, "loss_scale.initial": 1024.0})
    rows, scaled_rows = plain.train_block(6), scaled.train_block(6)
    before, after = small.snapshot(plain), small.snapshot(scaled)
    assert {path for path in before if before[path] != after[path]} == set()
    assert set(after) - set(before) == {f"loss_scale/{part}" for part in ("scale", "good", "stuck")}
    for i in range(6):
        row = scaled_rows.row(i)
        assert row.pop("loss_scale") == 1024
        assert row == rows.row(i)

"""framework/testing/ passes what is right and finds each planted fault, by name."""

import itertools
import re
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import framework
from framework import layers, testing
from framework.errors import UserError
from tests import linear

X = np.random.default_rng(0).normal(size=(4, 5))


def mlp(depth=3):
    hidden = [keras.layers.Dense(4, activation="tanh", dtype="float64") for _ in range(depth)]
    return keras.Sequential([keras.Input([5], dtype="float64"), *hidden])


def sine(slope):
    """sin with a gradient of one's own."""

    @tf.custom_gradient
    def fn(x):
        return tf.sin(x), lambda upstream: upstream * slope(x)

    return fn


def values(model):
    return [variable.numpy() for variable in model.variables]


# ---- What is right passes ----


def test_gradients_of_a_dense_layer():
    layer = keras.layers.Dense(3, dtype="float64")
    assert layer.variables == []  # the check builds it
    testing.check_gradients(layer, [X], layer)
    assert len(layer.variables) == 2


def test_first_and_second_derivatives_of_a_deep_tanh_net():
    model = mlp()
    testing.check_gradients(model, [X], model, order=2, samples=2)


def test_layers_with_draws_and_state_keep_their_state():
    model = keras.Sequential(
        [
            keras.Input([5], dtype="float64"),
            keras.layers.Dense(3, dtype="float64"),
            keras.layers.BatchNormalization(dtype="float64"),
            layers.Dropout(0.4, dtype="float64"),
            keras.layers.LayerNormalization(dtype="float64"),
        ]
    )
    before = values(model)
    testing.check_gradients(lambda x: model(x, training=True), [X], model, samples=2)
    testing.check_compiled(lambda x: model(x, training=True), [X], variables=model)
    testing.check_compiled(lambda x: model(x, training=True), [X])
    assert all(np.array_equal(a, b) for a, b in zip(before, values(model), strict=True))


def test_dropout_gives_the_same_bits_in_all_modes():
    x = tf.ones([3, 50])
    testing.check_compiled(lambda x: layers.Dropout(0.4)(x, training=True) > 0, [x], bitwise=True)


def test_a_float32_net_with_a_gradient_that_cancels():
    model = keras.Sequential([keras.layers.Dense(7), keras.layers.BatchNormalization()])
    testing.check_compiled(lambda x: model(x, training=True), [tf.constant(X, tf.float32)])


def test_values_that_are_not_finite_are_equal_in_all_modes():
    testing.check_compiled(lambda x: (tf.math.log(x), x / 0.0), [np.array([-1.0, 0.0, 1.0])])
    with pytest.raises(AssertionError, match=r"^eager and graph disagree: output 0\[1\] is inf and 1\.0"):
        testing.check_compiled(
            lambda x: x if tf.executing_eagerly() else tf.minimum(x, 1.0), [tf.constant([1.0, np.inf])]
        )


def test_a_right_custom_gradient_through_tape_graph_and_xla():
    fn = sine(tf.cos)
    testing.check_gradients(fn, [X], order=2)
    testing.check_compiled(fn, [X])
    testing.check_compiled(fn, [tf.constant(X, tf.float32)])


def test_a_custom_gradient_with_variables_and_nested_outputs():
    weight = tf.Variable(2.0, dtype=tf.float64)

    @tf.custom_gradient
    def scaled(x):
        def gradient(upstream, variables):
            assert [id(variable) for variable in variables] == [id(weight)]
            return upstream * weight, [tf.reduce_sum(upstream * x)]

        return x * weight, gradient

    def fn(x):
        return {"y": (scaled(x), tf.argmax(x, axis=1))}

    testing.check_gradients(fn, [X], [weight])
    testing.check_compiled(fn, [X])


def test_integer_inputs_and_sparse_gradients():
    table = keras.layers.Embedding(6, 2, dtype="float64")
    ids = tf.constant([0, 3, 3, 5])
    testing.check_gradients(lambda ids: tf.square(table(ids)), [ids], table)
    testing.check_compiled(lambda ids: tf.square(table(ids)), [ids])


def test_a_function_that_is_zero():
    testing.check_gradients(lambda x: x * 0, [X], order=2)


# ---- What is wrong is found ----


@pytest.mark.parametrize("factor", [1 + 1e-4, 1 - 1e-5])
@pytest.mark.parametrize("shape", [(3,), (30, 20)])
def test_a_slope_off_by_little(factor, shape):
    x = np.random.default_rng(1).normal(size=shape)
    with pytest.raises(
        AssertionError, match=r"^gradient by inputs\[0\](\[\d+(, \d+)?\]| along direction \d): "
    ) as caught:
        testing.check_gradients(sine(lambda x: factor * tf.cos(x)), [x])
    tape, difference, apart, bound = map(
        float,
        re.search(
            r": (\S+) by the tape, (\S+) by differences; they differ by (\S+), the bound is (\S+)", str(caught.value)
        ).groups(),
    )
    assert tape / difference == pytest.approx(factor, abs=3e-7)
    assert apart == pytest.approx(abs(tape - difference), rel=1e-2)
    assert 0 < bound < apart


def test_one_wrong_element_of_many_is_named_or_crossed():
    slopes = np.ones([40, 50])
    slopes[17, 3] = 1.001
    with pytest.raises(AssertionError, match=r"gradient by inputs\[0\] along direction \d: "):
        testing.check_gradients(sine(lambda x: slopes * tf.cos(x)), [np.full([40, 50], 0.3)])


def test_a_missing_term_is_found_in_the_variable_it_misses():
    model = mlp(2)

    def fn(x):
        penalty = tf.reduce_sum(tf.square(model.layers[1].bias + 1.0))
        return model(x), tf.stop_gradient(penalty)

    with pytest.raises(AssertionError, match=r"^gradient by dense_1/bias\[\d\]: "):
        testing.check_gradients(fn, [X], model)


def test_a_gradient_of_none():
    weight = tf.Variable([1.0, 2.0], dtype=tf.float64, name="weight")
    with pytest.raises(AssertionError, match=r"gradient by variables\[0\] weight\[\d\]: 0 by .*The tape gave None"):
        testing.check_gradients(
            lambda x: x * tf.round(tf.stop_gradient(weight)[0]) + tf.stop_gradient(weight)[1], [X], [weight]
        )


def test_a_wrong_second_derivative():
    fn = sine(lambda x: tf.stop_gradient(tf.cos(x)))
    testing.check_gradients(fn, [X])
    with pytest.raises(AssertionError, match=r"^second derivative by inputs\[0\](\[\d, \d\]| along direction \d): "):
        testing.check_gradients(fn, [X], order=2)


def test_second_derivatives_through_moments_of_tensorflow_are_wrong():
    # tf.nn.moments stops the gradient at the mean: right once, wrong twice. BatchNormalization and
    # LayerNormalization of tf_keras are made of it.
    testing.check_gradients(lambda x: tf.math.reduce_variance(x, axis=0), [X], order=2)
    with pytest.raises(AssertionError, match=r"^second derivative by "):
        testing.check_gradients(lambda x: tf.nn.moments(x, axes=[0])[1], [X], order=2)


def test_rounding_to_float32_inside_and_kinks_are_hinted_at():
    hint = "fn has a kink or rounds to float32"
    with pytest.raises(AssertionError, match=hint):
        testing.check_gradients(lambda x: tf.cast(tf.cast(x, tf.float32), tf.float64), [X])
    with pytest.raises(AssertionError, match=hint):
        testing.check_gradients(lambda x: tf.nn.relu(x - 1e-5), [np.zeros(3)])


def test_a_value_that_is_not_finite():
    with pytest.raises(AssertionError, match=r"gradient by inputs\[0\]: .* nan by differences"):
        testing.check_gradients(tf.math.log, [np.float64(1e-9)])
    with pytest.raises(AssertionError, match=r"^gradient: not finite before anything is changed"):
        testing.check_gradients(tf.math.log, [np.array([1.0, -1.0])])


@pytest.mark.parametrize("check", [testing.check_gradients, testing.check_compiled])
def test_a_count_kept_in_python(check):
    count = itertools.count()
    message = {
        testing.check_gradients: "two calls differ by up to .*; does it count in Python, or draw without framework.rng",
        testing.check_compiled: r"^eager and (graph|xla) disagree: output 0\[\d, \d\] is ",
    }[check]
    with pytest.raises(AssertionError, match=message):
        check(lambda x: x + float(next(count)), [X])


@pytest.mark.parametrize(
    ("is_different", "modes"),
    [
        (lambda: not tf.executing_eagerly(), "graph|xla"),
        (lambda: tf.inside_function(), "graph|xla"),
    ],
)
def test_a_function_that_looks_where_it_runs(is_different, modes):
    with pytest.raises(
        AssertionError, match=rf"^eager and ({modes}) disagree: output 0\[\d, \d\] is .* 20 of 20 elements"
    ):
        testing.check_compiled(lambda x: x * (1 + 1e-9 * is_different()), [X])


def test_a_gradient_and_a_state_that_depend_on_the_mode():
    total = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="total")

    def counted(x):
        total.assign_add(1.0 if tf.executing_eagerly() else 2.0)
        return x

    with pytest.raises(AssertionError, match=r"disagree: total after the call is 1\.0 and 2\.0, .* the bound is 1e-12"):
        testing.check_compiled(counted, [X])
    assert total.numpy() == 0
    slope = sine(lambda x: tf.cos(x) * (1.0 if tf.executing_eagerly() else 1.5))
    with pytest.raises(AssertionError, match=r"disagree: gradient by inputs\[0\]\[\d, \d\] is "):
        testing.check_compiled(slope, [X])
    stopped = lambda x: x if tf.executing_eagerly() else tf.stop_gradient(x)  # noqa: E731
    with pytest.raises(AssertionError, match=r"disagree: only eager has gradient by inputs\[0\]$"):
        testing.check_compiled(stopped, [X])


def test_what_differs_under_xla_alone_is_said_of_xla():
    x = tf.random.stateless_normal([1000], seed=[1, 2])
    testing.check_compiled(tf.sin, [x])
    with pytest.raises(AssertionError, match=r"^eager and xla disagree: output 0.* the bound is equal bits"):
        testing.check_compiled(tf.sin, [x], bitwise=True)


# ---- What is left behind, and what is refused ----


@pytest.mark.parametrize("check", [testing.check_gradients, testing.check_compiled])
def test_variables_are_put_back_after_an_error(check):
    model, calls = mlp(1), itertools.count()

    def fn(x):
        model.layers[0].bias.assign_add(tf.ones(4, tf.float64))
        if next(calls) == 3:
            raise OSError("of the function")
        return model(x)

    before = values(model)
    with pytest.raises(OSError, match="of the function"):
        check(fn, [X], variables=model)
    assert next(calls) == 4
    assert all(np.array_equal(a, b) for a, b in zip(before, values(model), strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: testing.check_gradients(tf.sin, [tf.ones(3)]), TypeError, r"inputs\[0\] is float32; differences need"),
        (lambda: testing.check_gradients(tf.sin, X), TypeError, "inputs is of type ndarray; write a list of tensors"),
        (lambda: testing.check_gradients(tf.sin, [X], order=3), ValueError, "order=3 is not 1 or 2"),
        (lambda: testing.check_gradients(tf.abs, [1]), ValueError, "no input is floating and no variable is given"),
        (lambda: testing.check_gradients(tf.argmax, [X]), ValueError, "fn returns no floating tensor"),
        (
            lambda: testing.check_gradients(lambda x: tf.cast(x, tf.float32), [X]),
            TypeError,
            "output 0 is float32; differences need float64",
        ),
        (
            lambda: testing.check_gradients(lambda x: x, [X], [tf.Variable(1.0, name="w")]),
            TypeError,
            r"variables\[0\] w is float32",
        ),
    ],
)
def test_what_cannot_be_checked(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Runs for tests ----

FUNCTIONS = {name: getattr(linear, name) for name in ("get_config", "make_data", "make_model", "make_loss")}


def test_a_run_of_functions_takes_the_steps_of_numpy(tmp_path):
    run = testing.build(FUNCTIONS, {"train.duration": "4 steps", "log.every": "1 step"}, tmp_path / "run")
    begun = testing.bits(run.state)
    assert begun["model/dense/kernel"] == np.zeros([4, 1], np.float32).tobytes()
    framework.train(run)
    x, y = linear.arrays()
    weights, bias, losses = np.zeros(4), 0.0, []
    for step in range(4):
        part = slice(8 * step, 8 * step + 8)
        error = x[part].astype(np.float64) @ weights + bias - y[part]
        losses.append(np.mean(error**2))
        weights = weights - 0.05 * 2 * x[part].T @ error / 8
        bias = bias - 0.05 * 2 * error.mean()
    kernel = np.frombuffer(testing.bits(run.state)["model/dense/kernel"], np.float32)
    assert kernel == pytest.approx(weights, rel=1e-5)
    logged = [row for row in testing.rows(run) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert [row["loss"] for row in logged] == pytest.approx(losses, rel=1e-5)
    changed = testing.differing(begun, testing.bits(run.state))
    assert changed >= {"step", "updates", "model/dense/kernel", "model/dense/bias"} and "skipped" not in changed
    assert (tmp_path / "run" / "linear.py").read_text() == Path(linear.__file__).read_text()


def test_a_run_of_a_module_is_that_of_its_file():
    one = testing.build(linear)
    other = framework.build("tests/linear.py")
    assert testing.differing(testing.bits(one.state), testing.bits(other.state)) == set()
    assert one.config.schedule.learning_rate == 0.05


def test_a_config_and_a_schedule_are_those_of_the_framework_by_default():
    functions = {name: FUNCTIONS[name] for name in ("make_data", "make_model", "make_loss")}
    run = testing.build(functions, {"data.batch_size": 8, "eval.batch_size": 8, "schedule.learning_rate": 0.25})
    assert float(run.schedules["model"](7)) == 0.25


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"make_modle": len}, "no experiment has a function 'make_modle'. Did you mean 'make_model'?"),
        ({"make_model": len, "make_loss": len}, "make_data(cfg, split) is missing."),
        (
            {"make_data": len, "make_model": len, "make_loss": len},
            "none of make_model, make_loss and make_data is a function of a file.",
        ),
    ],
)
def test_functions_that_are_no_experiment_are_refused(functions, message):
    with pytest.raises(UserError, match=re.escape(message)):
        testing.build(functions)


def test_differing_names_what_only_one_has():
    assert testing.differing({"a": b"1", "b": b"2"}, {"a": b"1", "c": b"2"}) == {"b", "c"}


def test_rows_have_none_for_what_was_not_finite(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n')
    run = types.SimpleNamespace(workdir=tmp_path)
    assert testing.rows(run) == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]

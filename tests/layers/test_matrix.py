"""What holds for every public layer, over the cases of cases.py."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, paths, rng, testing
from tests.layers.cases import BATCH, CASES

KEY = rng.key(1)
OTHER_KERNELS = ("LayerNormalization", "MultiHeadAttention")  # equal to Keras but for rounding


def over(cases):
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases])


each_traced = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id, marks=[pytest.mark.slow] * case.is_slow) for case in CASES]
)
each_that_draws = over(case for case in CASES if case.draws)
each_of_keras = over(case for case in CASES if hasattr(keras.layers, case.name))


def trained(case, layer, inputs, step=0, first_example=0):
    with rng.scope(KEY, step, first_example):
        return case.call(layer, inputs, True).numpy()


def test_every_public_layer_has_a_case():
    public = {
        name
        for name in layers.__all__
        if isinstance(getattr(layers, name), type) and issubclass(getattr(layers, name), keras.layers.Layer)
    }
    assert public == {case.name for case in CASES}
    assert len({case.id for case in CASES}) == len(CASES)


@each_of_keras
def test_weights_initial_values_and_inference_are_those_of_keras(case):
    ours, theirs = case.build(), case.build(keras.layers)
    assert {path: (v.shape, v.dtype) for path, v in paths.variables(ours).items()} == {
        path: (v.shape, v.dtype) for path, v in paths.variables(theirs).items()
    }
    assert [v.name for v in ours.weights] == [v.name for v in theirs.weights]
    for own, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(own, other)
    bound = 1e-14 if case.name in OTHER_KERNELS else 0
    expected = case.call(theirs, case.inputs(), False)
    np.testing.assert_allclose(case.call(ours, case.inputs(), False), expected, rtol=0, atol=bound)
    if case.is_random:  # it has no rate that could be 0
        return
    ours, theirs = case.build(rates=False), case.build(keras.layers, rates=False)
    expected = case.call(theirs, case.inputs(), True)  # in training, without a rate and without a scope
    np.testing.assert_allclose(case.call(ours, case.inputs(), True), expected, rtol=0, atol=bound)


@each_of_keras
def test_calls_and_configs_go_through_keras(case):
    """A functional model is laid out without a scope, and a copy has the arguments of the first."""
    layer = case.build()
    symbols = [keras.Input(shape, dtype="float64") for shape in case.shapes]
    laid_out = case.call(layer, symbols, True)
    assert laid_out.shape[1:] == case.call(layer, case.inputs(), False).shape[1:]
    made = case.make()
    again = type(made).from_config(made.get_config())
    assert type(again) is type(made) and again.get_config() == made.get_config()
    assert layer.supports_masking == case.make(keras.layers).supports_masking


@each_that_draws
def test_a_step_draws_the_same_again_and_another_step_does_not(case):
    layer, inputs = case.build(), case.inputs()
    first = trained(case, layer, inputs, step=3)
    assert first.tobytes() == trained(case, layer, inputs, step=3).tobytes()
    assert first.tobytes() == trained(case, case.build(), inputs, step=3).tobytes()
    assert not np.allclose(first, trained(case, layer, inputs, step=4))
    assert not np.allclose(first, case.call(layer, inputs, False))


@each_that_draws
def test_a_second_call_in_a_step_draws_anew(case):
    layer, inputs = case.build(), case.inputs()
    with rng.scope(KEY, 0):
        calls = [case.call(layer, inputs, True).numpy() for _ in range(2)]
    # A cell is called many times for one sequence, and keeps its masks until it is told that the next one begins.
    assert np.array_equal(*calls) == case.name.endswith("Cell")


@each_that_draws
def test_micro_batches_and_replicas_draw_their_part(case):
    layer, inputs = case.build(), case.inputs()
    whole = trained(case, layer, inputs)
    parts = [trained(case, layer, [x[i:j] for x in inputs], first_example=i) for i, j in ((0, 1), (1, BATCH))]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-14)
    with rng.scope(KEY, 0), rng.at_example(1):
        part = case.call(layer, [x[1:] for x in inputs], True).numpy()
    assert part.tobytes() == parts[1].tobytes()


@each_traced
def test_gradients(case):
    layer = case.build()
    testing.check_gradients(lambda *x: case.call(layer, x, True), case.inputs(), variables=layer, samples=2)


@each_traced
def test_compile_modes(case):
    layer = case.build()
    testing.check_compiled(lambda *x: case.call(layer, x, True), case.inputs(), variables=layer)


@each_of_keras
def test_weights_saved_by_keras_are_restored(case, tmp_path):
    class Holder(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

    ours, theirs = case.build(), case.build(keras.layers)
    for variable in theirs.weights:
        variable.assign(variable + 1)
    for name in ("a.weights.h5", "a"):  # the format of today, and a checkpoint of TensorFlow
        Holder(theirs).save_weights(tmp_path / name)
        for variable in ours.weights:
            variable.assign(tf.zeros_like(variable))
        Holder(ours).load_weights(tmp_path / name)
        for own, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            assert np.array_equal(own, other)

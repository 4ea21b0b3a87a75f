"""What holds for every public layer, over the cases of cases.py."""

import importlib
import pkgutil

import numpy as np
import pytest
import tf_keras as keras

import framework
from framework import layers, paths, rng, testing
from framework.testing.layer import CHECKS
from tests.layers.cases import CASES

KEY = rng.key(1)
# Layers whose values are those of Keras but for rounding: {name: bound}.
OTHER_KERNELS = {
    "LayerNormalization": 1e-14,
    "GroupNormalization": 1e-14,
    "MultiHeadAttention": 1e-14,
    "RandomCrop": 1e-6,  # Keras resizes in float32
}


def over(cases):
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases])


each = over(CASES)
# Of a layer with several cases, `make test` checks the conformance of the first one; and of layers that one piece of
# code draws for, or that make up another one, as the encoder and decoder with their layers do Transformer, that of one.
FIRST = {case.name: case for case in reversed(CASES)}
LIKE_OTHERS = {
    "ConvLSTM2D",
    "ConvLSTM3D",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "GRU",
    "GRUCell",
    "LSTMCell",
    "RandomTranslation",
    "RandomZoom",
    "SimpleRNN",
    "SpatialDropout2D",
    "SpatialDropout3D",
}
each_layer = over(case for case in CASES if case is FIRST[case.name] and case.name not in LIKE_OTHERS)
each_that_draws = over(case for case in CASES if case.draws)
each_of_keras = over(case for case in CASES if hasattr(keras.layers, case.name))


def public_layers(modules):
    """The names of the layers in the `__all__` of modules."""
    public = [getattr(module, name) for module in modules for name in getattr(module, "__all__", ())]
    return {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, keras.layers.Layer)}


def check(case, exempt=None, thorough=False):
    testing.check_layer(
        lambda: case.make(dtype=None),
        case.inputs(),
        call=case.call,
        training_differs=case.training_differs,
        exempt=case.exempt if exempt is None else exempt,
        thorough=thorough,
    )


def test_every_public_layer_of_every_room_has_a_case():
    rooms = [module.name for module in pkgutil.iter_modules(framework.__path__, "framework.") if module.ispkg]
    assert len(rooms) >= 15
    public = public_layers(importlib.import_module(room) for room in rooms)
    assert public == {case.name for case in CASES}
    assert len({case.id for case in CASES}) == len(CASES)


def test_a_public_layer_without_a_case_is_noticed(monkeypatch):
    monkeypatch.setattr(layers, "Unchecked", type("Unchecked", (keras.layers.Layer,), {}), raising=False)
    monkeypatch.setattr(layers, "__all__", [*layers.__all__, "Unchecked"])
    with pytest.raises(AssertionError, match="Unchecked"):
        test_every_public_layer_of_every_room_has_a_case()


@each_layer
def test_conformance(case):
    check(case)


@pytest.mark.slow
@each
def test_conformance_of_every_element_and_dtype_and_of_exports(case):
    check(case, thorough=True)


@pytest.mark.slow
@over(case for case in CASES if case.exempt)
def test_what_is_exempt_fails(case):
    for name, reason in case.exempt.items():
        with pytest.raises(AssertionError, match=f"^{case.name} fails the check '{name}'"):
            check(case, {other: reason for other in CHECKS if other != name}, thorough=True)


@each_of_keras
def test_weights_initial_values_and_inference_are_those_of_keras(case):
    ours, theirs = case.build(), case.build(keras.layers)
    assert {path: (v.shape, v.dtype) for path, v in paths.variables(ours).items()} == {
        path: (v.shape, v.dtype) for path, v in paths.variables(theirs).items()
    }
    assert [v.name for v in ours.weights] == [v.name for v in theirs.weights]
    for own, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(own, other)
    bound = OTHER_KERNELS.get(case.name, 0)
    expected = case.call(theirs, case.inputs(), False)
    np.testing.assert_allclose(case.call(ours, case.inputs(), False), expected, rtol=0, atol=bound)
    if case.is_random:  # it has no rate that could be 0
        return
    ours, theirs = case.build(rates=False), case.build(keras.layers, rates=False)
    expected = case.call(theirs, case.inputs(), True)  # in training, without a rate and without a scope
    np.testing.assert_allclose(case.call(ours, case.inputs(), True), expected, rtol=0, atol=bound)


@each_of_keras
def test_calls_go_through_keras(case):
    """A functional model is laid out without a scope."""
    layer = case.build()
    symbols = [keras.Input(shape, dtype="float64") for shape in case.shapes]
    laid_out = case.call(layer, symbols, True)
    assert laid_out.shape[1:] == case.call(layer, case.inputs(), False).shape[1:]
    assert layer.supports_masking == case.make(keras.layers).supports_masking


@each_that_draws
def test_a_second_call_in_a_step_draws_anew(case):
    layer, inputs = case.build(), case.inputs()
    with rng.scope(KEY, 0):
        calls = [case.call(layer, inputs, True).numpy() for _ in range(2)]
    # A cell is called many times for one sequence, and keeps its masks until it is told that the next one begins.
    assert np.array_equal(*calls) == case.name.endswith("Cell")


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
            variable.assign(variable * 0)
        Holder(ours).load_weights(tmp_path / name)
        for own, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            assert np.array_equal(own, other)

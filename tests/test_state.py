"""framework/state.py: the best value so far as a truth table, and a state that has everything under a lasting name."""

import math

import numpy as np
import pytest
import tf_keras as keras

from framework import layers, paths
from framework.optim import Optimizer
from framework.state import Best, create, new_counter

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "improved"),
    [
        ("max", 0.0, [1.0, 2.0, 2.0, 1.5, 3.0], [True, True, False, False, True]),
        ("min", 0.0, [1.0, 2.0, 1.0, 0.5], [True, False, False, True]),
        ("max", 0.5, [1.0, 1.25, 1.5, 1.75, 2.25], [True, False, False, True, False]),
        ("min", 0.5, [1.0, 0.75, 0.5, 0.25], [True, False, False, True]),
        ("max", 0.0, [NAN, 1.0, NAN, 2.0], [False, True, False, True]),
        ("min", 0.0, [NAN, NAN, INF, INF, 5.0, -INF, 4.0], [False, False, False, False, True, False, True]),
        ("max", 0.0, [-INF, -INF, 0.0, INF, 1.0], [False, False, True, False, True]),
    ],
)
def test_best_takes_what_beats_it_and_counts_what_does_not(mode, min_delta, values, improved):
    best = Best("best")
    assert math.isnan(float(best.value))
    assert (int(best.step), int(best.waited)) == (-1, 0)
    value, where, waited = NAN, -1, 0
    for i, (observed, better) in enumerate(zip(values, improved, strict=True)):
        assert best.observe(observed, 10 * i, mode, min_delta) is better
        value, where, waited = (observed, 10 * i, 0) if better else (value, where, waited + 1)
        assert np.array_equal(float(best.value), value, equal_nan=True)
        assert (int(best.step), int(best.waited)) == (where, waited)


def test_best_does_not_round_to_float32():
    best = Best("best")
    best.observe(0.1, 1, "max")
    assert float(best.value) == 0.1
    assert best.observe(0.1 + 1e-12, 2, "max")


def make_state(optimizer=keras.optimizers.Adam):
    model = keras.Sequential(
        [
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
            layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.Sequential([keras.layers.Dense(3), layers.Dropout(0.5)]),
            keras.layers.Dense(2),
        ]
    )
    model.build([None, 5, 5, 1])
    return create(model, Optimizer([(optimizer(), paths.trainable(model))]), new_counter())


COUNTERS = ("step", "updates", "skipped", "skipped_in_row", "empty_terms")
OWN = {*COUNTERS, *(f"{name}/{part}" for name in ("best", "early") for part in ("value", "step", "waited"))}
MODEL = {
    *(f"model/{layer}/{name}" for layer in ("conv2d", "sequential/dense", "dense") for name in ("kernel", "bias")),
    *(f"model/batch_normalization/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
}


@pytest.mark.parametrize(("optimizer", "slots"), [("SGD", 1), ("Adam", 2), ("AdamW", 2)])
def test_state_lists_every_variable_once_and_nothing_else(optimizer, slots):
    state = make_state(getattr(keras.optimizers, optimizer))
    found = paths.variables(state)
    assert found.keys() >= OWN | MODEL
    rest = {id(found[path]) for path in found.keys() - OWN - MODEL}
    counters = [getattr(state, name) for name in COUNTERS]
    own = {id(variable) for variable in (*state.best.variables, *state.early.variables, *counters)}
    (inner,) = state.optimizer.groups
    of_optimizer = {id(variable) for variable in (*inner.variables, inner.learning_rate)}
    everything = {id(variable) for variable in state.model.variables} | of_optimizer
    assert {id(variable) for variable in found.values()} == everything | own
    assert len(found) == len(everything | own)
    assert rest == of_optimizer
    assert len([path for path in found if path.startswith("optimizer/groups/0/")]) == 8 * slots + 2  # count and rate


def test_slots_exist_before_the_first_update():
    state = make_state()
    before = list(paths.variables(state))
    state.optimizer.apply({path: 0 * variable for path, variable in state.optimizer.trained.items()})
    assert list(paths.variables(state)) == before


def test_names_shapes_and_order_are_the_same_for_every_build_in_a_process():
    first, second = (
        {path: (variable.shape.as_list(), variable.dtype.name) for path, variable in paths.variables(state).items()}
        for state in (make_state(), make_state())
    )
    assert list(first.items()) == list(second.items())


def test_counters_are_whole_numbers_of_their_own():
    """An optimizer may be applied several times an update, which only the step counts."""
    state = make_state(keras.optimizers.SGD)
    for _ in range(2):
        state.optimizer.apply({path: 0 * variable for path, variable in state.optimizer.trained.items()})
    assert int(state.optimizer.groups[0].iterations) == 2
    assert [int(getattr(state, name)) for name in COUNTERS] == [0] * 5
    assert {getattr(state, name).dtype.name for name in COUNTERS} == {"int64"}


def test_layers_that_draw_are_told_their_path():
    state = make_state()
    dropouts = [layer for layer in paths.objects(state).values() if isinstance(layer, layers.Dropout)]
    assert sorted(layer.rng_stream for layer in dropouts) == ["dropout", "sequential/dropout"]

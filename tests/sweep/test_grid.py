"""framework/sweep/grid.py: all combinations, each once, in order; what is not finite is refused."""

import itertools

import pytest

from framework.errors import UserError
from framework.sweep.grid import combinations
from tests.sweep.spaces import opened


def test_independent_questions_give_their_product_with_the_last_fastest():
    def sweep(trial):
        return {
            "a": trial.suggest_categorical("a", ["x", "y"]),
            "b": trial.suggest_int("b", 1, 7, step=3),
            "c": trial.suggest_float("c", 0.1, 0.3, step=0.1),
        }

    expected = itertools.product(["x", "y"], [1, 4, 7], [0.1, 0.2, 0.3])
    assert [tuple(params.values()) for params in combinations(sweep)] == list(expected)


@pytest.mark.filterwarnings("error")
def test_optuna_takes_the_last_value_of_a_step_that_floats_would_overshoot(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra 'sweep'")
    study = opened(tmp_path, lambda trial: {"rate": trial.suggest_float("c", 0.1, 0.3, step=0.1)}, sampler="grid")
    assert [study.ask().overrides[0] for _ in range(3)] == [f"--config.rate={rate}" for rate in (0.1, 0.2, 0.3)]


def test_a_question_may_depend_on_an_answer():
    def sweep(trial):
        if trial.suggest_categorical("name", ["adam", "sgd"]) == "sgd":
            trial.suggest_categorical("momentum", [0.0, 0.9])
        trial.suggest_categorical("name", ["adam", "sgd"])  # asked again: the same answer

    assert combinations(sweep) == [
        {"name": "adam"},
        {"name": "sgd", "momentum": 0.0},
        {"name": "sgd", "momentum": 0.9},
    ]


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (
            lambda trial: trial.suggest_float("rate", 0.0, 1.0),
            "sweep(trial): a grid needs a finite number of values, and suggest_float('rate', 0, 1) has no step. Write"
            " step=, or suggest_categorical, or leave --sampler=grid out.",
        ),
        (lambda trial: trial.suggest_int("n", 3, 2), "sweep(trial): 'n' has no value to choose from."),
        (
            lambda trial: [trial.suggest_int(name, 1, 50) for name in "abc"],
            "sweep(trial): the grid has more than 10000 combinations. Leave --sampler=grid out.",
        ),
    ],
)
def test_what_is_no_grid_is_refused(ask, line):
    with pytest.raises(UserError) as caught:
        combinations(ask)
    assert str(caught.value) == line


@pytest.mark.parametrize("ask", ["suggest_int", "suggest_float"])
def test_a_step_of_nothing_is_refused(ask):
    with pytest.raises(UserError, match=r"^sweep\(trial\): step=0 of 'x' must be above 0\.$"):
        combinations(lambda trial: {"x": getattr(trial, ask)("x", 1, 2, step=0)})


def test_a_range_of_any_length_takes_no_memory():
    with pytest.raises(UserError, match="more than 10000 combinations"):
        combinations(lambda trial: {"x": trial.suggest_int("x", 1, 10**12)})
